"""Bodies of the requests by which operators see and cancel generations, and of the answers. Never prompts."""

from __future__ import annotations

from typing import Literal

from protocol.admin_rest import PageQuery
from protocol.ids import BlockRange, KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.rest import Body

GenerationState = Literal["running", "finished"]


class GenerationQuery(PageQuery, frozen=True, kw_only=True):
    """`GET /admin/v1/generations`: which generations."""

    state: GenerationState | None = None
    key: KeyId | None = None
    """Only this key's."""
    model: ModelName | None = None


class GenerationHop(Body, frozen=True, kw_only=True):
    """One worker of a generation's route."""

    worker_id: WorkerId
    hostname: str
    blocks: BlockRange


class GenerationInfo(Body, frozen=True, kw_only=True):
    """One session of a generation: who asked, over which workers, how much. Times are ISO 8601, UTC."""

    session_id: SessionId
    key_id: KeyId
    key_name: str
    model: ModelName
    revision: Revision
    hops: tuple[GenerationHop, ...]
    """From head to tail."""
    n_prompt_tokens: int
    max_tokens: int
    state: GenerationState
    """running: given a route in the last hour, and no end of it reported."""
    started_at: str
    """When it was given its route."""
    n_completion_tokens: int | None = None
    """Known once it is over: tokens don't pass the coordinator."""
    outcome: str | None = None
    finished_at: str | None = None
    continues: SessionId | None = None
    """The failed session that it goes on from."""
    continued_by: SessionId | None = None


class GenerationPage(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/generations`, newest first."""

    generations: tuple[GenerationInfo, ...]
    next_cursor: str | None = None
