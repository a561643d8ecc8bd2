"""What workers say, as it is kept: nothing endless, nothing that makes no sense. Pure.

A message may have megabytes. What a worker says in words is cut; what it says of others is kept of those who are
known. Nobody is sent away for it: an older or newer worker may only be more talkative.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import msgspec

from coordinator.policy.state import ClusterState
from protocol.control_messages import DeviceReport, Heartbeat, SpanStatus
from protocol.ids import FileHash, ModelName

MAX_LABEL = 255
"""Characters of a name: of a machine, a device, a version."""
_MAX_WORDS = 1000
"""Characters of what a worker says in words: everybody who asks for the status gets them."""
_MAX_FORMATS = 16
_HASH = re.compile(r"[0-9a-f]{64}")


def sound_status(status: SpanStatus) -> SpanStatus:
    """How a span stands, without what is no share of work done, is too long to be shown, or is of other blocks."""
    progress = min(max(status.progress, 0.0), 1.0) if math.isfinite(status.progress) else 0.0
    by_block = status.kv_bytes_by_block
    is_of_span = len(by_block) == len(status.blocks) and all(0 <= n_bytes < 2**40 for n_bytes in by_block)
    return msgspec.structs.replace(
        status,
        progress=progress,
        reason=status.reason[:_MAX_WORDS],
        note=status.note[:_MAX_WORDS],
        kv_bytes_by_block=by_block if is_of_span else (),
    )


def sound_device(device: DeviceReport) -> DeviceReport:
    """What was measured of a device; the numbers were checked at the door."""
    return msgspec.structs.replace(
        device, device=device.device[:MAX_LABEL], quantizations=device.quantizations[:_MAX_FORMATS]
    )


def sound_model(name: ModelName | None) -> ModelName | None:
    """A model that a worker names, which needn't be one of ours."""
    return None if name is None else ModelName(name[:MAX_LABEL])


def sound_files(files: Iterable[FileHash]) -> frozenset[FileHash]:
    """The files that can be asked for: what is no hash stands in no manifest."""
    return frozenset(file for file in files if _HASH.fullmatch(file))


def sound_beat(state: ClusterState, beat: Heartbeat) -> Heartbeat:
    """A heartbeat that speaks of workers and models of this cluster alone."""
    workers, models = state.workers.keys(), state.models.keys()
    if beat.round_trips_s.keys() | beat.links.keys() <= workers and beat.longest_sessions.keys() <= models:
        return beat
    return msgspec.structs.replace(
        beat,
        round_trips_s={to: s for to, s in beat.round_trips_s.items() if to in workers},
        links={to: link for to, link in beat.links.items() if to in workers},
        longest_sessions={name: n for name, n in beat.longest_sessions.items() if name in models},
    )
