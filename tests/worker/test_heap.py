"""What libraries hold on to; each in a process of its own, whose heap nobody else uses."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")

_PROGRAM = """
import ctypes, sys, threading, psutil
from worker.heap import give_back_free_memory, keep_few_arenas

libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.fopen.restype = [ctypes.c_void_p], ctypes.c_void_p
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]

if "few" in sys.argv:
    keep_few_arenas()
all_there, pieces = threading.Barrier(8), []

def work():
    all_there.wait()
    mine = [libc.malloc(60_000) for _ in range(200)]
    for piece in mine:
        ctypes.memset(piece, 1, 60_000)
    all_there.wait()
    pieces.extend(mine[-1:])  # the last one keeps the arena's top in use
    for piece in mine[:-1]:
        libc.free(piece)

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
held = psutil.Process().memory_info().rss
give_back_free_memory()
print(held - psutil.Process().memory_info().rss)
"""


def test_threads_share_arenas_and_what_is_free_goes_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    n_arenas, given_back = {}, {}
    for how in ("few", "many"):
        told = tmp_path_factory.mktemp(how) / "malloc_info"
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(told), how],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        n_arenas[how], given_back[how] = told.read_text().count("<heap "), int(done.stdout)
    assert n_arenas["few"] <= 2 < n_arenas["many"]
    assert given_back["few"] > 20_000_000


_PRODUCTS = """
import psutil, torch
from worker.heap import keep_few_kernels

keep_few_kernels()
torch.set_num_threads(1)
rows, weights = torch.zeros(8, 64), torch.zeros(2000, 64)
torch.ops.mkldnn._linear_pointwise(rows, weights, None, "none", [], "")
before = psutil.Process().memory_info().rss
for n in range(1000, 1500):
    torch.ops.mkldnn._linear_pointwise(rows, weights[:n], None, "none", [], "")
print(psutil.Process().memory_info().rss - before)
"""


def test_products_of_many_shapes_dont_fill_the_memory_with_kernels() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    done = subprocess.run(
        [sys.executable, "-c", _PRODUCTS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150_000_000, "300 million without a limit, where oneDNN makes code"
