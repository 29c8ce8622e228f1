"""What walks memory: the inner loops."""
