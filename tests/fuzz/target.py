"""What is fuzzed: a function of bytes that raises only what it documents, in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.errors import BrigadeError

MAX_INPUT_BYTES = 16 * 1024
"""Of inputs that are made; seeds are far smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One reader of strangers' bytes."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    """Well-formed inputs, which the engines alter."""
    allowed: tuple[type[Exception], ...] = ()
    """What it documents. Not `BrigadeError`: an error that isn't documented is a defect too."""
    max_memory_bytes: int = 48 * 2**20
    """Beyond what there was before; a size that an input merely claims must never be allocated."""
    max_cpu_s: float = 5.0
    """Of one input of `MAX_INPUT_BYTES` at most."""


class FindingError(AssertionError):
    """An input that the target doesn't handle as it says."""


def check(target: Target, data: bytes, *, measures_memory: bool = True) -> None:
    """Run one input.

    Raises:
        FindingError: another error than the documented ones, or too much memory or time.
    """
    if measures_memory:
        tracemalloc.start()
    started_s = time.process_time()
    try:
        target.run(data)
    except target.allowed:
        pass
    except BaseException as exc:  # Rust's panics derive from BaseException
        if isinstance(exc, KeyboardInterrupt | SystemExit):
            raise
        kind = "an undocumented error" if isinstance(exc, BrigadeError) else "an error that isn't one of ours"
        raise FindingError(f"{target.name}: {kind}: {type(exc).__name__}: {str(exc)[:500]}") from exc
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1] if measures_memory else 0
        tracemalloc.stop()
    took_s = time.process_time() - started_s
    if peak_bytes > target.max_memory_bytes:
        raise FindingError(
            f"{target.name}: {peak_bytes} bytes of memory for an input of {len(data)}; "
            f"{target.max_memory_bytes} is the limit"
        )
    if took_s > target.max_cpu_s:
        raise FindingError(
            f"{target.name}: {took_s:.1f} s of computing for an input of {len(data)} bytes; "
            f"{target.max_cpu_s:g} s is the limit"
        )
