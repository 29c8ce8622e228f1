"""One file a processor, the same functions in each: choose a plan, launch the kernels."""
