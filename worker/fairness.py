"""Whose steps go into the next batch, so that no tenant takes more of the device than its share. Pure.

A tenant is an API key, as far as a worker can tell keys apart. Who has had less of the device than its share is
behind. Everybody's steps go together, unless that would leave somebody who is behind further behind: then only
those who are, or only the one who is furthest. What a tenant has had is what its steps would have taken alone: what
is saved by running them with those of others is nobody's debt, so tenants that slow each other by less than their
shares aren't kept apart.

The lag is that of Stoica and others (earliest eligible virtual deadline first, 1996); to count what tokens cost is
the virtual token counter of Sheng and others (Fairness in Serving Large Language Models, OSDI 2024).

The bound: of two tenants of the same class that have steps ready, one whose steps would take S seconds alone has
them within 2 S and one batch, however many steps the other has. Among n tenants with weights W together, one of
weight w has them within W/w times S and H batches, where H = 1 + 1/2 + ... + 1/(n - 1): whose lag is largest is
served first, as in the cup game (Bender and others, 2019). So nobody starves in the lowest class either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from protocol.key_limits import PRIORITY_WEIGHTS, Priority
from worker.batch_costs import BatchCosts

_NO_LAG_S = 1e-9
"""Equal shares of a batch don't add up to it exactly."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose sessions have one share together. What can't be told apart is one tenant."""

    label: str = ""
    priority: Priority = "normal"

    @property
    def weight(self) -> float:
        """How much it gets, compared with others."""
        return PRIORITY_WEIGHTS[self.priority]


UNLABELLED = Tenant()
"""Of sessions whose coordinator doesn't say whose they are."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How far tenants are behind their shares, in seconds of the device; negative: they have had more."""

    lag_s: Mapping[Tenant, float] = field(default_factory=dict)

    def is_behind(self, tenant: Tenant) -> bool:
        """Whether it has had less than its share."""
        return self.lag_s.get(tenant, 0.0) > _NO_LAG_S

    def fewer(self, ready: Collection[Tenant]) -> Iterator[frozenset[Tenant]]:
        """Whose steps to run if not everybody's: of all who are behind, else of who is furthest behind."""
        behind = {tenant: self.lag_s[tenant] for tenant in ready if self.is_behind(tenant)}
        if behind:
            yield frozenset(behind)
            yield frozenset([max(behind, key=behind.__getitem__)])

    def lets_pass(self, n_tokens: Mapping[Tenant, int], ready: Collection[Tenant], costs: BatchCosts) -> bool:
        """Whether a batch of so many tokens brings all who are behind nearer to their shares.

        `ready` are all who have steps ready.
        """
        after = self._lags_after(n_tokens, ready, costs)
        return all(after[tenant] < self.lag_s[tenant] for tenant in ready if self.is_behind(tenant))

    def after(self, n_tokens: Mapping[Tenant, int], ready: Collection[Tenant], costs: BatchCosts) -> Shares:
        """The shares after a batch of so many tokens; `ready` are all who had steps ready for it.

        What somebody has had beyond its share counts for no more than one batch once nobody is behind: it took
        that from nobody.
        """
        lag_s = {**self.lag_s, **self._lags_after(n_tokens, ready, costs)}
        if all(lag_s[tenant] <= _NO_LAG_S for tenant in ready):
            batch_s = costs.seconds(sum(n_tokens.values()))
            lag_s = {tenant: max(lag, -batch_s) for tenant, lag in lag_s.items()}
        return Shares(lag_s)

    def among(self, tenants: Collection[Tenant]) -> Shares:
        """The shares without those who are gone."""
        return Shares({tenant: lag for tenant, lag in self.lag_s.items() if tenant in tenants})

    def _lags_after(
        self, n_tokens: Mapping[Tenant, int], ready: Collection[Tenant], costs: BatchCosts
    ) -> dict[Tenant, float]:
        of_weight_s = costs.seconds(sum(n_tokens.values())) / sum(tenant.weight for tenant in ready)
        return {
            tenant: self.lag_s.get(tenant, 0.0)
            + of_weight_s * tenant.weight
            - (costs.seconds(n_tokens[tenant]) if tenant in n_tokens else 0.0)
            for tenant in ready
        }
