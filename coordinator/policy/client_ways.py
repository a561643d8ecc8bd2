"""How far a client is from the workers, and what that adds to a way through a model's blocks. Knows no cluster.

A session of tokens goes the client's ways once: the prompt to the first worker, the first token from the last one;
each later token is sent round and to the client at once. That is spread over the tokens asked for, and so are the
three round trips of connections that aren't there yet. In a private session both ways are in every token, since the
client is a stage of the ring.

Who isn't named counts as near: so it is tried once, and known from then on.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import sub
from typing import NamedTuple

from coordinator.policy.links import LINK_S
from coordinator.policy.segments import ANSWER_TOKENS, CLIENT, Leg, Segment
from coordinator.policy.shortest_path import cheapest_legs, cheapest_once
from protocol.client_legs import ClientLeg
from protocol.ids import BlockRange, WorkerId

NEAR_ROUND_TRIP_S = 0.004
"""Up to here it is the same site, and what was measured is as much the programs' own work as the network's."""
CLASSES_PER_DOUBLING = 2
"""Longer round trips are told apart in steps of the square root of two, so that noise is no difference."""
CONNECTING_WAYS = 6
"""TCP, TLS and WebSocket take a round trip each."""
MAX_STEPS = 4_000
"""Steps of the search that one client's ways are worth: some 20 ms, in which the coordinator does nothing else."""
MAX_TRIED = 8
"""Once so many workers that hold an end of the model are named, those that aren't count as far as the middle one of
them: a client needn't try a thousand to know that none is near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientWays:
    """What one client's distance has to do with its route; equal for equal requests."""

    known: tuple[tuple[WorkerId, float, bool], ...]
    """Worker, one way in seconds, whether there is a connection; by worker."""
    n_tokens: int | None
    """Over which the ways are spread; None: they are in every token."""

    def added_s(self, way_s: float, *, is_connected: bool) -> _Added:
        """What the ways to and from a worker cost that is so far."""
        if self.n_tokens is None:
            return _Added(way_s, way_s, 2 * way_s)
        connecting_s = 0.0 if is_connected else CONNECTING_WAYS * way_s
        # near workers are connected to sooner than the prompt has come to the end
        ending_s = way_s if way_s == LINK_S else way_s + connecting_s
        each_s = (way_s + connecting_s, ending_s, 2 * way_s + connecting_s)
        return _Added(*(seconds / self.n_tokens for seconds in each_s))


class _Added(NamedTuple):
    """Seconds a token."""

    at_head: float
    at_tail: float
    at_both: float


def client_ways(
    legs: Sequence[ClientLeg], workers: Container[WorkerId], *, max_tokens: int, is_private: bool
) -> ClientWays | None:
    """What is known of a client's ways to these workers, rounded; None if none of them is far."""
    known = tuple(
        sorted(
            (leg.worker_id, rounded_way_s(leg.round_trip_s), leg.is_connected and not is_private)
            for leg in legs
            if leg.worker_id in workers
        )
    )
    if all(way_s == LINK_S for _, way_s, _ in known):
        return None
    n_tokens = max(1, min(max_tokens, ANSWER_TOKENS))
    return ClientWays(known=known, n_tokens=None if is_private else 1 << (n_tokens - 1).bit_length())


def rounded_way_s(round_trip_s: float) -> float:
    """One way, of few that there are."""
    if round_trip_s <= NEAR_ROUND_TRIP_S:
        return LINK_S
    n_steps = round(CLASSES_PER_DOUBLING * math.log2(round_trip_s / NEAR_ROUND_TRIP_S))
    return NEAR_ROUND_TRIP_S / 2 * math.pow(2.0, n_steps / CLASSES_PER_DOUBLING)


def cheapest_for(
    segments: Sequence[Segment], n_blocks: int, ways: ClientWays | None
) -> tuple[Sequence[Segment], list[Leg]]:
    """The cheapest way round for a client, and the segments that its legs are of. All together cover the blocks.

    One for any client where none is found on which no worker comes twice.
    """
    if ways is not None:
        more = _more_than_unnamed(segments, n_blocks, ways)
        parted = [part for segment in segments for part in _parted(segment, n_blocks, more)]
        found = cheapest_once(*_with_client(parted, n_blocks, ways), MAX_STEPS)
        if found is not None:
            return parted, [leg for leg in found[1] if leg[0] < len(parted)]
    return segments, cheapest_legs(segments, n_blocks)[1]


def _with_client(segments: list[Segment], n_blocks: int, ways: ClientWays) -> tuple[list[Segment], int]:
    """The stages, and blocks, among which a way round is looked for: in a private session the client is one."""
    if ways.n_tokens is not None:
        return segments, n_blocks
    # its links are as anybody's here: what they take longer is paid at the ends
    blocks = BlockRange(n_blocks, n_blocks + 1)
    client = Segment(worker_id=CLIENT, blocks=blocks, seconds_per_block=0.0, link_s={})
    return [*segments, client], n_blocks + 1


def _more_than_unnamed(segments: Sequence[Segment], n_blocks: int, ways: ClientWays) -> dict[WorkerId, _Added]:
    """By worker: what its ways cost more than those of one that isn't named."""
    ends = {s.worker_id for s in segments if s.blocks.start == 0 or s.blocks.end == n_blocks}
    known = [(worker_id, way_s, is_connected) for worker_id, way_s, is_connected in ways.known if worker_id in ends]
    tried_s = sorted(way_s for _, way_s, _ in known)
    unnamed_s = tried_s[len(tried_s) // 2] if len(tried_s) >= MAX_TRIED else LINK_S
    unnamed = ways.added_s(unnamed_s, is_connected=False)
    usual_s = (unnamed.at_head, unnamed.at_tail, unnamed.at_head + unnamed.at_tail)
    more = {}
    for worker_id, way_s, is_connected in known:
        added_s = ways.added_s(way_s, is_connected=is_connected)
        if added_s != usual_s:
            more[worker_id] = _Added(*map(sub, added_s, usual_s))
    return more


def _parted(segment: Segment, n_blocks: int, more: Mapping[WorkerId, _Added]) -> Iterator[Segment]:
    """The segment as it may be used: as a beginning, as an end, as both, in between; each with its own cost."""
    start, end = segment.blocks.start, segment.blocks.end
    can_begin, can_end = start == 0, end == n_blocks
    if segment.worker_id not in more or not (can_begin or can_end):
        yield segment
        return
    added = more[segment.worker_id]
    added_s = {
        (False, False): 0.0,
        (True, False): added.at_head,
        (False, True): added.at_tail,
        (True, True): added.at_both,
    }
    if segment.is_whole:
        yield replace(segment, entry_s=segment.entry_s + added_s[can_begin, can_end])
        return
    for is_head, is_tail in product((False, True)[: 1 + can_begin], (False, True)[: 1 + can_end]):
        first = 1 if can_begin and not is_head else start
        last = n_blocks - 1 if can_end and not is_tail else end
        if first < last:
            yield replace(
                segment,
                blocks=BlockRange(first, last),
                entry_s=segment.entry_s + added_s[is_head, is_tail],
                is_head=is_head,
                is_tail=is_tail,
            )
