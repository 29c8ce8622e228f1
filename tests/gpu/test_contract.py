"""Both backends refuse the same calls with the same words: the table of docs/errors.md, on the simulated GPU."""

import pytest

from errors.placed import PLACES
from errors.table import TABLE, refused
from gpu_helpers import SIMULATED

pytestmark = pytest.mark.skipif(not SIMULATED, reason="what overlaps in NumPy overlaps on a simulated GPU alone")

ON_BOTH = ("batch_norm", "batch_norm_inference", "batch_norm_backward", "batch_moments", "backward_sums")
# Cases that are about where arrays are: elsewhere they are something else.
ABOUT_PLACES = {
    ("device", "cuda, where there is none"), ("device", "cpu, for an array on a GPU"),
    ("axis", "several, with x on a GPU"), ("residual", "on a GPU, with x of NumPy"),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize(
    ("function", "argument", "wrong", "error", "change"),
    [
        pytest.param(function, argument, wrong, error, change, id=f"{function}-{argument}-{wrong}")
        for function, _, _, cases in TABLE
        if function in ON_BOTH
        for argument, wrong, error, change in cases
        if (argument, wrong) not in ABOUT_PLACES
    ],
)
def test_says_the_same_and_writes_nothing(function, argument, wrong, error, change, place):
    if place == "there" and ("several" in wrong or (argument, wrong) in {("axis", "all axes"), ("axis", "none")}):
        pytest.skip("several channel axes are for the processor")
    expected, _, _ = refused(function, change)
    raised, before, after = refused(function, change, place)
    assert type(raised) is error
    assert after == before
    if wrong in ("the arguments were swapped", "an array"):  # an array of another kind there
        assert str(raised).partition(", got")[0] == str(expected).partition(", got")[0]
    else:
        assert str(raised) == str(expected)
