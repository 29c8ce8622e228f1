"""The checks on what a caller passed, and every message: nothing here computes."""
