"""Statistics that stay where they are, and gradients by those that were given."""

import numpy as np
import pytest

import fastbn
import reference
from beyond import F4, F8, activated, close, data


def test_statistics_stay_where_they_are():
    x = np.random.default_rng(10).standard_normal((8, 3)).astype(F4)
    mean, var = np.zeros(3, F4), np.ones(3, F4)
    for moments in (None, fastbn.batch_moments(x)):
        given = {"running_mean": mean, "running_var": var, "moments": moments}
        y, _ = fastbn.batch_norm(x, **given, update_stats=False, correction=8)
        close(y, fastbn.batch_norm(x)[0], F4)
    assert not mean.any()
    layer = fastbn.BatchNorm(3)
    layer(x)
    before = layer.state_dict()
    layer(x, update_stats=False)
    assert all((before[name] == value).all() for name, value in layer.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_gradients_by_given_statistics(training):
    x, dy, _, weight, bias = data(np.random.default_rng(11), (12, 5), F8)
    mean, var = np.random.default_rng(12).uniform(1, 3, (2, 5))
    moments = fastbn.Moments(12, mean, var * 12)
    given = {"moments": moments} if training else {"running_mean": mean, "running_var": var, "training": False}
    _, ctx = fastbn.batch_norm(x, weight, bias, **given, activation="tanh")
    grads = fastbn.batch_norm_backward(dy, ctx)
    f = reference.forward(x, weight, bias, mean=mean, var=var)
    g = dy * activated("tanh", f.y)[1]

    def by(step):  # of the loss along a step of mean and var
        moved = reference.forward(x, weight, bias, mean=mean + step[0], var=var + step[1])
        return (g * (moved.y - f.y)).sum(0) / 1e-9

    close(grads.dmean, by((1e-9, 0)), F4, 12)
    close(grads.dvar, by((0, 1e-9)), F4, 12)
    own = fastbn.batch_norm_backward(dy, fastbn.batch_norm(x)[1])
    assert own.dmean is None
    assert own.dvar is None
