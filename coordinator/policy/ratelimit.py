"""Token buckets as arithmetic: a value and a time in, the next value and the wait out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """At most `capacity` at once, and `refill_per_s` a second for ever."""

    capacity: float
    refill_per_s: float

    def __post_init__(self) -> None:
        """Settings, not input: both are above 0."""
        assert self.capacity > 0.0
        assert self.refill_per_s > 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What is left of a limit: `n_left` at `updated_s` (seconds, any origin)."""

    n_left: float
    updated_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The bucket afterwards; `wait_s` is 0 if it was granted, else how long until it would be."""

    bucket: Bucket
    wait_s: float

    @property
    def is_granted(self) -> bool:
        """Whether the caller may go on."""
        return self.wait_s == 0.0


def full_bucket(limit: RateLimit, now_s: float) -> Bucket:
    """The bucket of a caller that was never seen."""
    return Bucket(n_left=limit.capacity, updated_s=now_s)


def taken(bucket: Bucket, limit: RateLimit, now_s: float, n: float = 1.0) -> Taken:
    """Take `n` (0 < n <= capacity) out of the bucket, if they are there; a refusal takes nothing.

    A clock that went back refills nothing.
    """
    assert 0.0 < n <= limit.capacity
    elapsed_s = max(0.0, now_s - bucket.updated_s)
    n_left = min(limit.capacity, bucket.n_left + elapsed_s * limit.refill_per_s)
    if n_left >= n:
        return Taken(bucket=Bucket(n_left=n_left - n, updated_s=now_s), wait_s=0.0)
    return Taken(bucket=Bucket(n_left=n_left, updated_s=now_s), wait_s=(n - n_left) / limit.refill_per_s)
