"""Token buckets: never more than the limit, and the wait that is said is the wait that is needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.ratelimit import Bucket, RateLimit, full_bucket, taken

limits = st.builds(
    RateLimit,
    capacity=st.floats(min_value=1.0, max_value=1000.0),
    refill_per_s=st.floats(min_value=0.01, max_value=1000.0),
)


def test_a_full_bucket_grants_its_capacity_and_then_refuses() -> None:
    limit = RateLimit(capacity=3.0, refill_per_s=1.0)
    bucket = full_bucket(limit, 0.0)
    for _ in range(3):
        result = taken(bucket, limit, 0.0)
        assert result.is_granted
        bucket = result.bucket
    refused = taken(bucket, limit, 0.0)
    assert not refused.is_granted
    assert refused.wait_s == 1.0
    assert refused.bucket.n_left == 0.0


def test_a_clock_that_goes_back_refills_nothing_and_does_not_lock_out() -> None:
    limit = RateLimit(capacity=1.0, refill_per_s=1.0)
    emptied = taken(full_bucket(limit, 1000.0), limit, 1000.0).bucket
    refused = taken(emptied, limit, 0.0)
    assert refused.wait_s == 1.0
    assert taken(refused.bucket, limit, 1.0).is_granted


@given(limits, st.lists(st.floats(min_value=0.0, max_value=10.0), max_size=50))
def test_no_more_is_granted_than_capacity_and_refill(limit: RateLimit, pauses_s: list[float]) -> None:
    now_s, n_granted = 0.0, 0
    bucket = full_bucket(limit, now_s)
    for pause_s in pauses_s:
        now_s += pause_s
        result = taken(bucket, limit, now_s)
        n_granted += result.is_granted
        bucket = result.bucket
        assert 0.0 <= bucket.n_left <= limit.capacity
    assert n_granted <= limit.capacity + now_s * limit.refill_per_s + 1e-6


@given(limits, st.floats(min_value=0.0, max_value=1.0), st.floats(min_value=0.0, max_value=1e9))
def test_the_wait_is_enough_and_not_too_much(limit: RateLimit, share: float, now_s: float) -> None:
    bucket = Bucket(n_left=share * 0.999, updated_s=now_s)
    result = taken(bucket, limit, now_s)
    assert result.wait_s > 0.0
    assert taken(result.bucket, limit, now_s + result.wait_s * 1.01 + 1e-3).is_granted
    if result.wait_s > 0.1:
        assert not taken(result.bucket, limit, now_s + result.wait_s * 0.9).is_granted
