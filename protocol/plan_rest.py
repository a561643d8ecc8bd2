"""Bodies of the answer that shows a placement: what the coordinator would choose, and why it leaves workers out.

JSON on the wire.
"""

from __future__ import annotations

from protocol.ids import BlockRange, ModelName, WorkerId
from protocol.messages import Quantization
from protocol.rest import Body, Query


class PlanQuery(Query, frozen=True, kw_only=True):
    """`GET /admin/v1/plan`."""

    placement: str | None = None
    """As in `coord serve`; None: as the coordinator has it."""


class PlannedSpan(Body, frozen=True, kw_only=True):
    """A range of blocks that a worker would be given."""

    worker_id: WorkerId
    hostname: str
    blocks: BlockRange
    stage_s: float
    """Seconds that one token would take in all of them, and after the model's last one."""
    quantization: Quantization | None = None
    """What their weights would be held in, if not as the worker holds weights otherwise."""
    is_pinned: bool = False
    """Whether it is fixed by hand or by `worker join --blocks`, whatever the planner would choose."""


class ModelledSpeed(Body, frozen=True, kw_only=True):
    """How fast a model would run, as far as measured times tell."""

    one_stream_tokens_per_s: float
    many_streams_tokens_per_s: float


class ModelPlan(Body, frozen=True, kw_only=True):
    """Who would hold what of a model; and its speed so, and as blocks are held now (None: not all of them are)."""

    model: ModelName
    spans: tuple[PlannedSpan, ...]
    planned: ModelledSpeed | None
    now: ModelledSpeed | None
    note: str = ""
    """Why blocks would be held in fewer bits, or what precision would make the model fit."""


class LeftOut(Body, frozen=True, kw_only=True):
    """A worker that single streams wouldn't go over, and why."""

    worker_id: WorkerId
    hostname: str
    reason: str


class PlanInfo(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/plan`: what would be placed if nothing were yet. `?placement=` as in `coord serve`.

    The same after `POST /admin/v1/plan`, which moves to it now, for a gain below the margin too; 409 says why not.
    """

    placement: str
    models: tuple[ModelPlan, ...]
    left_out: tuple[LeftOut, ...]
    outlook: str = ""
    """Whether what is served will be moved to that, and why or why not; empty for another placement."""
