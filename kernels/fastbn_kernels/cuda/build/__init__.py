"""How GPU kernels are compiled, kept and launched."""
