"""What gets a worker's files, against a real coordinator, without the worker."""

from __future__ import annotations

import random
from pathlib import Path

import aiohttp

from coordinator.app import RunningCoordinator, utc_now_s
from tests.support.coordinators import join_secret_of
from worker.downloads import Downloader
from worker.enrolment import CredentialsHolder, enrol
from worker.fetching import Fetching
from worker.files import FileCache
from worker.identity import load_identity
from worker.sources import Sources


async def joined_sources(folder: Path, coordinator: RunningCoordinator, http: aiohttp.ClientSession) -> Sources:
    """What a worker that has enrolled asks for sources."""
    state = folder / "worker"
    state.mkdir(parents=True)
    identity = load_identity(state)
    credentials = await enrol(identity, [coordinator.url], join_secret_of(coordinator), utc_now_s)
    return Sources(http, CredentialsHolder(credentials), identity.worker_id, random.Random(0))


def fetching_into(cache: FileCache, sources: Sources, http: aiohttp.ClientSession) -> Fetching:
    """Downloads from those sources."""
    return Fetching(cache=cache, downloader=Downloader(http, cache, utc_now_s), sources=sources, clock=utc_now_s)
