"""Looking for routes: over which workers, which are left out, and what is said where there is none.

Knows who can't be on a route by version and by trust. Many may wait for the same, so what is missing is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from coordinator.cluster import Cluster
from coordinator.policy.cache_room import others_come, too_long_words, too_small, without_room
from coordinator.policy.client_ways import ClientWays, client_ways
from coordinator.policy.missing import MissingBlocks, missing_blocks
from coordinator.policy.ready_segments import ReadySegments
from coordinator.policy.routing import Avoided, Held, Route, cheapest_route, wanted_blocks
from coordinator.policy.state import ModelRecord
from coordinator.policy.trust_words import below, too_little_trust
from coordinator.ticket_desk import TicketDesk
from protocol.errors import ContextExceededError, ModelLoadingError, ModelUnavailableError
from protocol.ids import BlockRange, ModelName, WorkerId
from protocol.rest import RouteRequest

RETRY_UNAVAILABLE_S = 2.0
"""A worker that loads becomes ready within seconds."""
MAX_MISSING = 256
"""Answers to who asked for a route in vain that are remembered."""
MAX_FOUND = 256
"""Routes that are remembered, of the cluster as it is."""
MAX_CRAMPED = 4
"""Routes over parts of workers whose caches are small that are looked at for one with room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What a route is wanted for, whoever is left out."""

    model: ModelName
    avoided: Avoided
    held: Held
    pinned_ends: bool
    blocks: BlockRange | None
    """Those that it has to cover; None: all."""
    ways: ClientWays | None

    @property
    def key(self) -> Hashable:
        """Equal for questions that have the same answer."""
        held = frozenset(self.held.items())
        return self.model, self.avoided, held, self.pinned_ends, self.blocks, self.ways


class RouteSearch:
    """Finds routes over the cluster as it is."""

    def __init__(self, cluster: Cluster, tickets: TicketDesk) -> None:
        self._cluster = cluster
        self._tickets = tickets
        self._segments = ReadySegments()
        self._missing: dict[tuple[ModelName, frozenset[WorkerId], bool, BlockRange | None], MissingBlocks] = {}
        self._missing_until = cluster.routes_changed
        self._found: dict[Hashable, Route | MissingBlocks] = {}
        self._found_in = cluster.state

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
            InvalidRequestError: the model has no such blocks, or is an encoder that tokens are wanted of.
            ContextExceededError: the session is too long for workers without which there is no route.
            ModelUnavailableError: no route (ModelLoadingError: but there will be one, which may have room).
        """
        if self._missing_until is not self._cluster.routes_changed or len(self._missing) >= MAX_MISSING:
            self._missing.clear()
            self._missing_until = self._cluster.routes_changed
        # Other names change nothing, and a request may hold many long ones.
        untrusted = below(self._cluster.state, wanted.min_trust)
        feature, old = self._too_old(wanted)
        never = untrusted | old
        exclude = never.union(exclude.intersection(self._cluster.state.workers))
        question = _Question(
            model=model.name,
            avoided=avoided,
            held=held,
            pinned_ends=wanted.pinned_ends,
            blocks=wanted_blocks(model, wanted.private_blocks, wanted.states_after),
            ways=self._ways(wanted),
        )

        def look(without: frozenset[WorkerId]) -> Route | MissingBlocks:
            return self._looked_for(question, without)

        found = self._with_room(model.name, wanted, exclude, never, look)
        if isinstance(found, Route):
            return found
        why = too_little_trust(self._cluster.state, model.name, wanted.min_trust, untrusted)
        if old:
            too_old = f"{len(old)} workers are left out as their version has no {feature}; upgrade them"
            why = "; ".join(filter(None, (why, too_old)))
        raise self._refusal(found, exclude, never, why)

    def _with_room(
        self,
        name: ModelName,
        wanted: RouteRequest,
        exclude: frozenset[WorkerId],
        never: frozenset[WorkerId],
        look: Callable[[frozenset[WorkerId]], Route | MissingBlocks],
    ) -> Route | MissingBlocks:
        """What is found without workers whose caches the session is too long for; else with some of their blocks.

        `never`: those of `exclude` whom the request can never have.
        """
        state, n_positions = self._cluster.state, wanted.n_prompt_tokens + wanted.max_tokens
        small = too_small(state, name, n_positions)
        found = look(exclude | small)
        is_excluded = small <= exclude
        if isinstance(found, Route) or small <= never:
            return found
        if is_excluded and isinstance(look(never | small), Route):
            return found
        # whom the request goes round it may come back to; not to those without room
        way: Route | MissingBlocks = found
        cramped = left_out = never if is_excluded else exclude
        for _ in range(MAX_CRAMPED):
            way = look(cramped)
            if isinstance(way, MissingBlocks):
                break
            too_narrow = without_room(state, way, n_positions)
            if not too_narrow:
                return found if is_excluded else way
            cramped |= too_narrow
        if cramped == left_out:
            return found if is_excluded else way
        raise self._too_long(name, wanted, small, never, look)

    def _too_long(
        self,
        name: ModelName,
        wanted: RouteRequest,
        small: frozenset[WorkerId],
        never: frozenset[WorkerId],
        look: Callable[[frozenset[WorkerId]], Route | MissingBlocks],
    ) -> ContextExceededError | ModelUnavailableError:
        """What to say where all that is left are workers that are too `small`: whether waiting helps."""
        state = self._cluster.state
        words = too_long_words(state, name, wanted.n_prompt_tokens + wanted.max_tokens, small)
        if isinstance(look(never | small), Route):
            return ModelUnavailableError(words, retry_after_s=RETRY_UNAVAILABLE_S)
        # what was begun elsewhere may go on there, once those workers are back
        if others_come(state, name, never | small, awaits_lost=wanted.continues is not None):
            words = f"{words}; or wait: others that hold it aren't ready yet, and may have room"
            return ModelLoadingError(words, retry_after_s=RETRY_UNAVAILABLE_S)
        return ContextExceededError(words)

    def _looked_for(self, question: _Question, exclude: frozenset[WorkerId]) -> Route | MissingBlocks:
        """As it is remembered, or looked for."""
        asked = (question.model, exclude, question.pinned_ends, question.blocks)
        found: Route | MissingBlocks | None = self._missing.get(asked)
        if found is None:
            found = self._cheapest(question, exclude)
        if isinstance(found, MissingBlocks):
            self._missing[asked] = found
        return found

    def _cheapest(self, question: _Question, exclude: frozenset[WorkerId]) -> Route | MissingBlocks:
        """Looked for once in a state: it never changes, and many ask the same of it before the next one."""
        state = self._cluster.state
        if self._found_in is not state or len(self._found) >= MAX_FOUND:
            self._found.clear()
            self._found_in = state
        asked = (exclude, question.key)
        found = self._found.get(asked)
        if found is None:
            found = self._found[asked] = cheapest_route(
                state,
                question.model,
                exclude,
                question.avoided,
                question.held,
                known=self._segments,
                pinned_ends=question.pinned_ends,
                blocks=question.blocks,
                ways=question.ways,
            )
        return found

    def _ways(self, wanted: RouteRequest) -> ClientWays | None:
        if not wanted.client_legs:
            return None
        return client_ways(
            wanted.client_legs,
            self._cluster.state.workers,
            max_tokens=wanted.max_tokens,
            is_private=wanted.private_blocks is not None,
        )

    def _too_old(self, wanted: RouteRequest) -> tuple[str, frozenset[WorkerId]]:
        """What is asked that some versions haven't got, and the workers of those."""
        if wanted.private_blocks is not None:  # whose client samples itself
            return "private sessions", self._tickets.without_private()
        if wanted.states_after is not None:
            return "sessions that give hidden states", self._tickets.without_private()
        if wanted.newest_sampling:
            feature = "constraints, log probabilities, biases or penalties of what was answered"
            return feature, self._tickets.without_newest_sampling()
        return "", frozenset()

    def _refusal(
        self, missing: MissingBlocks, exclude: frozenset[WorkerId], never: frozenset[WorkerId], why: str
    ) -> ModelUnavailableError:
        """`why` the request can't have `never` comes first; alone if there would be a route over these."""
        state = self._cluster.state
        model = state.models.get(missing.model)
        is_for_exclusion = bool(exclude) and model is not None and missing_blocks(state, model) is None
        is_on_its_way = missing.is_on_its_way and not is_for_exclusion
        kind = ModelLoadingError if is_on_its_way else ModelUnavailableError
        is_all = bool(why) and is_for_exclusion and exclude == never
        message = why if is_all else "; ".join(filter(None, (why, missing.message)))
        return kind(message, retry_after_s=RETRY_UNAVAILABLE_S)
