"""Whether several sessions can go through a stage in one forward, and how; `worker.batching_trial` finds it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """What came of the trial."""

    joins_keys: bool = False
    """Whether blocks have to be given all keys of all sessions end to end (see `worker.attention`)."""
    because: str = ""
    """Why sessions have to run one at a time; empty if they needn't."""


UNTRIED = Batching(because="nobody has tried yet whether sessions can run together here")
