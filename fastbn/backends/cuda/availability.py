"""Whether a GPU can be used here, what is computed on one, and why not."""

from __future__ import annotations

import functools
import importlib.util

from fastbn.backends.protocol import Support

INSTALL = 'install NVIDIA\'s driver and pip install "fastbn[cuda]"'
NO_DERIVATIVES = (
    "expected that of a forward pass on the CPU, got one of a GPU; "
    "higher derivatives are computed on the CPU only, so pass batch_norm a NumPy array with device='cpu'"
)


def supports(operation: str) -> Support:
    """Return that everything but higher derivatives is computed on a GPU."""
    return Support(False, NO_DERIVATIVES) if operation == "derivatives" else Support(True)


@functools.cache
def problem() -> str | None:
    """Return why no GPU can be used, in one line, or None."""
    try:
        if importlib.util.find_spec("numba_cuda") is None:
            found: str | None = "numba-cuda is not installed"
        else:
            from fastbn_kernels.cuda import gpu

            found = gpu.problem()
            if found is None:
                gpu.name()  # opens the GPU, which fails where it is there and not to be had
    except Exception as error:  # whatever a broken install raises
        found = f"numba-cuda does not work: {type(error).__name__}: {' '.join(str(error).split())}"
    return None if found is None else f"{found[:200].rstrip(' .')}; {INSTALL}"


def require() -> None:
    """Raise if no GPU can be used."""
    found = problem()
    if found is not None:
        raise ValueError(f"device: expected a machine with an NVIDIA GPU for 'cuda', but {found}")
