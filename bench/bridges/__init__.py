"""What it costs to call fastbn from a host library: one file a host, whose `measure()` returns the figures."""
