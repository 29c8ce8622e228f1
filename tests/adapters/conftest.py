"""What the tests of adapters share."""

import pytest


@pytest.fixture
def fused(monkeypatch):
    """Return the list of fused calls, which goes on: activations, with + for an addition."""
    from fastbn.adapters.torch import modules
    from fastbn.adapters.torch.activations import batch_norm_act

    calls = []

    def recorded(*given):
        calls.append(f"{given[-2]}{'+' if given[-1] is not None else ''}")
        return batch_norm_act(*given)

    monkeypatch.setattr(modules, "batch_norm_act", recorded)
    return calls
