"""Runnable experiments, on public names of fastbn alone. They need the extra ``fastbn[demo]``."""
