"""What a call that goes beyond plain batch norm has to answer: part by part, of the rows that count, by the oracle."""

import numpy as np

import fastbn
import reference
from beyond import activated
from fuzz import legal
from fuzz.check import moderate, values
from reference import WIDE
from tolerance import ULPS, check_backward, is_fast, reaching, relative, statistics

LIPSCHITZ = 1.13  # of every activation; gelu's is the largest


class Part:
    """A batch with statistics of its own: its rows, (count, C), and what becomes of them."""

    def __init__(self, own, positions, mean, var):
        self.positions = positions
        self.x = own.rows(own.x, positions)
        self.residual = None if own.residual is None else own.rows(own.residual, positions)
        known = {} if own.known is None else own.known
        plain = reference.forward(self.x, eps=own.eps, axis=1, **known)
        one, zero = np.ones(plain.mean.size, WIDE), np.zeros(plain.mean.size, WIDE)
        weight, bias = (one if own.weight is None else own.weight), (zero if own.bias is None else own.bias)
        self.r, self.d, more = one, zero, zero
        if own.renorm is not None and own.training:
            sigma = np.sqrt(np.asarray(var, WIDE) + WIDE(own.eps))
            std = np.sqrt(plain.var + WIDE(own.eps))
            self.r = np.clip(std / sigma, 1 / WIDE(own.renorm.r_max), own.renorm.r_max)
            self.d = np.clip((plain.mean - mean) / sigma, -own.renorm.d_max, own.renorm.d_max)
            more = std / sigma
        self.weight, self.bias, self.known = weight * self.r, weight * self.d + bias, known
        self.f = reference.forward(self.x, self.weight, self.bias, eps=own.eps, axis=1, **known)
        self.z = self.f.y if self.residual is None else self.f.y + self.residual
        self.y, self.slope = activated((own.activation.name, own.activation.slope), self.z)
        # How far off z is: statistics, in units of what y is made of, and its own rounding.
        self.count, self.reach = len(self.x), float(np.abs(self.f.xhat).max(initial=0))
        terms = np.abs(self.weight) * (reaching(self.f) + more) + np.abs(self.bias) + np.abs(weight * self.d)
        terms = terms if self.residual is None else terms + np.abs(self.residual)
        fast = is_fast(self.x, own.exact)
        unit = ULPS * 2.0**-23 if fast else 4 * relative(self.count, self.reach, self.x.dtype)
        self.off = unit * terms


class Expected:
    """The values of a call, taken before it; `sure` says whether an answer is certain."""

    @np.errstate(all="ignore")
    def __init__(self, a):
        self.axis = int(a["axis"]) % a["x"].ndim
        self.x, self.residual = values(a["x"]), values(a["residual"])
        self.weight, self.bias, self.mean, self.var = (
            values(a[name]) for name in ("weight", "bias", "running_mean", "running_var")
        )
        self.eps, self.training, self.exact = float(a["eps"]), bool(a["training"]), a["precision"] == "exact"
        self.renorm, self.correction = a["renorm"], float(a["correction"])
        self.momentum = float(a["momentum"]) if self.training and a["update_stats"] and self.mean is not None else None
        name, slope = a["activation"] if isinstance(a["activation"], tuple) else (a["activation"], 0.01)
        self.activation = fastbn.activations.Activation(name, slope)
        parts = legal.parts(a)
        self.known = None
        if a["moments"] is not None:
            self.known = {"mean": a["moments"].mean, "var": a["moments"].m2.astype(WIDE) / a["moments"].count}
        elif not self.training:
            self.known = {"mean": self.mean, "var": self.var}
        self.moments = a["moments"]
        self.counted = np.any(parts, axis=0)
        self.parts = []
        self.sure = self._certain()
        if not self.sure:
            return
        mean, var = self.mean, self.var
        for positions in parts:
            part = Part(self, positions, mean, var)
            self.parts.append(part)
            if self.momentum is not None:
                count = part.count if self.moments is None else self.moments.count
                unbiased = part.f.var * count / (WIDE(count) - WIDE(self.correction))
                mean, var = (
                    reference.running(old, new, self.momentum) for old, new in ((mean, part.f.mean), (var, unbiased))
                )
        self.moved = mean, var
        largest = max(float(np.abs(part.z).max(initial=0)) for part in self.parts)
        self.sure = largest < (np.finfo(np.float16).max / 2 if self.x.dtype == np.float16 else 1e30)

    def rows(self, array, positions):
        """Return the rows (count, C) of an array like x that count."""
        return np.moveaxis(array, self.axis, -1)[positions]

    def _certain(self):
        given = [self.rows(self.x, self.counted)]
        given += [] if self.residual is None else [self.rows(self.residual, self.counted)]
        given += [value for value in (self.weight, self.bias, self.mean, self.var) if value is not None]
        given += [] if self.moments is None else [self.moments.mean, self.moments.m2]
        if (
            not self.counted.any()
            or self.x.size == 0
            or not 1e-9 < self.eps < 1e6
            or not all(np.all(moderate(one)) for one in given)
        ):
            return False
        if self.moments is not None and (self.moments.m2 < 0).any():
            return False
        return self.var is None or bool((self.var >= 0).all())

    @np.errstate(all="ignore")
    def check_y(self, y):
        assert (np.moveaxis(y, self.axis, -1)[~self.counted] == 0).all()
        for part in self.parts if self.sure else ():
            found = self.rows(y, part.positions)
            step = np.spacing(np.abs(part.y).astype(found.dtype)).astype(WIDE)
            slope = max(LIPSCHITZ, abs(self.activation.slope))
            own = (
                2.0**-21 * np.abs(part.z) if found.dtype != np.float64 and not self.exact else 2.0**-48 * np.abs(part.z)
            )
            if self.activation.name in ("tanh", "sigmoid", "silu", "gelu") and self.exact:
                own = 2.0**-21 * np.abs(part.z)  # what is made of an exponential is float32
            assert (np.abs(found - part.y) <= slope * part.off + own + 2 * step).all()

    def check_running(self, a):
        if not self.sure or self.momentum is None:
            return
        for name, old, new in zip(("running_mean", "running_var"), (self.mean, self.var), self.moved, strict=True):
            size = np.abs(old).max() + np.abs(new).max()
            for part in self.parts:
                size = size + np.abs(part.f.mean).max() + 2 * (part.f.var.max() + np.sqrt(part.f.var.max()))
                count = part.count if self.moments is None else self.moments.count
                size = size + part.f.var.max() * count / (count - self.correction)
            error = max(statistics(part.count, part.reach, self.x.dtype, self.exact) for part in self.parts)
            step = np.spacing(np.abs(new).astype(old.dtype)).astype(WIDE)
            assert (np.abs(values(a[name]) - new) <= len(self.parts) * (error * size + 2 * step)).all()

    @np.errstate(all="ignore")
    def check_gradients(self, grads, dy):
        """Check dx and dresidual of every part; where an activation jumps, an answer is not certain."""
        moved = np.moveaxis(np.asarray(grads.dx), self.axis, -1)
        assert (moved[~self.counted] == 0).all()
        if self.residual is not None:
            assert grads.dresidual.shape == self.x.shape
            assert (np.moveaxis(np.asarray(grads.dresidual), self.axis, -1)[~self.counted] == 0).all()
        for part in self.parts if self.sure else ():
            g = self.rows(dy, part.positions)
            jumps = {"relu": (0,), "relu6": (0, 6), "leaky_relu": (0,)}.get(self.activation.name, ())
            if not np.all(moderate(g)) or any((np.abs(part.z - at) <= 2 * part.off).any() for at in jumps):
                continue
            through = np.asarray(g, WIDE) * part.slope
            wanted = reference.backward(through, part.x, part.weight, eps=self.eps, axis=1, **part.known)
            if self.x.dtype == np.float16 and np.abs(wanted[0]).max() > np.finfo(np.float16).max / 2:
                continue
            # What comes through a smooth activation is off as z is, by second derivatives below 1.2, and by rounding.
            own = 2.0**-20 if self.x.dtype != np.float64 else 2.0**-46
            off = 0.0 if self.activation.name is None else float((np.abs(g) * (own + 1.2 * part.off)).max())
            found = fastbn.Gradients(self.rows(np.asarray(grads.dx), part.positions), None, None)
            check_backward(found, wanted, g, part.f, part.weight, off=off, exact=self.exact)
            if self.residual is not None:
                got = self.rows(np.asarray(grads.dresidual), part.positions)
                step = np.spacing(np.abs(through).astype(g.dtype)).astype(WIDE)
                assert (np.abs(got - through) <= off + step).all()
