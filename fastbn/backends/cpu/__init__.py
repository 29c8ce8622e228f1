"""The processor: plans, launches, and a short way through small calls."""
