"""The bench in company: each part once, small, in the processes of its hosts; its page; wrong variants fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import report
from company import page, quiet, targets, turns

COMMAND = Path(__file__).with_name("in_company.py")
HEADER = {"date": "2026-11-27", "processor": "a processor", "threads": 2, "last_level_cache": 32 << 20, "versions": {}}


def call(operation="forward", out=2.0, autograd=0.5, others=0.0):
    return {
        "shape": [32, 64], "layout": "NC", "operation": operation, "bytes": 8192, "calls": 42, "others": others,
        "seconds": {"fastbn": 1e-4},
        "ratios": {f"{targets.FASTBN}, {targets.OUT}": out, f"{targets.ADAPTER}, {targets.AUTOGRAD}": autograd},
    }  # fmt: skip


def step(kind="net", others=0.0, **speedup):
    variants = {name.replace("_", " "): ratio for name, ratio in speedup.items()}
    return {
        kind: "one", "layout": "NCHW", "shape": [8, 3, 9, 9], "rounds": 21, "others": others, "speedup": variants,
        "seconds": dict.fromkeys([turns.PLAIN, *variants], 0.1),
        "share": {n: turns.share(r, variants[turns.WITHOUT]) for n, r in variants.items() if n != turns.WITHOUT},
    }  # fmt: skip


def record(calls=(), models=(), trainers=()):
    return HEADER | {"calls": list(calls), "models": list(models), "trainers": list(trainers)}


def standing(found):
    return {line.what: line for line in targets.standing(found)}


@pytest.mark.parametrize("section", ["calls", "models", "trainers"])
def test_each_part_runs(section, tmp_path):
    """In seconds; a host that is not installed is left out."""
    arguments = ["--quick", "--only", section, "--write", str(tmp_path / "company")]
    done = subprocess.run([sys.executable, str(COMMAND), *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "company.json").read_text())
    if section != "models" or "torch" in found["versions"]:
        assert found[section]
    table = subprocess.run(
        [sys.executable, str(COMMAND), "--table", str(tmp_path / "company.json")], capture_output=True, text=True
    )
    assert table.stdout.strip() in (tmp_path / "company.md").read_text()


def test_standing():
    found = standing(
        record(
            [call(), call(out=8.0), call(out=100.0, others=0.3), call("backward", out=1.5)],
            [step(convert=1.2, without_batch_norm=1.5), step(convert=0.9, without_batch_norm=1.25)],
            [step("trainer", fastbn=1.5, without_batch_norm=1.6)],
        )
    )
    forward = found["call, forward: functions after np.matmul, PyTorch's own after torch.matmul"]
    assert (forward.rows, forward.figure, forward.worst) == (2, pytest.approx(4.0), 2.0)  # not the disturbed one
    assert forward.verdict == "met"
    assert found["call, backward: functions after np.matmul, PyTorch's own after torch.matmul"].verdict == "not met"
    assert found["call, forward: functions after np.matmul, JAX's formulas after jnp.matmul"].figure is None
    assert found["PyTorch model, step: convert"].figure == pytest.approx((1.2 * 0.9) ** 0.5)
    given_back = found["PyTorch model, share given back: convert"]
    assert given_back.figure == pytest.approx((1 - 1 / 1.08**0.5) / (1 - 1 / 1.875**0.5))
    assert given_back.worst == pytest.approx((1 - 1 / 0.9) / (1 - 1 / 1.25))
    assert found["PyTorch model, step: convert, fuse=True"].verdict == "not measured"
    assert found["NumPy trainer, share given back: fastbn"].figure == pytest.approx((1 / 3) / (3 / 8))


def test_page():
    found = record([call()], [step(others=0.5, convert=0.9, without_batch_norm=1.25)])
    text = page.markdown(found)
    assert "adapter and PyTorch's own, both after torch.matmul | 1 | **0.50** | **0.50** | 1.60 | not met |" in text
    assert "| one | 8 x 3 x 9 x 9 NCHW * | 100 | **0.90** | 1.25 | **-0.56** |" in text
    assert "during 1 of 2 rows" in text
    assert page.table(found)[0] in text


def test_steps_in_turn():
    seconds = {turns.PLAIN: 4.0, "fast": 2.0, turns.WITHOUT: 1.0}
    row = turns.measure({name: lambda s=s: s for name, s in seconds.items()}, rounds=3, warm=0)
    assert row["speedup"] == {"fast": 2.0, turns.WITHOUT: 4.0}
    assert row["share"] == {"fast": pytest.approx(0.67)}
    assert list(row["seconds"]) == list(seconds)


class Watch:
    """Says what others took during the rounds that come."""

    shares: ClassVar[list] = []

    def __init__(self, used):
        pass

    def share(self):  # noqa: D102
        return self.shares.pop(0)


def test_quiet_rounds_count(monkeypatch):
    monkeypatch.setattr(quiet, "Watch", Watch)
    Watch.shares, numbers = [0.4, 0.0, 0.01, 0.3, 0.02], iter(range(9))
    assert quiet.rounds(lambda: next(numbers), 3) == ([1, 2, 4], pytest.approx(0.01))
    Watch.shares, numbers = [0.5, 0.7, 0.0], iter(range(9))
    assert quiet.rounds(lambda: next(numbers), 3, seconds=0) == ([0, 1, 2], pytest.approx(0.4))
    Watch.shares, numbers = [None], iter(range(9))
    assert quiet.rounds(lambda: next(numbers), 1) == ([0], None)


def test_a_wrong_variant_fails():
    """A net that lost its ReLUs, and one whose weights get another gradient."""
    torch = pytest.importorskip("torch")
    from company import models, steps

    torch.manual_seed(0)
    net, shape = models.make("residual", small=True)
    x, target = torch.randn(shape), torch.randint(1000, shape[:1])
    steps.agree(steps.variants(net, x, target))
    wrong = steps.variants(net, x, target)
    wrong[steps.CONVERT].model[2] = torch.nn.Identity()
    with pytest.raises(AssertionError, match="convert: loss 0 is"):
        steps.agree(wrong)
    wrong = steps.variants(net, x, target)
    for parameter in wrong[steps.CONVERT].model.parameters():
        parameter.register_hook(lambda gradient: 1.1 * gradient)
    with pytest.raises(AssertionError, match="convert: loss 1 is"):
        steps.agree(wrong)


def test_a_wrong_trainer_fails():
    import numpy as np
    from company import trainers

    rng = np.random.default_rng()
    x, labels = rng.standard_normal((16, 12), np.float32), rng.integers(10, size=16)
    build = trainers.SMALL["MLP 784-1024-1024-10"][0]
    made = {
        name: trainers.Training(build(np.random.default_rng(1), norm), x, labels)
        for name, norm in trainers.NORMS.items()
    }
    trainers.agree(made)
    made[trainers.FASTBN].net.layers[1].weight += 0.01
    with pytest.raises(AssertionError, match="fastbn: loss 0 is"):
        trainers.agree(made)


def test_the_kept_page_is_that_of_its_record():
    kept = Path(__file__).with_name("results") / "company.json"
    if not kept.exists():
        pytest.skip("make bench-company has not been kept")
    assert kept.with_suffix(".md").read_text() == page.markdown(report.read(kept))
