"""The newest values of a few series, one each so many seconds, in a fixed piece of memory. Knows no clock."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping


class RingBuffer:
    """Values come in as they are measured; of those within one step the mean is kept. NaN: nothing was measured."""

    __slots__ = ("_last_step", "_n_seen", "_n_steps", "_step_s", "_values")

    def __init__(self, names: Iterable[str], *, step_s: float, n_steps: int) -> None:
        self._step_s = step_s
        self._n_steps = n_steps
        self._values = {name: array("f", [math.nan]) * n_steps for name in names}
        self._n_seen: dict[str, int] = {}
        """Values of the newest step by series."""
        self._last_step: int | None = None

    def put(self, at_s: float, values: Mapping[str, float | None]) -> None:
        """Take values that were measured at `at_s`; what is older than the newest step is passed over."""
        step = int(at_s // self._step_s)
        if self._last_step is None or step > self._last_step:
            self._begin(step)
        if step != self._last_step:
            return
        for name, value in values.items():
            if value is None or not math.isfinite(value):
                continue
            n_seen = self._n_seen[name] = self._n_seen.get(name, 0) + 1
            series, place = self._values[name], step % self._n_steps
            series[place] = value if n_seen == 1 else series[place] + (value - series[place]) / n_seen

    @property
    def step_s(self) -> float:
        """Seconds from one value to the next."""
        return self._step_s

    @property
    def end_s(self) -> float:
        """The time of the newest value; 0.0 if there is none yet."""
        return 0.0 if self._last_step is None else self._last_step * self._step_s

    def series(self) -> dict[str, list[float | None]]:
        """All values by series, oldest first; None: nothing was measured."""
        if self._last_step is None:
            return {name: [] for name in self._values}
        first = (self._last_step + 1) % self._n_steps
        return {
            name: [None if math.isnan(value) else _short(value) for value in (*values[first:], *values[:first])]
            for name, values in self._values.items()
        }

    def _begin(self, step: int) -> None:
        """Go on to a step; those between, in which nothing came, are empty."""
        n_new = 0 if self._last_step is None else min(step - self._last_step, self._n_steps)
        for values in self._values.values():
            for new in range(step - n_new + 1, step + 1):
                values[new % self._n_steps] = math.nan
        self._last_step = step
        self._n_seen.clear()


def _short(value: float) -> float:
    """To the digits that 32 bits have: what is sent of it is half as long."""
    return float(f"{value:.6g}")
