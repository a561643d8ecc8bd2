from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ids import SessionId
from worker.batching import GroupSize, ReadyStep, group_size, next_batch
from worker.fairness import Shares, Tenant
from worker.turns import Turns

A, B = Tenant("a"), Tenant("b")
MAX_BATCH_TOKENS = 512
ALL = GroupSize(least=99, most=99)


def cost_s(n_tokens: int) -> float:
    """A device on which eight tokens cost twice as much as one (a CPU with float32)."""
    return 1 + n_tokens / 7


@dataclass
class Device:
    """A device whose batches take what `cost_s` says, and sessions that always have their next step ready."""

    steps: Mapping[Tenant, Sequence[int]]
    """Of each tenant the tokens of a step, by session."""
    turns: Turns = field(default_factory=Turns)
    ready: list[ReadyStep] = field(default_factory=list)
    tenants: dict[SessionId, Tenant] = field(default_factory=dict)
    now_s: float = 0.0
    longest_s: float = 0.0
    alone_s: Counter[Tenant] = field(default_factory=Counter)
    """What each tenant's steps would have taken alone."""
    n_steps: Counter[SessionId] = field(default_factory=Counter)
    last_s: dict[SessionId, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tenant, sizes in self.steps.items():
            for i, n_tokens in enumerate(sizes):
                session_id = SessionId(f"{tenant.label}{tenant.priority}{i}")
                self.tenants[session_id] = tenant
                self.turns.begun(session_id, tenant)
                self.ready.append(ReadyStep(session_id, n_tokens))

    def begin_decoding(self, n_hops: int) -> None:
        for step in self.ready:
            if step.is_decode:
                self.turns.decodes(step.session_id, n_hops)

    def run_batch(self) -> None:
        size = group_size([1] * sum(step.is_decode for step in self.ready))
        if self.turns.n_decoding:
            size = self.turns.group_size(self.ready)
        turn = self.turns.next(self.ready, MAX_BATCH_TOKENS, size)
        chosen = turn.chosen
        assert chosen, "a step is ready, and none runs"
        n_batch_tokens = sum(self.ready[index].n_tokens for index in chosen)
        seconds = cost_s(n_batch_tokens)
        self.turns.ran(turn, n_batch_tokens, seconds)
        self.now_s += seconds
        self.longest_s = max(self.longest_s, seconds)
        done = [self.ready[index] for index in chosen]
        of_tenant: Counter[Tenant] = Counter()
        for step in done:
            of_tenant[self.tenants[step.session_id]] += step.n_tokens
            self.n_steps[step.session_id] += 1
            self.last_s[step.session_id] = self.now_s
        for tenant, n_tokens in of_tenant.items():
            self.alone_s[tenant] += cost_s(n_tokens)
        self.ready = [step for index, step in enumerate(self.ready) if index not in set(chosen)] + done


@pytest.mark.parametrize("size", [1, 128, 512])
def test_fifty_streams_of_one_key_slow_anothers_single_stream_by_two_and_one_batch(size: int) -> None:
    device = Device({A: [size] * 50, B: [1]})
    for _ in range(400):
        device.run_batch()
    stream = SessionId("bnormal0")
    alone_s = device.n_steps[stream] * cost_s(1)
    assert device.last_s[stream] <= 2.1 * alone_s + 2 * device.longest_s  # a tenth: costs are learned first
    assert device.alone_s[A] > 0.4 * device.now_s, "who has more streams has its half too"


LEARNED = 100
"""Batches after which it is known what they take."""


def longest_of(device: Device, n_batches: int = 200) -> float:
    """Of so many batches, once it is known what they take."""
    for _ in range(LEARNED):
        device.run_batch()
    device.longest_s = 0.0
    for _ in range(n_batches):
        device.run_batch()
    return device.longest_s


@pytest.mark.parametrize("n_hops", [1, 2])
def test_no_batch_takes_longer_than_three_steps_of_the_key_with_one_stream(n_hops: int) -> None:
    """For it waits for a batch that runs, and goes along in one, on each hop."""
    device = Device({A: [1] * 50, B: [1]})
    device.begin_decoding(n_hops)
    assert longest_of(device) <= 3 * cost_s(1) * (1 + 1e-6)
    stream = SessionId("bnormal0")
    before, began_s = device.n_steps[stream], device.now_s
    for _ in range(100):
        device.run_batch()
    assert device.now_s - began_s <= 2.1 * (device.n_steps[stream] - before) * cost_s(1)
    assert device.n_steps.total() - device.n_steps[stream] > 6 * device.n_steps[stream], "they fill what they may"


def test_a_key_whose_streams_are_alone_or_as_many_as_anothers_has_full_batches() -> None:
    for steps, n_rows in (({A: [1] * 50}, 50), ({A: [1] * 20, B: [1] * 20}, 40)):
        device = Device(steps)
        device.begin_decoding(1)
        assert longest_of(device) == cost_s(n_rows)


def test_many_keys_with_a_stream_each_have_full_batches() -> None:
    device = Device({Tenant(f"t{i}"): [1] for i in range(30)})
    device.begin_decoding(1)
    assert longest_of(device) == cost_s(30)


def test_who_has_fewer_streams_bears_more_of_a_class_above_and_less_of_one_below() -> None:
    for of_many, of_one, share in ((A, Tenant("h", "high"), 1.875), (Tenant("h", "high"), B, 7.5)):
        device = Device({of_many: [1] * 50, of_one: [1]})
        device.begin_decoding(1)
        assert longest_of(device) <= share * cost_s(1) * (1 + 1e-6)


def test_a_stream_that_waits_for_something_else_bounds_no_batch_for_long() -> None:
    device = Device({A: [1] * 50, B: [1]})
    device.begin_decoding(1)
    longest_of(device)
    device.ready = [step for step in device.ready if device.tenants[step.session_id] != B]
    assert longest_of(device) == cost_s(50)


def test_what_a_stream_takes_alone_is_measured_again_and_again() -> None:
    device = Device({A: [1] * 50, B: [1]})
    device.begin_decoding(1)
    longest_of(device)
    for _ in range(40):  # a time when all is slow
        device.turns.costs = device.turns.costs.with_batch(1, 4 * cost_s(1))
    device.run_batch()
    assert device.turns.bounds.longest_s[B] > 8 * cost_s(1)
    longest_of(device)
    assert longest_of(device) <= 3.3 * cost_s(1)


def test_a_prompt_beside_anothers_stream_goes_along_in_short_batches() -> None:
    device = Device({A: [32, 32, *[1] * 20], B: [1]})
    device.begin_decoding(1)
    assert longest_of(device) <= cost_s(32) + cost_s(1) * 1.5


def test_a_few_streams_that_hardly_slow_each_other_stay_together() -> None:
    """Of two keys, with one stream and with two, each batch has all three once it is known what they cost."""
    device = Device({A: [1, 1], B: [1]})
    for _ in range(20):
        device.run_batch()
    before = device.n_steps.copy()
    for _ in range(50):
        device.run_batch()
    assert set((device.n_steps - before).values()) == {50}


def test_a_class_gets_as_much_more_as_its_weight_says() -> None:
    high, low = Tenant("h", "high"), Tenant("l", "low")
    device = Device({high: [512] * 3, A: [512] * 3, low: [512] * 3})
    for _ in range(210):
        device.run_batch()
    shares = [device.alone_s[tenant] / device.now_s for tenant in (high, A, low)]
    assert shares == pytest.approx([4 / 5.25, 1 / 5.25, 0.25 / 5.25], abs=0.03)


SIZES = st.lists(st.sampled_from([1, 1, 1, 16, 128, 512]), min_size=1, max_size=4)
TENANTS = st.builds(Tenant, st.sampled_from("abcd"), st.sampled_from(["high", "normal", "low"]))


@settings(max_examples=25)
@given(st.dictionaries(TENANTS, SIZES, min_size=2, max_size=4))
def test_nobody_falls_behind_further_than_stated_and_no_step_starves(steps: dict[Tenant, list[int]]) -> None:
    device = Device(steps)
    for bits in range(10):  # the bound is one for costs that are known
        for n_tokens in (2**bits, 2 ** (bits + 1) - 1):
            device.turns.costs = device.turns.costs.with_batch(n_tokens, cost_s(n_tokens))
    all_weights = sum(tenant.weight for tenant in steps)
    n_batches = sum(1 / i for i in range(1, len(steps)))
    for _ in range(120):
        device.run_batch()
        for tenant in steps:
            most_s = (device.alone_s[tenant] + n_batches * device.longest_s) * all_weights / tenant.weight
            assert device.now_s <= most_s
            if len(steps) == 2:
                most_s = device.alone_s[tenant] * all_weights / tenant.weight + device.longest_s
                assert device.now_s <= most_s * (1 + 1e-6)
    for tenant, sizes in steps.items():
        for is_decode in (True, False):
            n_steps = [
                device.n_steps[SessionId(f"{tenant.label}{tenant.priority}{i}")]
                for i, n_tokens in enumerate(sizes)
                if (n_tokens == 1) == is_decode
            ]
            assert not n_steps or max(n_steps) - min(n_steps) <= 1, "its sessions take turns"


@given(st.lists(st.sampled_from([1, 16, 128, 512]), min_size=1, max_size=8), st.integers(1, 4))
def test_one_tenants_batches_are_what_they_would_be_without_turns(sizes: list[int], most: int) -> None:
    size = GroupSize(least=most - 1, most=most)
    device = Device({A: sizes})
    for _ in range(10):
        assert device.turns.next(device.ready, 512, size).chosen == next_batch(device.ready, 512, size)
        device.run_batch()
    assert device.turns.shares == Shares()


def test_a_batch_with_a_prompt_waits_a_little_for_who_is_behind_and_between_two_tokens() -> None:
    device = Device({A: [128], B: [1]})
    for _ in range(9):
        device.run_batch()
        if device.turns.shares.is_behind(B):
            break
    prompt = [step for step in device.ready if not step.is_decode]
    assert 0 < device.turns.wait_s(prompt, 512, ALL) <= 0.1 * device.longest_s
    assert not device.turns.wait_s(device.ready, 512, ALL), "it is here"
    token = ReadyStep(SessionId("anormal0"), 1)
    assert not device.turns.wait_s([token], 512, ALL), "a token takes no longer than a wait"
    device.turns.ended(SessionId("bnormal0"))
    device.turns.ended(SessionId("bnormal0"))
    assert not device.turns.wait_s(prompt, 512, ALL)
    assert not device.turns.shares.is_behind(B), "it is gone, and so is what it was behind by"
