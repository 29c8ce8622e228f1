"""Print the speed-ups after the table of times."""


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    rows = [b for b in getattr(session, "benchmarks", []) if "vs_torch" in b.extra_info]
    if rows:
        terminalreporter.section("times faster than PyTorch eager (median of paired ratios)")
        for bench in rows:
            terminalreporter.write_line(f"{bench.extra_info['vs_torch']:6.2f}  {bench.param}")
