"""Vectors of 16 bytes and what they are made of."""
