"""Raw bytes to tensor and back. The only file of the protocol that imports torch; the thin client doesn't load it.

Bytes are little-endian, row-major, without a header: dtype and shape travel in the message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from protocol.errors import ProtocolError

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int32": torch.int32,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 2**40


def tensor_from_bytes(
    data: bytes | bytearray | memoryview, dtype: str, shape: Sequence[int], *, are_states: bool = False
) -> torch.Tensor:
    """The tensor that `data` holds: a copy, so the buffer may be reused.

    Raises:
        ProtocolError: a dtype or shape that isn't allowed, a length that doesn't agree with them, or, if
            `are_states`, what no block of a model puts out: NaN, infinity, nothing but zeros.
    """
    if dtype not in _DTYPES:
        raise ProtocolError(f"dtype {dtype[:20]!r} is none of {', '.join(_DTYPES)}")
    n_expected = _n_elements(shape) * _DTYPES[dtype].itemsize
    n_bytes = data.nbytes if isinstance(data, memoryview) else len(data)
    if n_bytes != n_expected:
        raise ProtocolError(f"{n_bytes} bytes for a {dtype} tensor {tuple(shape)}, which has {n_expected}")
    tensor = torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype]).reshape(tuple(shape))
    if are_states and tensor.is_floating_point():
        check_states(tensor)
    return tensor


def bytes_from_tensor(tensor: torch.Tensor) -> tuple[str, memoryview]:
    """The dtype's name and the bytes of a CPU tensor of any strides: a view, good until the tensor is written to.

    Raises:
        ProtocolError: its dtype isn't one that travels.
    """
    if tensor.dtype not in _NAMES:
        raise ProtocolError(f"{tensor.dtype} doesn't travel; {', '.join(_DTYPES)} do")
    # numpy has no bfloat16, so the bytes are viewed as bytes
    return _NAMES[tensor.dtype], tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite: by their sum, in one pass, unless that says nothing."""
    return math.isfinite(float(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def check_states(tensor: torch.Tensor) -> None:
    """Refuse what no block of a model puts out.

    Raises:
        ProtocolError: NaN, infinity, nothing but zeros.
    """
    # A sum that is finite and isn't zero has nothing but finite summands, not all zero: one pass instead of six.
    total = float(tensor.sum(dtype=torch.float32))
    if math.isfinite(total) and total != 0.0:
        return
    if not bool(torch.isfinite(tensor).all()):
        raise ProtocolError(f"a tensor {tuple(tensor.shape)} with values that are NaN or infinite")
    # one row may be: a padding token at the very beginning of a prompt
    if not bool(tensor.any()):
        raise ProtocolError(f"a tensor {tuple(tensor.shape)} of nothing but zeros")


def _n_elements(shape: Sequence[int]) -> int:
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise ProtocolError(f"a tensor of {len(shape)} dimensions; 1 to {MAX_DIMENSIONS} travel")
    if any(size < 1 for size in shape):
        raise ProtocolError(f"a tensor {tuple(shape)} has a size below 1")
    n_elements = math.prod(shape)
    if n_elements > _MAX_ELEMENTS:
        raise ProtocolError(f"a tensor {tuple(shape)} has {n_elements} elements, over {_MAX_ELEMENTS}")
    return n_elements
