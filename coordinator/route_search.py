"""Looking for routes: over which workers, which are left out, and what is said where there is none.

Knows who can't be on a route by version and by trust. Many may wait for the same, so what is missing is remembered.
"""

from __future__ import annotations

from coordinator.cluster import Cluster
from coordinator.policy.missing import MissingBlocks, missing_blocks
from coordinator.policy.ready_segments import ReadySegments
from coordinator.policy.routing import Avoided, Held, Route, between_ends, cheapest_route
from coordinator.policy.state import ModelRecord
from coordinator.policy.trust_words import below, too_little_trust
from coordinator.ticket_desk import TicketDesk
from protocol.errors import ModelLoadingError, ModelUnavailableError
from protocol.ids import ModelName, WorkerId
from protocol.rest import RouteRequest

RETRY_UNAVAILABLE_S = 2.0
"""A worker that loads becomes ready within seconds."""
MAX_MISSING = 256
"""Answers to who asked for a route in vain that are remembered."""


class RouteSearch:
    """Finds routes over the cluster as it is."""

    def __init__(self, cluster: Cluster, tickets: TicketDesk) -> None:
        self._cluster = cluster
        self._tickets = tickets
        self._segments = ReadySegments()
        self._missing: dict[tuple[ModelName, frozenset[WorkerId], bool, int | None], MissingBlocks] = {}
        self._missing_until = cluster.routes_changed

    def found(
        self,
        model: ModelRecord,
        exclude: frozenset[WorkerId],
        avoided: Avoided,
        held: Held,
        wanted: RouteRequest,
    ) -> Route:
        """The cheapest route. What was found missing is remembered until something changes.

        Raises:
            ModelUnavailableError: no route (ModelLoadingError: but there will be one).
        """
        if self._missing_until is not self._cluster.routes_changed or len(self._missing) >= MAX_MISSING:
            self._missing.clear()
            self._missing_until = self._cluster.routes_changed
        # Other names change nothing, and a request may hold many long ones.
        untrusted = below(self._cluster.state, wanted.min_trust)
        old = self._tickets.without_private() if wanted.private_blocks is not None else frozenset()
        exclude = untrusted.union(old, exclude.intersection(self._cluster.state.workers))
        asked = (model.name, exclude, wanted.pinned_ends, wanted.private_blocks)
        found: Route | MissingBlocks | None = self._missing.get(asked)
        if found is None:
            found = cheapest_route(
                self._cluster.state,
                model.name,
                exclude,
                avoided,
                held,
                known=self._segments,
                pinned_ends=wanted.pinned_ends,
                blocks=between_ends(model, wanted.private_blocks),
            )
        if isinstance(found, Route):
            return found
        self._missing[asked] = found
        why = too_little_trust(self._cluster.state, model.name, wanted.min_trust, untrusted)
        if old:
            too_old = f"{len(old)} workers are left out as their version has no private sessions; upgrade them"
            why = "; ".join(filter(None, (why, too_old)))
        raise self._refusal(found, exclude, why)

    def _refusal(self, missing: MissingBlocks, exclude: frozenset[WorkerId], why: str) -> ModelUnavailableError:
        state = self._cluster.state
        model = state.models.get(missing.model)
        is_for_exclusion = bool(exclude) and model is not None and missing_blocks(state, model) is None
        is_on_its_way = missing.is_on_its_way and not is_for_exclusion
        kind = ModelLoadingError if is_on_its_way else ModelUnavailableError
        message = "; ".join(filter(None, (missing.message, why)))
        return kind(message, retry_after_s=RETRY_UNAVAILABLE_S)
