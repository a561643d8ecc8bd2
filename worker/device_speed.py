"""How fast a device multiplies in each precision, and reads its memory: measured, in a second or two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, thread_time

import torch

from protocol.messages import Precision
from worker.packed_linear import product_with

_STREAM_BYTES = 128 * 2**20
"""Well over any cache, so that reading it measures memory."""
_N_SQUARE = 512
_MEASURE_S = 0.03
"""At least, for each of the measurements: 33 of a CPU with two precisions."""
_N_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionSpeed:
    """Matrix products of one precision on this device."""

    prefill_flops_per_s: float
    """Square matrices: compute is the limit."""
    decode_bytes_per_s: float
    """Weights streamed through one token's product: memory is the limit."""

    def decode_elements_per_s(self, precision: Precision) -> float:
        """Weights a second, whatever their size: what compares two precisions."""
        return self.decode_bytes_per_s / _dtype(precision).itemsize

    def slowed(self, share: float) -> PrecisionSpeed:
        """As it is where threads may run only a share of the time."""
        flops_per_s, bytes_per_s = self.prefill_flops_per_s * share, self.decode_bytes_per_s * share
        return PrecisionSpeed(prefill_flops_per_s=flops_per_s, decode_bytes_per_s=bytes_per_s)


def measured_memory(device: torch.device) -> float:
    """Bytes a second that the device reads. Blocks."""
    data = torch.ones(_STREAM_BYTES // 4, device=device)
    return data.nbytes / _seconds_of(data.sum, device, perf_counter)


def measured_speeds(device: torch.device, precisions: Iterable[Precision]) -> dict[Precision, PrecisionSpeed]:
    """Measured in turns, so that what else the machine does slows all precisions alike. Blocks.

    Threads that wait for each other are a hundred times as slow beside others' work, such as another worker that
    starts or measures. One thread's own time hardly rises then, and all of them are at least as fast as one.
    """
    trials = {precision: _Trial(device, _dtype(precision)) for precision in precisions}
    prefill_s = dict.fromkeys(trials, float("inf"))
    decode_s = dict.fromkeys(trials, float("inf"))
    for _ in range(_N_ROUNDS):
        for precision, trial in trials.items():
            prefill_s[precision] = min(prefill_s[precision], _seconds_of(trial.prefill, device, perf_counter))
            decode_s[precision] = min(decode_s[precision], _seconds_of(trial.decode, device, perf_counter))
    if device.type == "cpu":
        with _one_thread():
            for precision, trial in trials.items():
                prefill_s[precision] = min(prefill_s[precision], _seconds_of(trial.prefill, device, thread_time))
                decode_s[precision] = min(decode_s[precision], _seconds_of(trial.decode, device, thread_time))
    return {
        precision: PrecisionSpeed(
            prefill_flops_per_s=2 * _N_SQUARE**3 / prefill_s[precision],
            decode_bytes_per_s=trial.n_weight_bytes / decode_s[precision],
        )
        for precision, trial in trials.items()
    }


class _Trial:
    """Matrix products as in a model's prefill and decode."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._square = torch.ones((_N_SQUARE, _N_SQUARE), dtype=dtype, device=device)
        self._by_square = product_with(self._square)
        # several matrices in turn, so that a cache doesn't keep the one that is used
        n_matrices = _STREAM_BYTES // 2 // (2048 * 2048 * dtype.itemsize)
        weights = torch.ones((n_matrices, 2048, 2048), dtype=dtype, device=device)
        self._products = [product_with(weight) for weight in weights]
        self._token = torch.ones((1, 2048), dtype=dtype, device=device)
        self.n_weight_bytes = weights.nbytes

    def prefill(self) -> None:
        """One product of square matrices: bound by arithmetic."""
        self._by_square(self._square)

    def decode(self) -> None:
        """One token through all matrices: bound by memory."""
        for product in self._products:
            product(self._token)


@contextmanager
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _seconds_of(act: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Shortest time of one call, by `clock`: what the device can do when nothing disturbs it."""
    act()
    best, end = float("inf"), perf_counter() + _MEASURE_S
    while perf_counter() < end or best == float("inf"):
        _synchronize(device)
        started = clock()
        act()
        _synchronize(device)
        best = min(best, clock() - started)
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _dtype(precision: Precision) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, precision)
    return dtype
