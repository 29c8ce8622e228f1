"""How far batch norm is from the exact result, in units in the last place: fastbn in every way, and the frameworks.

`data` draws the numbers, `exact` says what they should give, `ours` and `peers` compute it, `measure` runs over the
cases, `table` writes what was found.
"""
