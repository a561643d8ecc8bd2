"""Small models and workers for the tests of decisions, and a driver that checks every step."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from coordinator.policy.effects import Effect, SendToWorker
from coordinator.policy.events import (
    Event,
    ModelAdded,
    SpansReported,
    TimePassed,
    WorkerBeat,
    WorkerConnected,
    WorkerJoined,
)
from coordinator.policy.invariants import check, check_step
from coordinator.policy.looking import found, sought
from coordinator.policy.sizing import CACHE_FLOOR_SHARE, spans_bytes
from coordinator.policy.state import ClusterState, PolicySettings
from coordinator.policy.statuses import status_as
from coordinator.policy.transition import apply
from protocol.control_messages import Announce, Assign, DeviceReport, Heartbeat, SpanReport, SpanState, SpanStatus
from protocol.ids import FileHash, ModelName, WorkerId
from protocol.manifest import Manifest, ModelFile, ModelKind, encode_manifest, revision_of

SPREAD = PolicySettings(placement="spread")
"""So that fleets with all the memory there is share a model, and there is something to lose and to mend."""
OPEN = {"quantizations": ("int8", "int4"), "is_precision_open": True}
"""Of a device whose operator left its precision to the coordinator."""
BLOCK_PARAMETERS = 1000
KV_ELEMENTS = 1


def file_hash(text: str) -> FileHash:
    return FileHash(text.encode().hex().rjust(64, "0")[-64:])


def model_file(name: str, n_parameters: int = BLOCK_PARAMETERS) -> ModelFile:
    return ModelFile(name=name, sha256=file_hash(name), size_bytes=n_parameters * 4 + 8, n_parameters=n_parameters)


def manifest(
    n_blocks: int = 8,
    *,
    name: str = "m",
    end_parameters: int = 500,
    tied: bool = False,
    kind: ModelKind = "decoder",
) -> Manifest:
    before = model_file(f"{name}-before", end_parameters)
    return Manifest(
        format_version=1,
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=8,
        vocab_size=16,
        context_length=100,
        kv_elements_per_token=KV_ELEMENTS,
        weights_dtype="float32",
        is_chat=False,
        blocks=tuple(model_file(f"{name}-{i}") for i in range(n_blocks)),
        before=(before,),
        after=(before,) if tied else (model_file(f"{name}-after", end_parameters),),
        auxiliary=(),
        kind=kind,
    )


def added(name: str = "m", n_blocks: int = 8, **options: object) -> ModelAdded:
    made = manifest(n_blocks, name=name, **options)  # type: ignore[arg-type]
    return ModelAdded(name=ModelName(name), revision=revision_of(encode_manifest(made)), manifest=made)


def memory_for(n_blocks: int, *, ends: int = 0) -> int:
    """Memory for `n_blocks` blocks and `ends` of the model's two ends in float32, and for not one block more."""
    n_bytes = 4 * (n_blocks * (BLOCK_PARAMETERS + 100 * KV_ELEMENTS) + ends * 500)
    return int(n_bytes / (1 - CACHE_FLOOR_SHARE)) + 2


def announce(
    worker: str,
    *,
    memory: int = 10**9,
    speed: float = 1.0,
    epoch: int = 0,
    spans: tuple[SpanStatus, ...] = (),
    device: Mapping[str, object] | None = None,
    **more: object,
) -> Announce:
    return Announce(
        url=f"https://{worker}:1",
        hostname=f"host-{worker}",
        version="0",
        device=msgspec.structs.replace(
            DeviceReport(
                device="cpu",
                precision="float32",
                n_threads=1,
                memory_bytes=memory,
                bandwidth_bytes_per_s=1e6 * speed,
                flops_per_s=1e6 * speed,
            ),
            **(device or {}),
        ),
        epoch=epoch,
        spans=spans,
        files=(),
        **more,  # type: ignore[arg-type]
    )


def heartbeat(**fields: object) -> Heartbeat:
    zero = {"n_sessions": 0, "n_queued": 0, "free_kv_bytes": 0, "decode_s_per_block": 0.0}
    return Heartbeat(**{**zero, "prefill_s_per_token_block": 0.0, **fields})  # type: ignore[arg-type]


class Fleet:
    """A cluster under a clock of its own; every step is checked against every invariant."""

    def __init__(self, state: ClusterState | None = None, now_s: float = 1000.0) -> None:
        self.state = ClusterState(settings=SPREAD) if state is None else state
        self.now_s = now_s
        self.effects: tuple[Effect, ...] = ()
        self.last_assign: dict[WorkerId, Assign] = {}

    def do(self, event: Event) -> tuple[Effect, ...]:
        before = self.state
        self.state, self.effects = apply(before, event, self.now_s)
        again = apply(before, event, self.now_s)
        assert again == (self.state, self.effects), "the same event made another state"
        check(self.state)
        check_step(before, self.state)
        for effect in self.effects:
            if isinstance(effect, SendToWorker) and isinstance(effect.message, Assign):
                self.last_assign[effect.worker_id] = effect.message
        if isinstance(event, TimePassed) and (what := sought(self.state, self.now_s)) is not None:
            self.effects += self.do(found(self.state, what))
        return self.effects

    def wait(self, seconds: float, *, beating: bool = True, silent: tuple[str, ...] = ()) -> None:
        """Second by second; connected workers beat."""
        for _ in range(int(seconds)):
            self.now_s += 1.0
            for worker in list(self.state.workers.values()):
                if beating and worker.is_connected and worker.worker_id not in silent:
                    self.do(WorkerBeat(worker_id=worker.worker_id, heartbeat=worker.heartbeat or heartbeat()))
            self.do(TimePassed())

    def pass_time(self, seconds: float) -> tuple[Effect, ...]:
        """Nobody is heard of, and somebody looks often enough; everything that follows."""
        effects: list[Effect] = []
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s = min(until_s, self.now_s + self.state.settings.longest_sweep_s)
            effects += self.do(TimePassed())
        return tuple(effects)

    def join(self, worker: str, **options: object) -> WorkerId:
        worker_id = WorkerId(worker)
        self.do(WorkerJoined(worker_id=worker_id))
        self.do(WorkerConnected(worker_id=worker_id, announce=announce(worker, **options)))  # type: ignore[arg-type]
        return worker_id

    def report(self, worker: str, state: SpanState = "ready", reason: str = "") -> None:
        """The worker says that all of its spans are in `state`."""
        assignment = self.state.workers[WorkerId(worker)].assignment
        statuses = tuple(status_as(span, state, reason) for span in assignment.spans)
        report = SpanReport(epoch=assignment.epoch, spans=statuses)
        self.do(SpansReported(worker_id=WorkerId(worker), report=report))

    def all_ready(self) -> None:
        for worker in self.state.workers.values():
            if worker.is_connected:
                self.report(worker.worker_id)

    def blocks(self, model: str = "m") -> dict[str, str]:
        """Who is assigned what of a model."""
        return {
            worker_id: str(span.blocks)
            for worker_id, worker in self.state.workers.items()
            for span in worker.assignment.spans
            if span.model == model
        }

    def idle_reason(self, worker: str) -> str:
        return self.state.workers[WorkerId(worker)].assignment.reason


def fits(state: ClusterState, worker_id: WorkerId, kv_tokens: int) -> bool:
    """Whether the worker's assignment fits into the memory that it was chosen for."""
    assignment = state.workers[worker_id].assignment
    if assignment.capacity_bytes is None:
        return True
    return spans_bytes(state, assignment.spans, "float32", kv_tokens) <= assignment.capacity_bytes


def ready_pair() -> Fleet:
    """Workers a and b, which share the model m."""
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.join("b")
    fleet.wait(2)
    fleet.all_ready()
    return fleet
