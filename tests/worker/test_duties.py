from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, FileHash, ModelName, Revision
from protocol.manifest import ModelFile
from worker.duties import (
    RETIRE_AFTER_S,
    Download,
    Drop,
    FetchManifest,
    Load,
    LoadedWeights,
    Refuse,
    Retire,
    Situation,
    Wait,
    WantedSpan,
    default_memory_bytes,
    kv_budget_bytes,
    next_duty,
    span_key,
)

MB = 10**6
N_BLOCKS = 6


def span(start: int, end: int) -> SpanAssignment:
    return SpanAssignment(model=ModelName("m"), revision=Revision("r" * 64), blocks=BlockRange(start, end))


def files_of(wanted: SpanAssignment) -> tuple[ModelFile, ...]:
    return tuple(
        ModelFile(name=f"block-{i}", sha256=FileHash(f"{i:064x}"), size_bytes=10, n_parameters=2)
        for i in range(wanted.blocks.start, wanted.blocks.end)
    )


@dataclass
class Fake:
    """A worker without a device: carries duties out in memory, one second each."""

    memory_bytes: int = 1000
    kv_memory_bytes: int | None = 0
    drain_s: float = 5.0
    now_s: float = 0.0
    wanted: list[SpanAssignment] = field(default_factory=list)
    manifests: bool = False
    held: set[FileHash] = field(default_factory=set)
    loaded: dict[object, LoadedWeights] = field(default_factory=dict)
    retry: dict[SpanAssignment, float] = field(default_factory=dict)
    log: list[object] = field(default_factory=list)

    def situation(self) -> Situation:
        return Situation(
            wanted=tuple(
                WantedSpan(
                    span=s,
                    files=files_of(s) if self.manifests else None,
                    weight_bytes=100 * len(s.blocks) if self.manifests else 0,
                )
                for s in self.wanted
            ),
            loaded=tuple(self.loaded.values()),
            held=frozenset(self.held),
            precision="float32",
            memory_bytes=self.memory_bytes,
            kv_memory_bytes=self.kv_memory_bytes,
            now_s=self.now_s,
            drain_s=self.drain_s,
            retry_at_s=dict(self.retry),
        )

    def assign(self, *spans: SpanAssignment) -> None:
        self.wanted = list(spans)
        self.retry.clear()
        keys = {span_key(s, "float32") for s in spans}
        for key, loaded in self.loaded.items():
            since = (
                None if key in keys else self.now_s if loaded.unwanted_since_s is None else loaded.unwanted_since_s
            )
            self.loaded[key] = LoadedWeights(
                key=loaded.key, weight_bytes=loaded.weight_bytes, unwanted_since_s=since
            )

    def step(self) -> object:
        duty = next_duty(self.situation())
        self.log.append(duty)
        match duty:
            case FetchManifest():
                self.manifests = True
            case Download():
                self.held |= {file.sha256 for file in duty.files}
            case Load():
                assert {file.sha256 for file in duty.files} <= self.held
                self.loaded[duty.key] = LoadedWeights(key=duty.key, weight_bytes=100 * len(duty.span.blocks))
            case Refuse():
                self.retry[duty.span] = self.now_s + 1000
            case Retire():
                old = self.loaded[duty.key]
                self.loaded[duty.key] = LoadedWeights(
                    key=old.key,
                    weight_bytes=old.weight_bytes,
                    unwanted_since_s=old.unwanted_since_s,
                    retired_since_s=self.now_s,
                )
            case Drop():
                del self.loaded[duty.key]
            case Wait():
                assert duty.until_s is None or duty.until_s > self.now_s - 1e-9
                self.now_s = self.now_s if duty.until_s is None else max(self.now_s, duty.until_s)
        assert sum(loaded.weight_bytes for loaded in self.loaded.values()) <= self.memory_bytes
        return duty

    def settle(self) -> list[str]:
        """Go on until there is nothing more to do; returns what was done."""
        begun = len(self.log)
        for _ in range(200):
            duty = self.step()
            if isinstance(duty, Wait) and (duty.until_s is None or duty.until_s >= self.now_s + 500):
                return [type(done).__name__ for done in self.log[begun:]]
            if isinstance(duty, Wait) and self.retry:
                return [type(done).__name__ for done in self.log[begun:]]
        raise AssertionError("it never settles")


def test_a_first_span_is_fetched_downloaded_and_loaded_in_that_order() -> None:
    fake = Fake()
    fake.assign(span(0, 3))
    assert fake.settle() == ["FetchManifest", "Download", "Load", "Wait"]


def test_only_missing_files_are_downloaded() -> None:
    fake = Fake(manifests=True, held={FileHash(f"{0:064x}")})
    fake.assign(span(0, 3))
    duty = fake.step()
    assert isinstance(duty, Download)
    assert ([file.name for file in duty.files], duty.n_held) == (["block-1", "block-2"], 1)


def test_the_new_is_loaded_before_the_old_is_dropped_and_after_a_moment() -> None:
    fake = Fake()
    fake.assign(span(0, 3))
    fake.settle()
    fake.assign(span(2, 5))
    assert fake.settle() == ["Download", "Load", "Wait", "Retire", "Drop", "Wait"]
    assert fake.now_s >= RETIRE_AFTER_S


def test_the_old_goes_first_if_there_is_no_room_for_both() -> None:
    fake = Fake(memory_bytes=400)
    fake.assign(span(0, 3))
    fake.settle()
    fake.assign(span(2, 5))
    assert fake.settle() == ["Download", "Retire", "Drop", "Load", "Wait"]


def test_a_span_that_cannot_fit_is_refused_with_numbers_and_the_old_one_kept() -> None:
    fake = Fake(memory_bytes=400 * MB, kv_memory_bytes=100 * MB)
    fake.manifests = True
    wanted = WantedSpan(span=span(0, 3), files=(), weight_bytes=350 * MB)
    situation = fake.situation()
    duty = next_duty(
        Situation(
            wanted=(wanted,),
            loaded=(),
            held=(),
            precision="float32",
            memory_bytes=situation.memory_bytes,
            kv_memory_bytes=situation.kv_memory_bytes,
            now_s=0.0,
            drain_s=1.0,
        )
    )
    assert isinstance(duty, Refuse)
    for number in ("350.0 MB", "300.0 MB", "400.0 MB"):
        assert number in duty.reason


def test_a_failed_span_waits_for_its_time() -> None:
    fake = Fake()
    fake.assign(span(0, 3))
    fake.retry[span(0, 3)] = 7.0
    assert fake.step() == Wait(until_s=7.0)
    assert isinstance(fake.step(), FetchManifest)


def test_a_busy_span_is_forced_out_after_the_drain() -> None:
    key = span_key(span(0, 3), "float32")
    busy = LoadedWeights(key=key, weight_bytes=1, unwanted_since_s=0.0, retired_since_s=0.0, next_drop_s=2.0)
    fake = Fake(loaded={key: busy}, now_s=1.0)
    assert next_duty(fake.situation()) == Wait(until_s=2.0)
    fake.now_s = 3.0
    assert next_duty(fake.situation()) == Drop(key=key, is_forced=False)
    fake.now_s = 5.0
    assert next_duty(fake.situation()) == Drop(key=key, is_forced=True)


def test_what_is_served_stays_while_what_is_on_its_way_out_will_make_room_enough() -> None:
    busy, serving = (span_key(s, "float32") for s in (span(0, 3), span(3, 5)))
    fake = Fake(memory_bytes=700, manifests=True, wanted=[span(0, 4)])
    fake.held = {file.sha256 for file in files_of(span(0, 4))}
    fake.loaded[busy] = LoadedWeights(
        key=busy, weight_bytes=300, unwanted_since_s=0.0, retired_since_s=0.0, next_drop_s=2.0
    )
    fake.loaded[serving] = LoadedWeights(key=serving, weight_bytes=200, unwanted_since_s=0.0)

    assert next_duty(fake.situation()) == Wait(until_s=2.0)


def test_nothing_wanted_drops_everything() -> None:
    fake = Fake()
    fake.assign(span(0, 3))
    fake.settle()
    fake.assign()
    assert fake.settle() == ["Wait", "Retire", "Drop", "Wait"]
    assert not fake.loaded


spans = st.builds(
    lambda a, n: span(a, min(N_BLOCKS, a + n)), st.integers(0, N_BLOCKS - 1), st.integers(1, N_BLOCKS)
)


@given(st.lists(st.lists(spans, max_size=2, unique=True), min_size=1, max_size=4), st.integers(100, 1500))
def test_it_settles_on_what_is_wanted_within_memory(assignments: list[list[SpanAssignment]], memory: int) -> None:
    fake = Fake(memory_bytes=memory)
    for assignment in assignments:
        fake.assign(*assignment)
        fake.settle()
    wanted = {span_key(s, "float32") for s in fake.wanted}
    refused = {span_key(s, "float32") for s in fake.retry}
    assert wanted <= fake.loaded.keys() | refused
    if not refused:
        assert fake.loaded.keys() == wanted


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.none() | st.integers(0, 2**40))
def test_the_kv_budget_never_takes_what_weights_need(memory: int, weights: int, kv: int | None) -> None:
    budget = kv_budget_bytes(memory, weights, kv)
    assert 0 <= budget <= max(0, memory - weights)


@given(st.integers(0, 2**45))
def test_some_memory_is_left_to_the_system(free: int) -> None:
    assert free // 2 <= default_memory_bytes(free) <= free
