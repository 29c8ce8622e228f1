"""Every example in a docstring of the API gives what it says."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    ["checkpoint", "derivatives", "folding", "functional", "layer", "prepare", "recalibration", "renorm", "whitening"],
)
def test_examples(name):
    failed, attempted = doctest.testmod(importlib.import_module(f"fastbn.{name}"))
    assert attempted > 0
    assert failed == 0
