"""In which order the stages of a pipeline come, so that a token's way round the ring is short.

A ring has no beginning: who is first is decided elsewhere. Exact for up to `EXACT_STAGES` by dynamic programming
over sets (Held and Karp); beyond, each next stage goes where it lengthens the ring least, and pieces of the ring
are turned round while that helps (2-opt).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

EXACT_STAGES = 12
"""Held and Karp take 2^n * n^2 steps: for 12 a fifth of a second, for 13 half of one."""

MAX_PASSES = 20
"""Times that all pieces of a ring are looked at; after a few nothing is found any more."""

_MIN_GAIN_S = 1e-12

Links = Sequence[Sequence[float]]
"""One way in seconds, by number of the worker it starts from and of the worker it ends at."""


def ring_s(links: Links, ring: Sequence[int]) -> float:
    """One way round, the leg from the last to the first included; a stage alone has none."""
    if len(ring) < 2:
        return 0.0
    return sum(links[a][b] for a, b in pairwise(ring)) + links[ring[-1]][ring[0]]


def shortest_ring(links: Links, members: Sequence[int]) -> tuple[int, ...]:
    """The members in the order of the shortest ring that was found, beginning with the first of them."""
    if len(members) < 3:
        return tuple(members)
    if len(members) <= EXACT_STAGES:
        return _held_karp(links, members)
    return _two_opt(links, _by_insertion(links, members))


def _held_karp(links: Links, members: Sequence[int]) -> tuple[int, ...]:
    first, *rest = members
    n = len(rest)
    best = [[math.inf] * n for _ in range(1 << n)]
    before = [[0] * n for _ in range(1 << n)]
    for i, member in enumerate(rest):
        best[1 << i][i] = links[first][member]
    for visited in range(1, 1 << n):
        inside = [i for i in range(n) if visited >> i & 1]
        for k in range(n):
            if visited >> k & 1:
                continue
            to, target = visited | 1 << k, rest[k]
            for i in inside:
                length = best[visited][i] + links[rest[i]][target]
                if length < best[to][k]:
                    best[to][k], before[to][k] = length, i
    visited = (1 << n) - 1
    last = min(range(n), key=lambda i: (best[visited][i] + links[rest[i]][first], i))
    ring = []
    while visited:
        ring.append(rest[last])
        visited, last = visited & ~(1 << last), before[visited][last]
    return (first, *reversed(ring))


def _by_insertion(links: Links, members: Sequence[int]) -> list[int]:
    ring = list(members[:2])
    for member in members[2:]:
        longer = [
            links[a][member] + links[member][b] - links[a][b]
            for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)
        ]
        ring.insert(longer.index(min(longer)) + 1, member)
    return ring


def _two_opt(links: Links, ring: list[int]) -> tuple[int, ...]:
    length = ring_s(links, ring)
    for _ in range(MAX_PASSES):
        before = length
        for i in range(len(ring) - 2):
            for k in _worth_turning(links, ring, i):
                turned = ring[: i + 1] + ring[k:i:-1] + ring[k + 1 :]
                turned_length = ring_s(links, turned)
                if turned_length < length - _MIN_GAIN_S:
                    ring, length = turned, turned_length
                    break
        if length == before:
            break
    return tuple(ring)


def _worth_turning(links: Links, ring: Sequence[int], i: int) -> list[int]:
    """Where pieces that begin after place `i` may end, if links take about as long in both directions."""
    a, b = ring[i], ring[i + 1]
    from_a, from_b, now = links[a], links[b], links[a][b] - _MIN_GAIN_S
    after = [*ring[i + 3 :], ring[0]]
    return [
        k
        for k, (c, d) in enumerate(zip(ring[i + 2 :], after, strict=True), i + 2)
        if from_a[c] + from_b[d] < now + links[c][d]
    ]
