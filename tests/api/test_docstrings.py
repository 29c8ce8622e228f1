"""Every example in a docstring of the API gives what it says."""

import doctest
import importlib

import pytest


<<<<<<< HEAD
@pytest.mark.parametrize("name", ["checkpoint", "derivatives", "folding", "functional", "layer", "recalibration"])
=======
@pytest.mark.parametrize("name", ["checkpoint", "derivatives", "functional", "layer", "whitening"])
>>>>>>> 09dd93839fc57419b8ce62d8b6141e738bb95660
def test_examples(name):
    failed, attempted = doctest.testmod(importlib.import_module(f"fastbn.{name}"))
    assert attempted > 0
    assert failed == 0
