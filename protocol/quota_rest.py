"""Bodies of what operators ask about quotas: limits of keys and what is used of them, usage, who contributed what.

JSON on the wire. All of it since 1.2.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocol.admin_rest import PageQuery
from protocol.ids import KeyId, WorkerId
from protocol.key_limits import KeyLimits, LimitName
from protocol.key_rest import check_owner
from protocol.rest import Body

DEFAULT_DAYS = 7
MAX_DAYS = 366
"""Of usage and contributions that one request can ask for."""


class RateUse(Body, frozen=True, kw_only=True):
    """How much of a rate is used now."""

    limit_name: LimitName
    limit: int
    used: int
    """What a request finds taken: used or promised of late, less what has come back with time. Rounded up."""


class QuotaInfo(Body, frozen=True, kw_only=True):
    """One key's limits, and how much of them is used now."""

    key_id: KeyId
    name: str
    limits: KeyLimits
    rates: tuple[RateUse, ...]
    n_running: int
    """Generations that run now, as far as they are counted: those of keys with limits."""
    revoked_at: str | None = None
    """When the key was revoked, ISO 8601, UTC: nobody uses any of it then."""


class QuotaList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/quotas`: the keys that have limits, oldest first."""

    quotas: tuple[QuotaInfo, ...]
    next_cursor: str | None = None


class ContributionQuery(PageQuery, frozen=True, kw_only=True):
    """`GET /admin/v1/contributions`."""

    days: Annotated[int, msgspec.Meta(ge=1, le=MAX_DAYS)] = DEFAULT_DAYS
    """How many, today (UTC) being the last."""


class UsageQuery(ContributionQuery, frozen=True, kw_only=True):
    """`GET /admin/v1/usage`."""

    key: KeyId | None = None
    """Only this one's."""


class UsageDay(Body, frozen=True, kw_only=True):
    """What one key used on one day (UTC), as the tails of its routes reported."""

    key_id: KeyId
    name: str
    day: str
    n_generations: int
    n_prompt_tokens: int
    n_completion_tokens: int


class UsageList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/usage`, newest day first."""

    usage: tuple[UsageDay, ...]
    next_cursor: str | None = None


class Contribution(Body, frozen=True, kw_only=True):
    """What one worker gave on one day (UTC), for the owner that it had then."""

    worker_id: WorkerId
    owner: str
    day: str
    n_token_blocks: int
    """Tokens, of prompts and answers, times the blocks that the worker ran them through."""


class ContributionList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/contributions`, newest day first."""

    contributions: tuple[Contribution, ...]
    next_cursor: str | None = None
    raised_owners: tuple[str, ...] = ()
    """Whose keys are served as one class higher now, for what their workers gave lately."""


class OwnerRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`PATCH` of `workers/{worker_id}/owner` and `keys/{key_id}/owner`: whose it is; empty: nobody's."""

    owner: str

    def __post_init__(self) -> None:
        """Refuse what is no label. ValueError: msgspec reports it as invalid."""
        check_owner(self.owner)


class WorkerOwner(Body, frozen=True, kw_only=True):
    """Whose machine a worker is."""

    worker_id: WorkerId
    owner: str
