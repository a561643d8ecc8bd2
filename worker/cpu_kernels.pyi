"""Kernels in C, by addresses: whoever calls them answers for what lies there (`worker.kernels`).

All raise ValueError if an address is 0, as that of a tensor without memory, and MemoryError.
"""

from collections.abc import Sequence

IS_SUPPORTED: bool
"""Whether this processor has the instructions; the functions are there on x86 alone."""

def multiply(
    x: int,
    bias: int,
    result: int,
    n_inputs: int,
    n_rows: int,
    n_columns: int,
    panels: int,
    kind: int,
    weights_kind: int,
    n_threads: int,
    /,
) -> None:
    """Rows (n_inputs, n_columns) times a matrix in panels, transposed; `bias` 0: none."""

def multiply_coded(
    x: int,
    bias: int,
    result: int,
    n_inputs: int,
    n_rows: int,
    n_columns: int,
    panels: int,
    scales: int,
    zeros: int,
    kind: int,
    scales_kind: int,
    n_bits: int,
    zero_code: int,
    n_threads: int,
    /,
) -> None:
    """Likewise by codes; `zeros` 0: none."""

def attend(
    queries: int,
    by_session: int,
    by_head: int,
    result: int,
    n_heads: int,
    n_key_heads: int,
    width: int,
    value_width: int,
    scaling: float,
    kind: int,
    n_threads: int,
    sessions: Sequence[tuple[int, int, int, int, int, int, int]],
    /,
) -> None:
    """One query of each session, attended; strides in bytes, what `sessions` holds says `worker.decode_kernel`."""

def norm(
    x: int, scale: int, result: int, n_rows: int, width: int, eps: float, kind: int, n_threads: int, /
) -> None:
    """Rows by their root mean square, times `scale`."""

def rotate(
    x: int,
    cos: int,
    sin: int,
    result: int,
    n_heads: int,
    n_positions: int,
    width: int,
    x_by_head: int,
    x_by_position: int,
    result_by_head: int,
    result_by_position: int,
    kind: int,
    /,
) -> None:
    """Rotary embeddings; strides in bytes."""

def keep(
    keys: int,
    values: int,
    keys_by_head: int,
    keys_by_session: int,
    values_by_head: int,
    values_by_session: int,
    n_heads: int,
    width_bytes: int,
    rooms: list[tuple[int, int, int]],
    /,
) -> None:
    """One position's keys and values of each session into a cache: its address, capacity, and the position."""
