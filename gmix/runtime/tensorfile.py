"""Safe loading of tensor files from elsewhere: no code runs, and sizes are checked before memory is allocated."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from gmix.runtime.infile import plain_file


def load_plain(
    path: str | Path, device: torch.device | str = "cpu", allow: Sequence[type] = ()
) -> Any:
    """Load a file of `torch.save` that holds only tensors and plain values; no other pickle is executed.

    Args:
        path: File to load.
        device: Device for the tensors.
        allow: Further types to accept, which must have no side effects when they are created.

    Raises:
        ValueError: If it holds anything else.
        Exception: Almost any other type, if the file is broken.
    """
    path = plain_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch never compresses: no zip bombs
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
    try:
        with (
            safe_globals([*allow]),
            warnings.catch_warnings(),
        ):  # about pickles, which are refused anyway
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:  # torch's message suggests loading it anyway
        raise ValueError(
            "it is no file of tensors and plain values alone, and anything else in a pickle may run "
            "code: save the state_dict() of its model"
        ) from None


@contextmanager
def named_in_utf8(path: str | Path) -> Iterator[str]:
    """Yield a name for a file that safetensors can open, even if its real name is not UTF-8.

    Examples:
        >>> with named_in_utf8(__file__) as name:
        ...     print(name == __file__)
        True
    """
    path = plain_file(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Load all tensors of a `.safetensors` file.

    Raises:
        ValueError: If it is not a regular file.
        Exception: Raised by safetensors if the file is broken.
    """
    with named_in_utf8(path) as name:
        return load_file(name, device=str(device))


def check_tensors(path: Path, wanted: Mapping[str, Tensor]) -> None:
    """Check names, shapes and kinds in the header of a `.safetensors` file; no tensor is read.

    Raises:
        ValueError: If they differ; the message names the first.
        Exception: Raised by safetensors if the file is broken.
    """
    with named_in_utf8(path) as name, safe_open(name, "pt") as file:
        names = set(file.keys())
        lost, more = [sorted(a - b) for a, b in ((set(wanted), names), (names, set(wanted)))]
        if lost or more:
            raise ValueError(
                f"{path.name} is of another network: {len(lost)} tensors are missing "
                f"(first: {lost[0] if lost else 'none'}) and {len(more)} are unexpected "
                f"(first: {more[0] if more else 'none'})"
            )
        for name, tensor in wanted.items():
            found = file.get_slice(name)
            shape = tuple(found.get_shape())
            floating = found.get_dtype().startswith(("F", "BF"))
            if shape != tuple(tensor.shape) or floating != tensor.is_floating_point():
                raise ValueError(
                    f"{path.name} is of another network: {name} must be {tensor.dtype} of shape "
                    f"{tuple(tensor.shape)}, got {found.get_dtype()} of shape {shape}"
                )
