"""Puts a worker's parts together, in the order in which they need each other. Runs none of the loops."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import aiohttp
import torch
from aiohttp import web

from protocol.codec import MAX_BODY_BYTES
from protocol.control_messages import Announce, DeviceReport, Heartbeat
from protocol.messages import Precision, Quantization
from protocol.version import program_version
from worker import duties
from worker.config import WorkerConfig
from worker.device import (
    DeviceProfile,
    chosen_precision,
    chosen_quantization,
    fallback_warning,
    find_device,
    measure_device,
)
from worker.downloads import Downloader
from worker.duties import KeeperLimits
from worker.engine import Engine
from worker.enrolment import CredentialsHolder, enrol, waited_for
from worker.fetching import Fetching
from worker.file_server import FileServer
from worker.files import FileCache
from worker.holdings import Holdings
from worker.identity import Identity, load_identity, opened_state
from worker.keeper import Keeper
from worker.model_folders import ModelFolders
from worker.server import DataPlane
from worker.site import Site, bound_socket, errors_to_answers, facing_address, url_of
from worker.sources import Sources
from worker.uplink import Uplink, UplinkHooks

_MAX_FILE_CONNECTIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker is given from outside."""

    config: WorkerConfig
    tell: Callable[[str], None]
    """A line for people."""
    clock: Callable[[], float]
    """Seconds since 1970, UTC."""
    on_drain: Callable[[str], None]
    """The coordinator asked the worker to leave, for this reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The device, and what of it the worker uses."""

    profile: DeviceProfile
    precision: Precision
    memory_bytes: int
    quantization: Quantization | None = None

    def report(self) -> DeviceReport:
        """What the coordinator is told of it."""
        speed = self.profile.speeds[self.precision]
        return DeviceReport(
            device=str(self.profile.device),
            precision=self.precision,
            n_threads=self.profile.n_threads,
            memory_bytes=self.memory_bytes,
            bandwidth_bytes_per_s=speed.decode_bytes_per_s,
            flops_per_s=speed.prefill_flops_per_s,
            quantization=self.quantization,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the worker listens, and what others call that."""

    bound: socket.socket
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A worker, enrolled and listening; but without its loops: `engine.watch`, `keeper.run`, `uplink.run`."""

    identity: Identity
    address: Address
    engine: Engine
    holdings: Holdings
    data_plane: DataPlane
    keeper: Keeper
    uplink: Uplink


async def assembled(around: Surroundings, stack: AsyncExitStack) -> Parts:
    """Start everything in order; `stack` closes it in reverse.

    Raises:
        ConfigError, StorageError: a setting or the state folder can't be used.
        UnreachableError, WrongSecretError, ProtocolVersionError, ClockSkewError: the worker can't enrol.
    """
    config = around.config
    stack.enter_context(opened_state(config.state))
    identity = await asyncio.to_thread(load_identity, config.state)
    cache = await asyncio.to_thread(FileCache, config.state / "cache", limit_bytes=config.cache_bytes)
    address = await _address(around, stack)
    machine = await asyncio.to_thread(_measured, config)
    if warning := await asyncio.to_thread(fallback_warning, config.device):
        around.tell(warning)
    around.tell(f"worker {identity.worker_id}: enrolling at {', '.join(config.coordinator_urls)}")
    renew = partial(enrol, identity, config.coordinator_urls, config.secret, around.clock)
    first = await waited_for(renew, at_most_s=config.join_timeout_s, tell=around.tell)
    credentials = CredentialsHolder(first, config.coordinator_urls)
    around.tell(f"enrolled at {credentials.current.coordinator_url}; others reach this worker at {address.url}")

    holdings = Holdings()
    engine = await stack.enter_async_context(_engine(config, machine))
    hooks = UplinkHooks(
        announce=lambda: _announce(config, address.url, machine, holdings),
        heartbeat=lambda: _heartbeat(engine, data_plane),
        renew=renew,
        on_drain=around.on_drain,
        tell=around.tell,
    )
    uplink = Uplink(credentials=credentials, holdings=holdings, hooks=hooks, clock=around.clock)
    data_plane = DataPlane(
        engine,
        holdings,
        credentials,
        identity.worker_id,
        config.chunk_tokens,
        uplink.report_generation,
        around.clock,
        wire=config.wire,
    )
    await stack.enter_async_context(data_plane)
    await stack.enter_async_context(Site(_application(data_plane, cache), address.bound, credentials))
    http = await stack.enter_async_context(_file_session())
    rng = random.SystemRandom()
    keeper = Keeper(
        engine=engine,
        holdings=holdings,
        folders=ModelFolders(config.state / "models", cache),
        fetching=Fetching(
            cache=cache,
            downloader=Downloader(http, cache, around.clock),
            sources=Sources(http, credentials, identity.worker_id, rng),
            clock=around.clock,
        ),
        limits=_limits(config, machine),
        rng=rng,
        tell=around.tell,
    )
    return Parts(
        identity=identity,
        address=address,
        engine=engine,
        holdings=holdings,
        data_plane=data_plane,
        keeper=keeper,
        uplink=uplink,
    )


async def _address(around: Surroundings, stack: AsyncExitStack) -> Address:
    config = around.config
    facing = await waited_for(
        partial(facing_address, config.coordinator_urls), at_most_s=config.join_timeout_s, tell=around.tell
    )
    bound = stack.enter_context(bound_socket(config.listen_host or facing, config.listen_port))
    return Address(bound=bound, url=(config.advertise_url or url_of(bound, facing)).rstrip("/"))


def _measured(config: WorkerConfig) -> Machine:
    """Find and measure the device. Blocks, for most of a second."""
    device = find_device(config.device)
    if config.n_threads is not None:
        torch.set_num_threads(config.n_threads)  # this thread's: the engine's sets its own
    profile = measure_device(device)
    memory = config.memory_bytes or duties.default_memory_bytes(profile.free_memory_bytes)
    return Machine(
        profile=profile,
        precision=chosen_precision(config.precision, profile),
        memory_bytes=memory,
        quantization=chosen_quantization(config.precision),
    )


def _engine(config: WorkerConfig, machine: Machine) -> Engine:
    kv_bytes = duties.kv_budget_bytes(machine.memory_bytes, 0, config.kv_memory_bytes)
    return Engine(device=machine.profile.device, kv_budget_bytes=kv_bytes, n_threads=config.n_threads)


def _limits(config: WorkerConfig, machine: Machine) -> KeeperLimits:
    return KeeperLimits(
        precision=machine.precision,
        memory_bytes=machine.memory_bytes,
        kv_memory_bytes=config.kv_memory_bytes,
        drain_s=config.drain_s,
        quantization=machine.quantization,
    )


def _application(data_plane: DataPlane, cache: FileCache) -> web.Application:
    app = web.Application(middlewares=[errors_to_answers], client_max_size=MAX_BODY_BYTES)
    data_plane.add_routes(app)
    FileServer(cache).add_routes(app)
    return app


def _file_session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=_MAX_FILE_CONNECTIONS)
    return aiohttp.ClientSession(connector=connector, auto_decompress=False, trust_env=False)


def _announce(config: WorkerConfig, url: str, machine: Machine, holdings: Holdings) -> Announce:
    return Announce(
        url=url,
        hostname=socket.gethostname(),
        version=program_version(),
        device=machine.report(),
        epoch=holdings.epoch,
        spans=holdings.statuses,
        files=holdings.files,
        pinned_model=config.pinned_model,
        pinned_blocks=config.pinned_blocks,
    )


def _heartbeat(engine: Engine, data_plane: DataPlane) -> Heartbeat:
    stats = engine.stats()
    hop_p50_s, hop_p99_s = data_plane.hop_quantiles_s(0.5, 0.99)
    return Heartbeat(
        n_sessions=stats.n_sessions,
        n_queued=stats.n_waiting_sessions,
        free_kv_bytes=max(0, stats.kv_free_bytes),
        decode_s_per_block=stats.decode_s_per_block,
        prefill_s_per_token_block=stats.prefill_s_per_token_per_block,
        round_trips_s=data_plane.round_trips_s,
        hop_p50_s=hop_p50_s,
        hop_p99_s=hop_p99_s,
        links=data_plane.links,
    )
