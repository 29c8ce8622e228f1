"""What walks memory: the sweeps."""
