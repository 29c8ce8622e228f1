# make demo    install what it needs into .venv and run the main job
# make test    the tests, on what `make test` itself installs
# make help    the rest

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
COMPILED = kernels/fastbn_kernels/compiled

.PHONY: help demo demo-quick test interpreted gpu-simulated test-all test-rest bounds gpu-simulated-rest gpu-static fuzz \
	coverage errors examples wheel lint format bench bench-once bench-quick bench-company bench-features accuracy clean

help:
	@echo "make demo             train on real digits with and without batch normalization: a table and a figure"
	@echo "make test             all that a change of a kernel or of the API could break"
	@echo "make interpreted      the kernels as plain Python, which checks every index; part of make test"
	@echo "make gpu-simulated    the GPU kernels on a simulated GPU; part of make test"
	@echo "make test-all         the rest: other libraries, full grids, packaging, what takes long (installs all of it)"
	@echo "make bounds           the kernels compiled with bounds checks; part of make test-all"
	@echo "make gpu-static       what the GPU kernels compile to, without a GPU; part of make test-all"
	@echo "make bench-once       each benchmark once, on small cases; part of make test-all"
	@echo "make fuzz             the fuzz tests with 20,000 examples"
	@echo "make coverage         lines of fastbn that the tests of make test run, kernels as plain Python"
	@echo "make errors           write docs/errors.md anew, after a change of a message"
	@echo "make examples         fastbn inside each library that it has an adapter for (installs the frameworks)"
	@echo "make bench            speed beside PyTorch, JAX, oneDNN, NumPy and a copy, in 35 minutes (installs the frameworks)"
	@echo "make bench-quick      a selection of that, in three minutes; WRITE=STEM keeps it as STEM.json and STEM.md"
	@echo "make bench-company    what a training step gains: calls after a product, models, trainers; part of make bench"
	@echo "make bench-features   what each feature costs, beside plain batch norm and what it replaces; part of make bench"
	@echo "make accuracy         the accuracy table of the README, measured here (installs the frameworks)"
	@echo "make wheel            dist/*.whl with the float32 kernels compiled, for this Python and Numba on Linux x86-64"
	@echo "make lint             ruff, mypy, and which room may import which"
	@echo "make clean            remove the environment, caches and results"

# Each stamp is an environment with so much installed; pyproject.toml says what.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1" # the first pip that knows --group
	$(PIP) install --editable .
	touch $@

$(VENV)/.demo: $(VENV)/.installed
	$(PIP) install --editable ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) install --group test
	touch $@

$(VENV)/.lint: $(VENV)/.test $(VENV)/.demo
	$(PIP) install --group lint
	touch $@

$(VENV)/.all: $(VENV)/.test $(VENV)/.demo
	$(PIP) install --group all
	touch $@

demo: $(VENV)/.demo
	$(BIN)/fastbn demo

demo-quick: $(VENV)/.demo
	$(BIN)/fastbn demo --quick

# A process for each of two cores, a file of tests at a time.
PYTEST = $(BIN)/pytest -n 2 --dist loadfile
QUICK = -m "not frameworks and not slow"

test: $(VENV)/.test
	$(PYTEST) $(QUICK)
	$(MAKE) --no-print-directory --jobs=2 interpreted gpu-simulated

# Every family in every dtype, with nothing to compile; an index out of range is an error.
interpreted: $(VENV)/.test
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest tests/api tests/numerics tests/kernels/test_tail.py tests/kernels/test_activations.py \
		tests/kernels/test_masked.py tests/fuzz/test_fuzz_beyond.py -m bounds

# The GPU kernels on a simulated GPU, against the oracle.
SIMULATED = NUMBA_ENABLE_CUDASIM=1 $(BIN)/pytest tests/gpu/test_kernels.py tests/gpu/test_calls.py \
	tests/gpu/test_launch_cache.py tests/gpu/test_simulator.py tests/gpu/test_contract.py tests/gpu/test_tail.py \
	tests/gpu/test_masked.py tests/gpu/test_beyond.py
gpu-simulated: $(VENV)/.test
	$(SIMULATED) $(QUICK)

# What `make test` has not run.
test-all: $(VENV)/.all
	$(MAKE) --no-print-directory test-rest
	$(MAKE) --no-print-directory --jobs=2 bounds gpu-static gpu-simulated-rest
	$(MAKE) --no-print-directory bench-once

test-rest: $(VENV)/.all
	$(PYTEST) -m "frameworks or slow"

# The same in machine code, as far as it checks that; each kernel is compiled once more.
bounds: $(VENV)/.test
	NUMBA_BOUNDSCHECK=1 $(BIN)/pytest tests/kernels/test_bounds.py tests/api tests/fuzz/test_fuzz.py -m bounds -k "not float16"

gpu-simulated-rest: $(VENV)/.all
	$(SIMULATED) -m "slow and not frameworks"

# The GPU kernels compiled for three architectures, without a GPU: registers, spills, widths of loads.
gpu-static: $(VENV)/.all
	$(BIN)/python bench/gpu_static.py

bench-once: $(VENV)/.all
	$(PYTEST) bench --benchmark-disable

fuzz: $(VENV)/.test
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest tests/fuzz/test_fuzz.py tests/fuzz/test_fuzz_layer.py \
		tests/fuzz/test_fuzz_beyond.py

# Kernels are seen as plain Python alone, on small arrays. The report is of all runs together.
COVERAGE = $(BIN)/coverage run -m pytest
coverage: $(VENV)/.all
	$(BIN)/coverage erase
	$(COVERAGE) -n 2 --dist loadfile $(QUICK)
	NUMBA_ENABLE_CUDASIM=1 $(COVERAGE) $(QUICK) tests/gpu/test_kernels.py tests/gpu/test_calls.py
	NUMBA_DISABLE_JIT=1 $(COVERAGE) -m bounds tests/api tests/numerics
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Each trains on scikit-learn's digits inside another library.
examples: $(VENV)/.all
	for example in examples/*.py; do echo "$$example"; $(BIN)/python $$example || exit 1; done

errors: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m errors.table

# The first call of who installs it compiles nothing. For several Pythons or Numbas, `python -m fastbn._ship` in each,
# then the wheel. Kernels do not stay in the checkout: there, what is changed is to be compiled.
wheel: $(VENV)/.installed
	rm -rf build $(COMPILED)
	$(BIN)/python -m fastbn._ship
	$(PIP) wheel --no-deps --wheel-dir dist .
	rm -rf build $(COMPILED)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

BENCHMARK = $(BIN)/pytest --benchmark-columns=median,iqr,rounds --benchmark-sort=fullname

# The figures are kept and drawn even if one of them fails its test.
bench: $(VENV)/.all
	$(BENCHMARK) bench/test_speed.py bench/test_sweeps.py bench/test_start.py --write bench/results/cpu; \
		failed=$$?; $(BIN)/python bench/plots.py bench/results/cpu.json && $(COMPANY) && $(FEATURES) && exit $$failed

# In five minutes on quiet cores; rounds that other programs disturb are taken again, and rows that they do are not counted.
COMPANY = $(BIN)/python bench/in_company.py --write bench/results/company
bench-company: $(VENV)/.all
	$(COMPANY)

# In four minutes on quiet cores, once the kernels are compiled; quiet rounds count, as there.
FEATURES = $(BIN)/python bench/features.py --write bench/results/features
bench-features: $(VENV)/.all
	$(FEATURES)

bench-quick: $(VENV)/.all
	$(BENCHMARK) bench/test_speed.py --quick $(if $(WRITE),--write $(WRITE))

accuracy: $(VENV)/.all
	$(BIN)/python bench/accuracy.py

clean:
	rm -rf $(VENV) $(COMPILED) build dist *.egg-info demo-results .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
