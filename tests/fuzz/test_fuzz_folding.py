"""Folding anything: the formula in the widest float, or one clear error; nothing that was passed is written."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import fastbn
from fuzz.arrays import BFLOAT16, DATA, PARAMETERS, Memory, junk, stored, values
from fuzz.calls import Call
from fuzz.check import called, examples, moderate
from reference import WIDE

MOST = {np.dtype(np.float16): 6e4, np.dtype(np.float32): 1e30, np.dtype(np.float64): 1e200, BFLOAT16: 1e30}


def norm(draw, channels):
    """A batch norm with any numbers in it."""
    bn = fastbn.BatchNorm(channels, affine=draw(st.booleans()), dtype=draw(st.sampled_from(PARAMETERS)))
    for name, array in bn._arrays().items():
        array[:] = values(draw, channels, bn.dtype, positive=name == "running_var")
    return bn


@np.errstate(all="ignore")
def exact(weight, bias, bn, where, is_next):
    """Return the new weight and bias, the absolute terms of the latter, and whether all of it is moderate.

    A weight is (out, in, ...) here, that of a whole layer: `where` is its place in that, and zeros are between groups.
    """
    mean, var = (np.asarray(v, WIDE) for v in (bn.running_mean, bn.running_var))
    scale, shift = (np.asarray(d if v is None else v, WIDE) + 0 * mean for v, d in ((bn.weight, 1), (bn.bias, 0)))
    scale = scale / np.sqrt(var + WIDE(bn.eps))
    wide, start = (np.asarray(v).astype(WIDE) for v in (weight, 0 if bias is None else bias))
    full = np.zeros((*where.shape, *wide.shape[2:]), WIDE)
    full[where >= 0] = wide.reshape(-1, *wide.shape[2:])[where[where >= 0]]
    columns = (1, -1) if is_next else (-1, 1)
    folded = full * scale.reshape(*columns, *(1 for _ in wide.shape[2:]))
    if is_next:
        sums, sizes = (w.sum(tuple(range(2, w.ndim))) for w in (full, np.abs(full)))
        constant = start + sums @ (shift - mean * scale)
        terms = np.abs(start) + sizes @ (np.abs(shift) + np.abs(mean * scale))
    else:
        constant = (start - mean) * scale + shift
        terms = (np.abs(start) + np.abs(mean)) * np.abs(scale) + np.abs(shift)
    sure = all(moderate(value).all() for value in (wide, np.atleast_1d(start), mean, scale, shift, var))
    kinds = weight.dtype, weight.dtype if bias is None else bias.dtype
    sure = sure and bool((np.abs(folded) < MOST[kinds[0]]).all() and (terms < MOST[kinds[1]]).all())
    return folded, constant, terms, kinds, sure


@examples(3)
@given(st.data(), st.booleans())
def test_fold(data, is_next):
    """(out, in / groups, ...) and (in, out / groups, ...), with the batch norm behind and before."""
    draw, memory = data.draw, Memory()
    groups, per_in, per_out = (draw(st.sampled_from([1, 1, 2, 3])) for _ in range(3))
    inputs, outputs = groups * per_in, groups * per_out
    rest = tuple(draw(st.lists(st.sampled_from([1, 2, 3]), max_size=2)))
    transposed = draw(st.booleans())
    weight = stored(
        draw, memory, values(draw, (*((inputs, per_out) if transposed else (outputs, per_in)), *rest), draw(DATA))
    )
    bias = stored(draw, memory, values(draw, outputs, draw(DATA))) if draw(st.booleans()) else None
    bn = norm(draw, inputs if is_next else outputs)
    o, i = np.ogrid[:outputs, :inputs]
    where = i * per_out + o % per_out if transposed else o * per_in + i % per_in
    where = np.where(o // per_out == i // per_in, where, -1)
    folded, constant, terms, kinds, sure = exact(weight, bias, bn, where, is_next)
    allowed = False if (bn.running_var < 0).any() else True if sure else None
    arguments = {"weight": weight, "bias": bias, "bn": bn, "axis": int(transposed != is_next), "groups": groups}
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        arguments[draw(st.sampled_from(list(arguments)))] = junk(draw, memory)
        allowed = None
    result = called(Call(memory, arguments), fastbn.fold_next if is_next else fastbn.fold, allowed)
    if result is None or allowed is not True:
        return
    w, b = result
    assert (w.dtype, b.dtype, w.shape, b.shape) == (*kinds, weight.shape, (outputs,))
    close(w.reshape(-1, *rest)[where[where >= 0]], folded[where >= 0], np.abs(folded[where >= 0]))
    close(b, constant, terms)


def close(actual, expected, terms):
    """One rounding to the dtype, after at most some tens of roundings of terms in float64."""
    half = 2.0**-8 if actual.dtype == BFLOAT16 else {2: 2.0**-11, 4: 2.0**-24, 8: 2.0**-53}[actual.itemsize]
    tiny = 2.0**-25 if actual.dtype == np.float16 else 1e-38
    off = half * np.abs(expected) * 1.001 + 100 * 2.0**-53 * terms + tiny
    assert (np.abs(actual.astype(WIDE) - expected) <= off).all()
