"""The kernels for processors: channels apart, x (N, C, S), and channels adjacent, x (R, C)."""
