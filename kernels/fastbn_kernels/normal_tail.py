"""What GELU is computed with, on every processor: of a = |z|, R(a), the share of exp(-a^2 / 2) in what lies beyond a.

R(a), half of erfcx(a / sqrt(2)), falls from 1/2 like 1 / a and is smooth: a quotient of two polynomials without a
negative coefficient, so nothing cancels in them either. They come of the Remez algorithm for rational functions (in 60
digits, least relative error) for a up to where the exponential is zero, and were then rounded: relative errors of
2^-25.3 for float32 and 2^-54.2 for float64.
"""

from __future__ import annotations

from dataclasses import dataclass

DENSITY = 0.3989422804014327  # 1 / sqrt(2 pi)

# From where on exp(-a^2 / 2) is zero in float64, and so in float32.
FARTHEST = 38.625


@dataclass(frozen=True)
class Ratio:
    """R as a quotient."""

    above: tuple[float, ...]
    below: tuple[float, ...]


OF_DOUBLE = Ratio(
    above=(
        0.5, 0.8276847797326573, 0.6792358042095448, 0.3570578140710891, 0.1319058588640385, 0.03562021463174248,
        0.007111304627996593, 0.001037697404887581, 0.00010632835983295387, 6.957180615029657e-06,
        2.234730819156795e-07,
    ),
    below=(
        1.0, 2.45325412026818, 2.8158851947070787, 2.0002014101259706, 0.9792701394386404, 0.347936895621299,
        0.09185288096636916, 0.018090802586083556, 0.0026185607214532424, 0.0002670858370949107,
        1.7439065641378906e-05, 5.601639457486384e-07,
    ),
)  # fmt: skip
OF_FLOAT = Ratio(
    above=(0.5, 0.43816787, 0.18314092, 0.040601443, 0.004111585),
    below=(1.0, 1.6742207, 1.202112, 0.46922186, 0.101779215, 0.010306095),
)  # fmt: skip
