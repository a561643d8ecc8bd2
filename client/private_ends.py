"""The processes beside a client that run a model's ends for private generations: started, kept while used, stopped.

A client never loads torch: whoever generates privately has `brigade[worker]` installed on the same machine, and a
process of its own runs embedding, first and last blocks, head and sampling there (`worker.ends_process`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from client.config import ClientConfig
from client.ends_process import EndsProcess, started_ends
from client.model_files import FileCache, fetched_model
from protocol.coordinator_urls import checked_coordinator_urls
from protocol.ends_messages import EndsLoaded, LoadEnds
from protocol.ids import Revision
from protocol.manifest import encode_manifest
from protocol.messages import Precision
from protocol.pinned_http import CoordinatorSession

IDLE_S = 600.0
"""A process that nobody generates with is ended after so long: it holds a good part of a model in memory."""
MAX_IDLE = 2
"""That are kept for so long; of more, those that were used last."""
JUST_USED_S = 10.0
"""Who was given a process is about to use it: it isn't ended so soon, however many there are."""
_LOOK_S = 5.0

_Key: TypeAlias = tuple[Revision, int, Precision]


class PrivateEnds:
    """The processes of one client: one for each model, number of blocks and precision, kept while they are used."""

    def __init__(self, config: ClientConfig, coordinator: CoordinatorSession, cache: FileCache) -> None:
        self._config = config
        self._coordinator = coordinator
        self._cache = cache
        self._processes: dict[_Key, EndsProcess] = {}
        self._starting = asyncio.Lock()

    async def loaded(
        self, revision: Revision, n_blocks_each: int, precision: Precision, tell: Callable[[str], None]
    ) -> EndsProcess:
        """The process that has these ends; started and loaded now if there is none. The caller has the deadline.

        Raises:
            ConfigError: what it needs isn't installed.
            BrigadeError: the files can't be had, or the ends can't be loaded from them.
        """
        # half precision is slow on CPUs, and float32 holds all its values
        key = (revision, n_blocks_each, "float32" if precision == "float16" else precision)
        if (running := self._in_use(key)) is not None:  # whatever else is being loaded
            return running
        async with self._starting:
            if (running := self._in_use(key)) is not None:
                return running
            if (broken := self._processes.pop(key, None)) is not None:
                await broken.stop()
            started = await started_ends()
            try:
                await self._load(started, key, tell)
            except BaseException:
                started.kill()
                await started.stop()
                raise
            self._processes[key] = started
            await self.end_idle()
            return started

    async def end_idle_forever(self) -> None:
        """End what nobody uses, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.end_idle()

    async def end_idle(self) -> None:
        """End processes that nobody has used for long, and the longest idle of too many."""
        now_s = asyncio.get_running_loop().time()
        idle = [
            (key, now_s - process.used_s)
            for key, process in self._processes.items()
            if not process.has_texts and now_s - process.used_s >= JUST_USED_S
        ]
        idle.sort(key=lambda found: found[1])
        over = [key for place, (key, idle_s) in enumerate(idle) if place >= MAX_IDLE or idle_s >= IDLE_S]
        ended = [self._processes.pop(key) for key in over]
        async with asyncio.TaskGroup() as stopping:
            for process in ended:
                stopping.create_task(process.stop(), name=f"stop {process.process.pid}")

    async def close(self) -> None:
        """Stop all processes, at the same time."""
        async with asyncio.TaskGroup() as stopping:
            for process in self._processes.values():
                stopping.create_task(process.stop(), name=f"stop {process.process.pid}")

    def _in_use(self, key: _Key) -> EndsProcess | None:
        known = self._processes.get(key)
        if known is None or not known.is_running:
            return None
        known.used_s = asyncio.get_running_loop().time()
        return known

    async def _load(self, started: EndsProcess, key: _Key, tell: Callable[[str], None]) -> None:
        revision, n_blocks_each, precision = key
        files = await fetched_model(self._coordinator, revision, self._cache)
        request = LoadEnds(
            number=0,
            revision=revision,
            n_blocks_each=n_blocks_each,
            precision=precision,
            folder=str(self._config.cache / "ends"),
            coordinator_urls=checked_coordinator_urls(self._config.url),
            ca_pem=self._coordinator.ca_pem,
            api_key=self._config.api_key.text(),
        )
        answer, _ = await started.ask(request, EndsLoaded, encode_manifest(files.manifest), tell)
        started.hidden_size = answer.hidden_size


@asynccontextmanager
async def private_ends(
    config: ClientConfig, coordinator: CoordinatorSession, cache: FileCache
) -> AsyncIterator[PrivateEnds]:
    """Processes for private generations, started when one needs them; all are stopped at the end."""
    ends = PrivateEnds(config, coordinator, cache)
    tasks = asyncio.TaskGroup()
    await tasks.__aenter__()
    looking = tasks.create_task(ends.end_idle_forever(), name="end idle model ends")
    try:
        yield ends
    finally:
        looking.cancel()
        try:
            await ends.close()
        finally:
            # by hand, since `async with` would wrap the caller's own exception in a group
            await tasks.__aexit__(None, None, None)
