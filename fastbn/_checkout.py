"""Find the kernels in a checkout.

`fastbn_kernels` lies in `kernels/`, which an installation flattens away. Python started in the root of a checkout
finds `fastbn` there but not the kernels, or finds those of an older installation; this puts the checkout's first.
"""

from __future__ import annotations

import sys
from pathlib import Path


def use_its_kernels() -> None:
    """Put `kernels/` on the path if it stands beside this package."""
    folder = Path(__file__).resolve().parent.parent / "kernels"
    if (folder / "fastbn_kernels" / "__init__.py").is_file() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


use_its_kernels()
