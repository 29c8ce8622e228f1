"""What must hold after a call: the right answer and nothing else written, or one clear error and nothing written."""

import os
import re

import numpy as np
from hypothesis import settings

import fastbn
import reference
from fuzz import legal
from tolerance import check, check_backward, check_forward, statistics

NAMES = (
    "x|weight|bias|running_mean|running_var|training|momentum|correction|eps|axis|moments|precision|out|device|dy|ctx|"
    r"activation|residual|mask|ghost_batch_size|renorm|update_stats|sums|count|mean|m2|sum_dy|sum_dy_xhat|others|array|"
    r"num_features|affine|track_running_stats|dtype|mode|state(\[[^:]*\])?|"
    r"bn(\.[a-z_]+)?|groups|in_axis|out_axis"
)
MESSAGE = re.compile(rf"(?s)({NAMES})(, ({NAMES}))*: expected .*, (but|got) |state: expected the keys")
MODERATE = 1e15
INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT") == "1"


def examples(weight):
    """So many hundredths of what the profile has for all of them: 1,000 by default, 20,000 in the nightly one."""
    return settings(max_examples=weight * settings.default.max_examples // 10)


def values(array):
    """What an array holds now, as the caller sees it."""
    return np.array(array, subok=False) if isinstance(array, np.ndarray) else array


def called(call, function, allowed, written=()):
    """Call a function: return its result, or None after an error that is as it should be."""
    call.memory.watch()
    refusal = None
    try:
        with np.errstate(all="ignore" if INTERPRETED else None):  # kernels as plain Python warn, compiled ones do not
            result = function(**call.arguments)
    except (TypeError, ValueError) as error:
        refusal = error
    if refusal is not None:
        assert type(refusal) in (TypeError, ValueError)
        assert MESSAGE.match(str(refusal)), f"unclear: {refusal!r}"
        assert allowed is not True, f"refused what is legal: {refusal}"
        call.memory.check()
        return None
    assert allowed is not False, "took what is not legal"
    call.memory.check(*written)
    return result


def answered(result, out, like, in_order=True):
    """Assert that an array is what an array shaped as x must be; dx may be in the memory order of dy."""
    assert type(result) is np.ndarray
    assert result.shape == like.shape
    assert result.dtype == like.dtype
    if out is None:
        assert not in_order or result.strides == np.empty_like(np.asarray(like), subok=False).strides
    elif type(out) is np.ndarray:
        assert result is out
    else:
        assert legal.same(result, np.asarray(out))


def moderate(*arrays):
    """Whether every channel, the first axis, has values that no square of which overflows, in all arrays."""
    good = True
    for array in arrays:
        with np.errstate(invalid="ignore"):
            wide = np.abs(np.asarray(array, np.longdouble))
            good = good & ((wide < MODERATE) & ((wide == 0) | (wide > 1 / MODERATE))).all(tuple(range(1, wide.ndim)))
    return good


def channels_first(array, axis):
    return np.moveaxis(np.asarray(array), axis, 0)


class Before:
    """The values of a forward pass before it, of the channels whose result is certain."""

    def __init__(self, a):
        self.axis = int(a["axis"])
        self.eps = float(a["eps"])
        self.training = bool(a["training"])
        self.exact = a.get("precision") == "exact"
        self.momentum, self.correction = a["momentum"], float(a["correction"])
        x = channels_first(values(a["x"]), self.axis)
        C = len(x)
        self.given = a["moments"]
        names = ("weight", "bias", "running_mean", "running_var")
        self.parameters = {name: None if a[name] is None else values(a[name]) for name in names}
        limits = [value for value in self.parameters.values() if value is not None]
        if self.given is not None:
            limits += [self.given.mean, self.given.m2]
        self.good = np.ones(C, bool) if x.size else np.zeros(C, bool)
        if not 1e-9 < self.eps < 1e6:
            self.good[:] = False
        with np.errstate(invalid="ignore"):
            for limit in [x, *limits]:
                self.good &= moderate(limit)
            if self.parameters["running_var"] is not None:
                self.good &= self.parameters["running_var"] >= 0
            if self.given is not None:
                self.good &= self.given.m2 >= 0
        self.x = x[self.good]
        self.weight, self.bias, self.mean, self.var = (
            None if value is None else value[self.good] for value in self.parameters.values()
        )
        self.known = {}
        if self.given is not None:
            known = self.given.mean[self.good], self.given.m2[self.good].astype(np.longdouble) / self.given.count
            self.known = {"mean": known[0], "var": known[1]}
        elif not self.training:
            self.known = {"mean": self.mean, "var": self.var}
        self.f = None
        if self.good.any():
            self.f = reference.forward(self.x, self.weight, self.bias, eps=self.eps, axis=0, **self.known)
            held = np.finfo(np.float16).max if x.dtype == np.float16 else 1e30
            self.good[self.good] = fits = (np.abs(self.f.y) < held / 2).all(tuple(range(1, self.x.ndim)))
            if not fits.all():
                self._only(fits)

    def _only(self, fits):
        self.x = self.x[fits]
        self.weight, self.bias, self.mean, self.var = (
            None if value is None else value[fits] for value in (self.weight, self.bias, self.mean, self.var)
        )
        self.known = {name: value[fits] for name, value in self.known.items()}
        if self.good.any():
            self.f = reference.forward(self.x, self.weight, self.bias, eps=self.eps, axis=0, **self.known)

    def check_y(self, y):
        if self.good.any():
            y = channels_first(y, self.axis)[self.good]
            check_forward(y, self.f, self.weight, self.bias, exact=self.exact)

    def check_running(self, a):
        if not self.good.any() or self.mean is None or not self.training:
            return
        count = self.x[0].size if self.given is None else self.given.count
        batch_var = self.f.var * count / (np.longdouble(count) - self.correction)
        reach = float(np.abs(self.f.xhat).max())
        for name, old, batch in (("running_mean", self.mean, self.f.mean), ("running_var", self.var, batch_var)):
            want = reference.running(old, batch, self.momentum)
            size = np.abs(old) + np.abs(batch) + np.sqrt(batch_var)
            error = statistics(count, reach, self.x.dtype, self.exact) * size.max()
            check(values(a[name])[self.good], want, error)

    def check_gradients(self, grads, dy, given, x_dtype):
        """Check the gradients of the channels where all is certain; given sums are for other tests."""
        for gradient, parameter in ((grads.dweight, "weight"), (grads.dbias, "bias")):
            like = self.parameters[parameter]
            assert (gradient is None) == (like is None)
            assert gradient is None or (gradient.shape, gradient.dtype, type(gradient)) == (
                like.shape,
                like.dtype,
                np.ndarray,
            )
        if given is not None or not self.good.any():
            return
        dy = channels_first(dy, self.axis)[self.good]
        sure = moderate(dy)
        with np.errstate(invalid="ignore"):
            expected = reference.backward(dy, self.x, self.weight, eps=self.eps, axis=0, **self.known)
        held = np.finfo(np.float16).max if x_dtype == np.float16 else 1e30
        with np.errstate(invalid="ignore"):
            sure &= (np.abs(expected[0]) < held / 2).all(tuple(range(1, dy.ndim)))
        if sure.any():
            chosen = np.flatnonzero(self.good)[sure]
            own = fastbn.Gradients(
                channels_first(grads.dx, self.axis)[chosen],
                None if grads.dweight is None else grads.dweight[chosen],
                None if grads.dbias is None else grads.dbias[chosen],
            )
            self._only(sure)
            parts = tuple(part[sure] for part in expected)
            check_backward(own, parts, dy[sure], self.f, self.weight, exact=self.exact)
