"""Adapters: one file a host library, imported only when asked for."""
