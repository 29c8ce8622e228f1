"""Parameters and statistics of layers in files: npz and safetensors, which hold arrays and no code."""

from __future__ import annotations

import importlib
import io
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fastbn.checks import scalars
from fastbn.layer import BatchNorm
from fastbn.whitening import DecorrelatedBatchNorm

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Layer: TypeAlias = BatchNorm | DecorrelatedBatchNorm
Layers: TypeAlias = Layer | Mapping[str, Layer]
PathLike: TypeAlias = str | os.PathLike[str]

SUFFIXES = (".npz", ".safetensors")


def save(path: PathLike, layers: Layers) -> None:
    """Write the state of a layer, or of several, to a file.

    The file is written beside its place and moved there when it is whole, so that a process that ends midway leaves
    what was there before.

    Parameters
    ----------
    path : str or path
        Ending in ``.npz`` (NumPy's) or ``.safetensors`` (needs the package safetensors).
    layers : BatchNorm or DecorrelatedBatchNorm, or mapping from str to either
        Of one layer the keys are those of its `state_dict`; of several they are ``name.weight`` and so on, as in
        the state dict of a PyTorch module.

    Raises
    ------
    TypeError, ValueError
        If the ending is another, or `layers` something else.
    ModuleNotFoundError
        If safetensors is asked for and missing.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import fastbn, tempfile, os
    >>> layers = {"bn1": fastbn.BatchNorm(8), "bn2": fastbn.BatchNorm(16)}
    >>> path = os.path.join(tempfile.mkdtemp(), "net.npz")
    >>> fastbn.save(path, layers)
    >>> fastbn.load(path, layers)
    """
    target = _checked(path)
    arrays = {prefix + key: array for prefix, layer in _prefixed(layers) for key, array in layer.state_dict().items()}
    tensors = _safetensors(target) if target.suffix == ".safetensors" else None
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with unfinished.open("wb") as file:
            if tensors is None:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs think of allow_pickle
            else:
                file.write(tensors.save(arrays))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: PathLike, layers: Layers, *, strict: bool = True) -> None:
    """Take the state of a layer, or of several, from a file: all of it, or nothing if anything does not fit.

    Parameters
    ----------
    path : str or path
        Ending in ``.npz`` or ``.safetensors``, from `save` or from elsewhere, a PyTorch net, say.
    layers : BatchNorm or DecorrelatedBatchNorm, or mapping from str to either
        As for `save`. Their arrays keep their identity and dtype and get new values.
    strict : bool, default True
        Whether keys in the file that belong to none of the layers are an error, as they are in `load_state_dict`;
        otherwise they are left alone. Missing ones are an error in any case.

    Raises
    ------
    TypeError, ValueError
        If a key is missing or unknown, a shape or a dtype does not fit, the ending is another, or the file is not what
        its ending says. Nothing in a file is ever unpickled.
    ModuleNotFoundError
        If safetensors is asked for and missing.
    OSError
        If the file cannot be read.
    """
    source = _checked(path)
    strict = scalars.flag("strict", strict)
    parts = [(prefix, layer, list(layer.state_dict())) for prefix, layer in _prefixed(layers)]
    found = _read(source)
    wanted = {prefix + key for prefix, _, keys in parts for key in keys}
    unknown = sorted(found.keys() - wanted)
    if strict and unknown:
        raise ValueError(
            f"path: expected the keys {sorted(wanted)} in {source.name}, got {unknown} besides; "
            "pass strict=False to leave those alone"
        )
    new = []
    for prefix, layer, keys in parts:
        state = {key: found[prefix + key] for key in keys if prefix + key in found}
        new.append(layer.check_state(state, prefix))
    for (_, layer, _), state in zip(parts, new, strict=True):
        layer.take_state(state)


def _checked(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise scalars.unfit("path", path, "a str or a path")
    checked = Path(path)
    if checked.suffix not in SUFFIXES:
        raise ValueError(f"path: expected a name that ends in {' or '.join(SUFFIXES)}, got {str(path)!r}")
    return checked


def _prefixed(layers: object) -> list[tuple[str, Layer]]:
    """Return every layer with what its keys begin with."""
    if isinstance(layers, Layer):
        return [("", layers)]
    expected = "a fastbn.BatchNorm or DecorrelatedBatchNorm, or a mapping from names to them"
    if not isinstance(layers, Mapping):
        raise scalars.unfit("layers", layers, expected)
    for name, layer in layers.items():
        if not isinstance(name, str):
            raise scalars.unfit("layers", name, f"{expected}, with a str for every name")
        if not isinstance(layer, Layer):
            raise scalars.unfit(f"layers[{name!r}]", layer, "a fastbn.BatchNorm or DecorrelatedBatchNorm")
    return [(f"{name}.", layer) for name, layer in layers.items()]


def _safetensors(path: Path) -> Any:
    try:
        return importlib.import_module("safetensors.numpy")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"path: expected a name that ends in .npz, because the package safetensors is not installed "
            f"(pip install safetensors), got {path.name!r}"
        ) from error


def _read(source: Path) -> dict[str, Array]:
    """Return all arrays of a file."""
    tensors = _safetensors(source) if source.suffix == ".safetensors" else None
    content = source.read_bytes()
    try:
        if tensors is not None:
            arrays: dict[str, Array] = tensors.load(content)
            return arrays
        file = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(file, Mapping):
            raise TypeError("a single array")
        return dict(file)
    except Exception as error:  # whatever zipfile, NumPy and safetensors make of bytes that are something else
        kind = "an npz file of plain arrays" if tensors is None else "a safetensors file"
        raise ValueError(f"path: expected {kind}, {source.name} is not one ({type(error).__name__})") from error
