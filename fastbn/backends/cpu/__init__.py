"""The processor: plans, launches, and a quick path for small calls."""
