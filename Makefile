# make demo    install what it needs into .venv and run the main job
# make test    the tests, on what `make test` itself installs
# make help    the rest

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help demo demo-quick test gpu-simulated gpu-static test-frameworks test-slow fuzz errors examples lint format bench bench-quick accuracy clean

help:
	@echo "make demo             train on real digits with and without batch normalization: a table and a figure"
	@echo "make test             the tests"
	@echo "make test-frameworks  the tests against PyTorch and the other frameworks (downloads them)"
	@echo "make gpu-static       what the GPU kernels compile to, without a GPU; part of make test, as is gpu-simulated"
	@echo "make test-slow        the tests that take minutes"
	@echo "make fuzz             the fuzz tests with 20,000 examples; part of make test-slow"
	@echo "make errors           write docs/errors.md anew, after a change of a message"
	@echo "make examples         fastbn inside each library that it has an adapter for (installs the frameworks)"
	@echo "make bench            speed beside PyTorch, JAX, oneDNN, NumPy and a copy, in 25 minutes (installs the frameworks)"
	@echo "make bench-quick      a selection of that, in three minutes; WRITE=STEM keeps it as STEM.json and STEM.md"
	@echo "make accuracy         the accuracy table of the README, measured here (installs the frameworks)"
	@echo "make lint             ruff and mypy"
	@echo "make clean            remove the environment, caches and results"

# Each stamp is an environment with so much installed; pyproject.toml says what.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1" # the first pip that knows --group
	$(PIP) install --editable ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) install --group test --group lint
	touch $@

$(VENV)/.frameworks: $(VENV)/.test
	$(PIP) install --group frameworks
	touch $@

demo: $(VENV)/.installed
	$(BIN)/fastbn demo

demo-quick: $(VENV)/.installed
	$(BIN)/fastbn demo --quick

# A process for each of two cores, a file of tests at a time: most of the time goes into compiling, which is serial.
PYTEST = $(BIN)/pytest -n 2 --dist loadfile

test: $(VENV)/.test
	$(PYTEST) -m "not frameworks and not slow"
	$(BIN)/pytest --doctest-modules fastbn/functional.py fastbn/layer.py
	NUMBA_BOUNDSCHECK=1 $(PYTEST) tests/kernels/test_bounds.py tests/api/test_forward.py tests/api/test_backward.py \
		tests/api/test_moments.py tests/fuzz/test_fuzz.py
	$(MAKE) --no-print-directory --jobs=2 gpu-simulated gpu-static
	$(PYTEST) bench --benchmark-disable

# The GPU kernels on a simulated GPU, against the oracle.
gpu-simulated: $(VENV)/.test
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/pytest tests/gpu/test_kernels.py tests/gpu/test_calls.py tests/gpu/test_launch_cache.py \
		tests/gpu/test_simulator.py

# The GPU kernels compiled for three architectures, without a GPU: registers, spills, widths of loads.
gpu-static: $(VENV)/.test
	$(BIN)/python bench/gpu_static.py

test-frameworks: $(VENV)/.frameworks
	$(PYTEST) -m frameworks tests bench/test_accuracy.py
	$(PYTEST) bench/test_peers.py bench/test_speed.py --benchmark-disable

test-slow: $(VENV)/.test fuzz
	$(BIN)/pytest -m slow

fuzz: $(VENV)/.test
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest tests/fuzz/test_fuzz.py tests/fuzz/test_fuzz_layer.py

# Each trains on scikit-learn's digits inside another library.
examples: $(VENV)/.frameworks
	for example in examples/*.py; do echo "$$example"; $(BIN)/python $$example || exit 1; done

errors: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m errors.table

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

BENCHMARK = $(BIN)/pytest --benchmark-columns=median,iqr,rounds --benchmark-sort=fullname

# The figures are kept and drawn even if one of them fails its test.
bench: $(VENV)/.frameworks
	$(BENCHMARK) bench/test_speed.py bench/test_sweeps.py bench/test_start.py --write bench/results/cpu; \
		failed=$$?; $(BIN)/python bench/plots.py bench/results/cpu.json && exit $$failed

bench-quick: $(VENV)/.frameworks
	$(BENCHMARK) bench/test_speed.py --quick $(if $(WRITE),--write $(WRITE))

accuracy: $(VENV)/.frameworks
	$(BIN)/python bench/accuracy.py

clean:
	rm -rf $(VENV) build dist *.egg-info demo-results .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
