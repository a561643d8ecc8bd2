"""A whole cluster in one event loop: a real coordinator, real workers and a client, all on loopback.

async with whole_cluster(folder) as cluster:
    await cluster.add_model("tiny", tiny_model(tmp_path, "llama"))
    await cluster.join("a", "0:2")
    await cluster.join("b", "2:4")
    ids = await cluster.ids("tiny", [5, 9, 30], max_tokens=8)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.held_ports import held_port
from client.api import Client, Prompt
from client.config import ClientConfig
from client.results import Generation
from coordinator.app import RunningCoordinator
from coordinator.file_store import FileStore
from coordinator.packing.pack import PackedModel, pack_model
from protocol.api_key import api_key_from_text
from protocol.control_messages import SpanStatus
from protocol.errors import ForbiddenError
from protocol.ids import BlockRange, ModelName
from protocol.key_limits import UNLIMITED, KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest
from tests.support.coordinators import Answer, http_session, join_secret_of, key_of, running_coordinator
from tests.support.long_texts import LONG_CONFIGS
from tests.support.measured_once import measure_once
from tests.support.tiny_models import TINY_CONFIGS, TINY_ENCODERS, save_tiny_model
from tests.support.waiting import eventually
from worker.app import RunningWorker, running, utc_now_s
from worker.config import WorkerConfig

READY_WITHIN_S = 40.0
STOP_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A packed model in a store of its own."""

    store: FileStore
    model: PackedModel

    def link_into(self, folder: Path) -> None:
        """Put the files into a coordinator's or a worker's `FOLDER/files`, without copying them."""
        hashes = [file.sha256 for file in self.model.manifest.all_files()]
        for sha256 in (*hashes, self.model.revision):
            target = folder / "files" / sha256[:2] / sha256
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not target.exists():
                os.link(self.store.root / "files" / sha256[:2] / sha256, target)


def packed_tiny(
    folder: Path, architecture: str, *, seed: int = 0, **changes: Any
) -> tuple[Packed, PreTrainedModel]:
    """A tiny random model without a tokenizer, as `coord model add` packs it, and the whole model to compare with.

    `changes` are of its config.
    """
    config = (TINY_CONFIGS | TINY_ENCODERS | LONG_CONFIGS)[architecture]()
    for name, value in changes.items():
        setattr(config, name, value)
    source = folder / f"{architecture}-{seed}"
    whole = save_tiny_model(config, source, seed=seed)
    store = FileStore(folder / f"{architecture}-{seed}-packed")
    model = pack_model(str(source), store, lambda *_: None, allow_no_tokenizer=True)
    return Packed(store=store, model=model), whole


class Member:
    """A worker in a task of its own, so that it can vanish like a process that is killed."""

    def __init__(self, name: str, config: WorkerConfig) -> None:
        self.name, self.config = name, config
        self.lines: list[str] = []
        self.clock_ahead_s = 0.0
        self.task: asyncio.Task[None] | None = None
        self.refusal: ForbiddenError | None = None
        """Why the coordinator would have it no more."""
        self._worker: RunningWorker | None = None
        self._is_up = asyncio.Event()

    @property
    def worker(self) -> RunningWorker:
        assert self._worker is not None
        return self._worker

    @property
    def statuses(self) -> tuple[SpanStatus, ...]:
        return self.worker.holdings.statuses

    async def run(self) -> None:
        try:
            async with running(self.config, tell=self.lines.append, clock=self._now_s) as worker:
                self._worker = worker
                self._is_up.set()
                await worker.departure.asked.wait()
        except ForbiddenError as error:
            self.refusal = error

    def _now_s(self) -> float:
        return utc_now_s() + self.clock_ahead_s

    async def until_up(self) -> None:
        async with asyncio.timeout(READY_WITHIN_S):
            await self._is_up.wait()

    async def stop(self) -> None:
        """Drain and leave, as at SIGTERM."""
        self.worker.departure.ask("the worker was stopped")
        await self.ended()

    async def vanish(self) -> None:
        """Be gone without a word, as far as a process can that others live in."""
        assert self.task is not None
        self.task.cancel()
        await self.ended()

    async def ended(self) -> None:
        """Wait until it has left, for whatever reason."""
        assert self.task is not None
        async with asyncio.timeout(STOP_WITHIN_S):
            await asyncio.wait([self.task])


@dataclass(slots=True, kw_only=True)
class WholeCluster:
    """What `whole_cluster` gives."""

    folder: Path
    tasks: asyncio.TaskGroup
    settings: dict[str, Any]
    members: dict[str, Member] = field(default_factory=dict)
    _coordinator: RunningCoordinator | None = None
    _coordinator_open: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def coordinator(self) -> RunningCoordinator:
        assert self._coordinator is not None
        return self._coordinator

    async def start_coordinator(self) -> None:
        """Start it, or start it again where it listened before."""
        self._coordinator = await self._coordinator_open.enter_async_context(
            running_coordinator(self.folder, is_patient=False, **self.settings)
        )

    async def stop_coordinator(self) -> None:
        await self._coordinator_open.aclose()

    async def add_model(self, name: str, packed: Packed) -> None:
        await asyncio.to_thread(packed.link_into, self.coordinator.state_folder.files)
        await self.coordinator.catalogue.add(name, packed.model.revision)

    async def join(
        self, name: str, blocks: str | None = None, *, files: Packed | None = None, **changes: Any
    ) -> Member:
        """Start a worker, pinned to `blocks` if given, with `files` in its cache already.

        A name that was there before: the same worker, started again on its old state.
        """
        options: dict[str, Any] = {
            "coordinator_urls": (self.coordinator.url,),
            "secret": join_secret_of(self.coordinator),
            "state": self.folder / name,
            "device": "cpu",
            "precision": "float32",
            "n_threads": 1,
            "memory_bytes": 10**8,
            "drain_s": 5.0,
            "pinned_blocks": None if blocks is None else BlockRange(*map(int, blocks.split(":"))),
        }
        if files is not None:
            await asyncio.to_thread(files.link_into, self.folder / name / "cache")
        member = Member(name, WorkerConfig(**(options | changes)))
        member.task = self.tasks.create_task(member.run(), name=f"worker-{name}")
        self.members[name] = member
        await member.until_up()
        return member

    async def until_ready(self, model: str = "tiny", within_s: float = READY_WITHIN_S) -> None:
        """Until the model can be used and every worker that is there has loaded all that it was told to."""
        await eventually(lambda: self._is_ready(model), within_s)

    def _is_ready(self, model: str) -> bool:
        state = self.coordinator.cluster.state
        here = [worker for worker in state.workers.values() if worker.presence == "here"]
        reported = {
            (status.model, block)
            for worker in here
            for status in worker.reported
            if status.state == "ready"
            for block in range(status.blocks.start, status.blocks.end)
        }
        running_ids = {
            m.worker.worker_id for m in self.members.values() if m.task is not None and not m.task.done()
        }
        if not running_ids <= {worker.worker_id for worker in here if worker.is_connected}:
            return False
        n_blocks = state.models[ModelName(model)].manifest.n_blocks
        is_covered = all((model, block) in reported for block in range(n_blocks))
        is_settled = all(
            {(span.model, span.blocks) for span in worker.assignment.spans}
            == {(status.model, status.blocks) for status in worker.reported if status.state == "ready"}
            for worker in here
        )
        return is_covered and is_settled and state.changed_s is None

    @asynccontextmanager
    async def client(self, key: CreatedKey | None = None) -> AsyncIterator[Client]:
        """A client with this key, or with the coordinator's first."""
        text, name = (key_of(self.coordinator, "client"), "client") if key is None else (key.key, key.key_id)
        config = ClientConfig(
            url=self.coordinator.url, api_key=api_key_from_text(text), cache=self.folder / f"client-{name}"
        )
        async with Client(config=config) as client:
            yield client

    async def new_key(self, limits: KeyLimits = UNLIMITED) -> CreatedKey:
        """Another client key."""
        answer = await self.admin("POST", "/admin/v1/keys", CreateKeyRequest(name="another", limits=limits))
        return answer.read(CreatedKey)

    async def admin(self, method: str, path: str, body: Any = None) -> Answer:
        """What an operator asks, and is answered."""
        async with http_session(self.coordinator, key_of(self.coordinator, "admin")) as http:
            answer = await http.ask(method, path, body)
        assert answer.status < 300, answer.body
        return answer

    async def generate(self, model: str, prompt: Prompt, **options: Any) -> Generation:
        """One generation by a client of its own; greedy if nothing else is said."""
        async with self.client() as client:
            return await client.generate(model, prompt, **({"temperature": 0.0} | options))

    async def ids(self, model: str, prompt: Prompt, **options: Any) -> list[int]:
        return list((await self.generate(model, prompt, **options)).token_ids)


@asynccontextmanager
async def whole_cluster(folder: Path, **settings: Any) -> AsyncIterator[WholeCluster]:
    """A coordinator without models and workers yet; everything is stopped at the end, the coordinator last."""
    measure_once()
    with held_port() as port:
        async with _running(folder, {"listen_port": port} | settings) as cluster:
            yield cluster


@asynccontextmanager
async def _running(folder: Path, settings: dict[str, Any]) -> AsyncIterator[WholeCluster]:
    async with asyncio.TaskGroup() as tasks:
        cluster = WholeCluster(folder=folder, tasks=tasks, settings=settings)
        await cluster.start_coordinator()
        try:
            yield cluster
        finally:
            for member in cluster.members.values():
                if member.task is not None:
                    member.task.cancel()
            if running_tasks := [member.task for member in cluster.members.values() if member.task is not None]:
                await asyncio.wait(running_tasks, timeout=STOP_WITHIN_S)
            await cluster.stop_coordinator()


def hop_ranges(generation: Generation) -> list[str]:
    """The blocks of each hop, as `start:end`."""
    return [f"{stage.start}:{stage.end}" for stage in generation.route]


def greedy_ids(whole: PreTrainedModel, prompt: Sequence[int], n_tokens: int, **options: Any) -> list[int]:
    """What transformers' own `generate` says after the prompt, stop token included; `options` are its own."""
    ids = torch.tensor([list(prompt)])
    mask = torch.ones_like(ids)
    out = whole.generate(
        ids, attention_mask=mask, max_new_tokens=n_tokens, do_sample=False, pad_token_id=0, **options
    )
    return [int(token_id) for token_id in out[0, len(prompt) :]]
