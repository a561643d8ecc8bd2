"""Keep what libraries hold on to near what is in use: few arenas of glibc's, and few kernels of oneDNN's.

glibc gives each thread an arena of its own and keeps in each what was freed there. A worker's threads take turns,
so most of that is never used again: 20 MB after loading, 50 MB after a long prompt.

oneDNN makes code for every number of rows that a product is asked for, 0.25 to 0.6 MB each time, and keeps the last
1,024, as does ideep between it and torch: 450 MB, after prompts of many lengths (docs/decisions/0009).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from contextlib import suppress

_M_ARENA_MAX = -8
"""glibc's number for it (malloc.h)."""
_N_ARENAS = 2
"""One for the thread that runs the model, which allocates in every step, and one for all others."""
_KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own, and ideep's; neither has another way to be told. Read at the first product."""
_N_KERNELS = 128
"""Five kinds of layers, each with 25 numbers of rows: 56 MB at most. With 64, steps of many sizes took
2 % longer."""


def keep_few_kernels() -> None:
    """Have oneDNN keep what a worker needs at a time, unless the environment says how much. For the beginning."""
    for variable in _KERNEL_CACHES:
        os.environ.setdefault(variable, str(_N_KERNELS))


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
