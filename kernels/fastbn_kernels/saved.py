"""What a forward pass saves for the backward pass: an array (ROWS, C) of float64, a row each of the following.

    MEAN      what x was centred with, as the arithmetic on x holds it
    MEAN_LO   what that rounds off the mean
    M2        the batch's sum of (x - mean)^2; undefined where x was normalised with given statistics
    VAR       the variance that x was normalised with
    INVSTD    1 / sqrt(VAR + eps)
    WEIGHT    a copy of the weight, ones if there was none
    BIAS      a copy of the bias, zeros if there was none

With batch renormalization there are RENORM_ROWS, whose last are of it, in and out:

    R         1 / sqrt(running_var + eps); then by how much the scale was corrected
    D         running_mean; then by how much the shift was
    R_MAX, D_MAX, EPS

WEIGHT and BIAS are then those that y was computed with: weight * r and weight * d + bias.

The rows are defined here and nowhere else, for both processors and for everybody who keeps them.
"""

from __future__ import annotations

ROWS = 7
MEAN, MEAN_LO, M2, VAR, INVSTD, WEIGHT, BIAS = range(ROWS)

RENORM_ROWS = ROWS + 5
R, D, R_MAX, D_MAX, EPS = range(ROWS, RENORM_ROWS)
