"""Carries the worker's duties out, one after the other: sole owner of what is on disk and in the engine.

What to do is decided in `worker.duties`; here it is done, and every change of a span is said, with what comes next.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from protocol.background import uninterrupted
from protocol.control_messages import SpanAssignment
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, ConflictError
from protocol.ids import FileHash, Revision
from protocol.manifest import Manifest
from protocol.weight_sizes import span_weight_bytes
from worker import duties
from worker.authorship import Authorship
from worker.duties import Download, Drop, FetchManifest, KeeperLimits, Load, LoadedWeights, Refuse, Retire, Wait
from worker.engine import Engine
from worker.error_groups import most_telling
from worker.fetching import Fetching
from worker.holdings import Holdings
from worker.model_folders import ModelFolders
from worker.span_failures import SpanFailures
from worker.steps import Compiling, LoadedSpan, LoadRequest, SpanKey

log = structlog.get_logger(__name__)

_BUSY_RETRY_S = 0.25
"""How soon to look again whether the sessions of a retired span are over."""


class Keeper:
    """Makes what is held what is wanted. `run` it in a task group."""

    def __init__(
        self,
        *,
        engine: Engine,
        holdings: Holdings,
        folders: ModelFolders,
        fetching: Fetching,
        authorship: Authorship,
        limits: KeeperLimits,
        rng: random.Random,
        tell: Callable[[str], None],
        compile_folder: Path | None = None,
    ) -> None:
        """`compile_folder`: where compiled steps are kept; None: nothing is compiled."""
        self._engine = engine
        self._holdings = holdings
        self._folders = folders
        self._fetching = fetching
        self._authorship = authorship
        self._limits = limits
        self._tell = tell
        self._compile_folder = compile_folder
        self._manifests: dict[Revision, Manifest] = {}
        self._loaded: dict[SpanKey, LoadedWeights] = {}
        self._failures = SpanFailures(rng)
        self._epoch = 0

    async def run(self) -> None:
        """Do one duty after the other, for ever. A new assignment interrupts waits and downloads."""
        await self._see_files()
        while True:
            self._notice_assignment()
            duty = duties.next_duty(await self._situation())
            match duty:
                case FetchManifest() | Download() | Load():
                    await self._attempt(duty)
                case Refuse():
                    self._refuse(duty)
                case Retire():
                    self._retire(duty.key)
                case Drop():
                    await self._drop(duty)
                case Wait():
                    await self._wait(duty)

    async def _situation(self) -> duties.Situation:
        held = frozenset(await asyncio.to_thread(self._fetching.held))
        return duties.Situation(
            wanted=tuple(self._wanted(span) for span in self._holdings.wanted),
            loaded=tuple(self._loaded.values()),
            held=held,
            precision=self._limits.precision,
            quantization=self._limits.quantization,
            memory_bytes=self._limits.memory_bytes,
            kv_memory_bytes=self._limits.kv_memory_bytes,
            now_s=_now_s(),
            drain_s=self._limits.drain_s,
            draft_bytes=self._limits.draft_bytes,
            retry_at_s=self._failures.retry_at_s,
        )

    def _wanted(self, span: SpanAssignment) -> duties.WantedSpan:
        manifest = self._manifests.get(span.revision)
        if manifest is None:
            return duties.WantedSpan(span=span, files=None)
        return duties.WantedSpan(
            span=span,
            files=duties.span_files(manifest, span.blocks),
            weight_bytes=span_weight_bytes(manifest, span.blocks, self._limits.key(span).held_as),
        )

    def _notice_assignment(self) -> None:
        """After a new assignment: forget old failures, take back what is wanted again, date what no longer is."""
        if self._holdings.epoch == self._epoch:
            return
        self._epoch = self._holdings.epoch
        self._failures.assigned(self._holdings.wanted)
        wanted = {self._limits.key(span) for span in self._holdings.wanted}
        for key, loaded in self._loaded.items():
            if key in wanted:
                self._loaded[key] = LoadedWeights(key=key, weight_bytes=loaded.weight_bytes)
                self._holdings.restore(key)
            elif loaded.unwanted_since_s is None:
                self._loaded[key] = replace(loaded, unwanted_since_s=_now_s())
        self._say_ready()

    def _say_ready(self) -> None:
        """Report the wanted spans that are loaded; two models may share one, under their names."""
        for span in self._holdings.wanted:
            key = self._limits.key(span)
            if key in self._loaded:
                self._holdings.add_name(key, span.model)
                if self._holdings.set_ready(span, key):
                    device, n_bytes = str(self._engine.device), self._engine.stats().kv_budget_bytes
                    for line in self._holdings.ready_lines(span, key, device, n_bytes):
                        self._tell(line)

    async def _attempt(self, duty: FetchManifest | Download | Load) -> None:
        """Do it; a failure is said and dated, and the loop goes on."""
        try:
            match duty:
                case FetchManifest():
                    await self._unless_reassigned(self._fetch_manifest(duty))
                case Download():
                    await self._unless_reassigned(self._download(duty))
                case Load():
                    await self._load(duty)
        except (BrigadeError, BaseExceptionGroup) as exc:
            error = most_telling(exc) if isinstance(exc, BaseExceptionGroup) else exc
            if not isinstance(error, BrigadeError):
                raise
            self._failed(duty, error)

    async def _fetch_manifest(self, duty: FetchManifest) -> None:
        revision = duty.span.revision
        self._holdings.set_status(duty.span, "downloading", "getting the model's manifest; next: its files")
        manifest = await asyncio.to_thread(self._folders.manifest, revision)
        if manifest is None:
            data = await self._fetching.manifest(revision)
            manifest = await uninterrupted(asyncio.to_thread(self._folders.save_manifest, revision, data))
        await self._authorship.check(revision)
        if duty.span.blocks.end > manifest.n_blocks:
            self._refuse(Refuse(span=duty.span, reason=f"the model has {manifest.n_blocks} blocks only"))
            return
        self._manifests[revision] = manifest

    async def _download(self, duty: Download) -> None:
        def progressed(reason: str, progress: float) -> None:
            self._holdings.set_status(duty.span, "downloading", reason, progress)

        def tell(doing: str) -> None:
            self._tell(f"{doing}, for blocks {duty.span.blocks} of {duty.span.model}")

        await self._fetching.download(
            duty.files, n_held=duty.n_held, keep=self._needed(), progressed=progressed, tell=tell
        )
        self._failures.succeeded(duty.span)
        await self._see_files()

    async def _load(self, duty: Load) -> None:
        span, started_s = duty.span, _now_s()
        into = self._compile_folder
        compiling = Compiling(folder=into, n_sessions=self._engine.n_sessions) if into else None
        doing = f"{'loading and compiling' if compiling else 'loading'} blocks {span.blocks}"
        self._holdings.set_status(span, "loading", f"{doing} into {self._engine.device}; next: ready")
        self._tell(f"{doing} of {span.model}")
        manifest = self._manifests[span.revision]
        paths = await asyncio.to_thread(self._fetching.paths, manifest.weight_files(span.blocks))
        folder = await asyncio.to_thread(self._folders.config_folder, span.revision, manifest)
        self._resize_kv_budget(span_weight_bytes(manifest, span.blocks, self._limits.key(span).held_as))
        try:
            loaded = await self._engine.load(
                LoadRequest(
                    key=duty.key,
                    config_folder=folder,
                    files=paths,
                    compiling=compiling,
                    context_length=manifest.context_length,
                    cache_bytes=self._engine.stats().kv_budget_bytes,
                )
            )
        except BrigadeError:
            self._resize_kv_budget(0)
            raise
        self._take(span, loaded)
        log.info("span_ready", model=span.model, blocks=str(span.blocks), seconds=round(_now_s() - started_s, 2))

    def _take(self, span: SpanAssignment, loaded: LoadedSpan) -> None:
        self._loaded[loaded.key] = LoadedWeights(
            key=loaded.key,
            weight_bytes=loaded.n_weight_bytes,
            unwanted_since_s=None if span in self._holdings.wanted else _now_s(),
        )
        self._resize_kv_budget(0)
        self._failures.succeeded(span)
        self._holdings.add(span.model, loaded)
        self._say_ready()

    def _resize_kv_budget(self, coming_bytes: int) -> None:
        """Give caches what the weights, loaded and coming, leave."""
        used = sum(loaded.weight_bytes for loaded in self._loaded.values()) + coming_bytes
        limits = self._limits
        n_bytes = duties.kv_budget_bytes(limits.memory_bytes, used, limits.kv_memory_bytes)
        self._engine.resize_kv_budget(n_bytes)
        self._holdings.set_kv_budget(n_bytes)

    def _refuse(self, duty: Refuse) -> None:
        self._failures.refused(duty.span)
        self._holdings.set_status(duty.span, "failed", duty.reason)
        log.error("span_refused", blocks=str(duty.span.blocks), model=duty.span.model, reason=duty.reason)
        self._tell(f"can't hold: {duty.reason}")

    def _retire(self, key: SpanKey) -> None:
        self._loaded[key] = replace(self._loaded[key], retired_since_s=_now_s())
        self._holdings.retire(key)

    async def _drop(self, duty: Drop) -> None:
        try:
            await self._engine.unload(duty.key, force=duty.is_forced)
        except ConflictError:
            self._loaded[duty.key] = replace(self._loaded[duty.key], next_drop_s=_now_s() + _BUSY_RETRY_S)
            return
        self._loaded.pop(duty.key)
        self._holdings.remove(duty.key)
        self._resize_kv_budget(0)
        self._tell(f"dropped blocks {duty.key.blocks}")

    async def _wait(self, duty: Wait) -> None:
        if self._epoch:  # before the first assignment, nothing says which models are of use
            revisions = {span.revision for span in self._holdings.wanted} | {key.revision for key in self._loaded}
            await asyncio.to_thread(self._folders.forget_others, revisions)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(duty.until_s):
                await self._reassigned()

    async def _unless_reassigned(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, but leave it where it is when a new assignment comes: it may not be wanted any more."""
        async with asyncio.TaskGroup() as tasks:
            doing = tasks.create_task(work, name="keeper-duty")
            watching = tasks.create_task(self._reassigned(), name="keeper-assignment")
            await asyncio.wait([doing, watching], return_when=asyncio.FIRST_COMPLETED)
            doing.cancel()
            watching.cancel()

    async def _reassigned(self) -> None:
        version = self._holdings.version
        while self._holdings.epoch == self._epoch:
            version = await self._holdings.changed_since(version)

    def _failed(self, duty: FetchManifest | Download | Load, error: BrigadeError) -> None:
        span = duty.span
        reason = self._failures.failed(span, error, _now_s(), while_loading=isinstance(duty, Load))
        self._holdings.set_status(span, "failed", reason)
        log.warning("span_failed", model=span.model, blocks=str(span.blocks), **error_fields(error))
        self._tell(f"blocks {span.blocks} of {span.model}: {reason}")

    def _needed(self) -> frozenset[FileHash]:
        """Files that must not be evicted: of what is wanted, and of what is loaded."""
        spans = [(span.revision, span.blocks) for span in self._holdings.wanted]
        spans += [(key.revision, key.blocks) for key in self._loaded]
        return duties.files_of(spans, self._manifests)

    async def _see_files(self) -> None:
        self._holdings.set_files(await asyncio.to_thread(self._fetching.held))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
