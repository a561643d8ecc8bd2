"""How long a batch may take where sessions of several tenants run: as long as the least of them can bear. Pure.

A stream waits on each hop for the batch that runs there, and for its own: long batches of others slow it, however
the device is shared out among those who wait (`worker.fairness`). So with tenants of weights W together, no batch
takes longer than 1.5 W/w times what a batch of one of weight w takes alone: of two tenants of a class, three times
as long. Who has as many streams as the others is bounded by none of them. A piece of a prompt may take longer, if
it has no more than `LEAST_PIECE_TOKENS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.batch_costs import BatchCosts
from worker.batching import GroupSize
from worker.fairness import Tenant

_STRETCH = 1.5
"""Of W/w: with float32 on a CPU four rows take twice as long as one, sixteen three times, so 1 costs whoever has
many streams three quarters of their tokens, 1.5 a quarter (modelled: decision 15)."""
LEAST_PIECE_TOKENS = 32
"""Of a prompt, whoever waits: fewer tokens read the weights for too few."""
_GRAIN = 16
"""Pieces are multiples of it: kernels are made anew for each length."""


@dataclass(frozen=True, slots=True)
class BatchBounds:
    """The longest batch that each tenant can bear which decodes now; none where all sessions are of one."""

    longest_s: Mapping[Tenant, float] = field(default_factory=dict)
    costs: BatchCosts = field(default_factory=BatchCosts)

    def least(self) -> Tenant | None:
        """Who can bear least."""
        return min(self.longest_s, key=self.longest_s.__getitem__, default=None)

    def n_tokens(self, most: int, beside: Tenant | None = None) -> int:
        """How many go into a batch, of `most`: as are run in the time, and one in any case.

        `beside`: whose tokens they are, if nobody else's; what that tenant itself bears doesn't count then.
        """
        longest_s = min((seconds for tenant, seconds in self.longest_s.items() if tenant != beside), default=None)
        return most if longest_s is None else self.costs.n_within(longest_s, most)

    def group(self, size: GroupSize, *, has_prompts: bool) -> GroupSize:
        """A group of so many at most; half of what the bound gives where pieces of prompts go along."""
        n_tokens = self.n_tokens(size.most)
        most = max(1, n_tokens // 2) if has_prompts and n_tokens < size.most else n_tokens
        return GroupSize(least=min(size.least, most), most=most)

    def piece_tokens(self, tenant: Tenant, most: int) -> int:
        """The longest piece, of `most` tokens, in which a tenant's prompt is to be run."""
        n_tokens = self.n_tokens(most, beside=tenant)
        return n_tokens if n_tokens == most else max(LEAST_PIECE_TOKENS, n_tokens // _GRAIN * _GRAIN)


def batch_bounds(n_rows: Mapping[Tenant, int], weights: float, costs: BatchCosts) -> BatchBounds:
    """The bounds by how many rows a batch of each tenant's own has; `weights`: of all tenants together."""
    if not costs.points:
        return BatchBounds()
    longest_s = {
        tenant: _STRETCH * weights / tenant.weight * costs.seconds_at_most(n) for tenant, n in n_rows.items()
    }
    return BatchBounds(longest_s, costs)
