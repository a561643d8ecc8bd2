"""Keep the C library's heap near what is in use (glibc): few arenas, and what is free goes back to the system.

glibc gives each thread an arena of its own and keeps in each what was freed there. A worker's threads take turns,
so most of that is never used again: 20 MB after loading, 50 MB after a long prompt.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress

_M_ARENA_MAX = -8
"""glibc's number for it (malloc.h)."""
_N_ARENAS = 2
"""One for the thread that runs the model, which allocates in every step, and one for all others."""


def keep_few_arenas() -> None:
    """Have threads that are started from now on share arenas. For the program's beginning."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library: nothing to do
            ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, _N_ARENAS)


def give_back_free_memory() -> None:
    """Return to the system what has been freed; it takes some milliseconds."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def mapped(n_bytes: int) -> mmap.mmap:
    """Memory of its own, which goes back to the system as soon as nobody has it. OSError: there is none."""
    if sys.platform == "win32":
        memory = mmap.mmap(-1, n_bytes)
    else:
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memory
