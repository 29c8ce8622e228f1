"""The console script ``fastbn``, and ``python -m fastbn``."""

from __future__ import annotations

import sys

# Import names of what the extra `demo` installs, with the names to install them by.
EXTRA = {"matplotlib": "matplotlib", "rich": "rich", "sklearn": "scikit-learn", "typer": "typer"}


def main() -> int:
    """Run the command line; return its exit code."""
    try:
        from fastbn.cli import app

        app()
    except ModuleNotFoundError as error:
        missing = EXTRA.get((error.name or "").partition(".")[0])
        if missing is None:
            raise
        print(f'fastbn: this command needs {missing}: pip install "fastbn[demo]"', file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
