"""Backends, a folder each: modules with the functions that `protocol` lists."""
