"""Vectors of 16 lanes and what they are made of."""
