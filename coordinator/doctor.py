"""What `coord doctor` looks at, in order: this machine, the coordinator that should answer, its workers and models.

Each check has its own deadline and its own end: a coordinator that is away, a damaged folder, that is what they
are for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import platform
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from yarl import URL

from coordinator.admin_client import AdminTarget
from coordinator.config import CoordinatorConfig
from coordinator.doctor_state import (
    certificates_finding,
    clock_finding,
    database_url_of,
    disk_finding,
    folder_finding,
    port_finding,
    postgresql_finding,
    secrets_finding,
    sqlite_finding,
)
from protocol.checks import Check, Finding, broken, checked, doubtful, fine, in_thread, reason_of
from protocol.cluster_rest import ClusterStatus, WorkerInfo
from protocol.ids import WorkerId
from protocol.pinned_http import pinned_session
from protocol.rest import ModelInfo
from protocol.tls import client_context, worker_name
from protocol.version import program_version

MAX_DIALS = 16
"""Workers dialled at the same time."""
_SHOWN_ID_CHARS = 12
_ANOTHER_FOLDER = "name the coordinator's folder: --state FOLDER"
_FIREWALL = (
    "on the worker's machine: see that the worker runs, open its port in the firewall, and have it advertise an "
    "address that others reach (worker join --listen HOST:PORT --advertise https://HOST:PORT)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """The coordinator that is looked at."""

    settings: Callable[[], CoordinatorConfig]
    """Raises what is wrong with the options or the environment."""
    state: Path
    database_url: str | None
    listen_host: str
    listen_port: int
    target: Callable[[], AdminTarget]
    """Raises why the coordinator can't be asked."""
    now: Callable[[], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What the running coordinator said."""

    url: str
    status: ClusterStatus
    ca_pem: str


async def examine(patient: Patient) -> list[Check]:
    """All checks."""
    answers: list[_Answer] = []

    async def ask() -> Finding:
        answers.append(await _asked(await in_thread(patient.target)))
        status = answers[0].status
        return fine(f"{status.coordinator_id} at {status.url}, version {status.version}, {status.database}")

    asked = await checked(
        "coordinator", ask, "start it: coord serve; or say which one: --url URL --admin-key-file FILE"
    )
    checks = await _checks_of_this_machine(patient, answers[0] if answers else None)
    checks.append(asked)
    if not answers:
        skipped = "not looked at: the coordinator doesn't answer"
        return [*checks, *(Check(name=name, status="warn", seen=skipped) for name in ("workers", "models"))]
    return checks + await _checks_of_the_cluster(answers[0])


async def _checks_of_this_machine(patient: Patient, answer: _Answer | None) -> list[Check]:
    root = patient.state.expanduser().absolute()
    folder_mend = "change its owner or permissions, or name another folder (--state)"
    return [
        await checked("versions", _versions, "install Brigade again"),
        await checked("settings", lambda: _settings(patient), "change the option or the variable that is named"),
        await checked("state folder", lambda: in_thread(lambda: folder_finding(root)), folder_mend),
        await checked("secrets", lambda: in_thread(lambda: secrets_finding(root)), folder_mend),
        await checked(
            "database", lambda: _database(root, patient.database_url), "check --database-url, and the disk"
        ),
        await checked("disk room", lambda: in_thread(lambda: disk_finding(root)), _ANOTHER_FOLDER),
        await checked(
            "certificates", lambda: in_thread(lambda: certificates_finding(root, patient.now())), _ANOTHER_FOLDER
        ),
        await checked("clock", lambda: in_thread(lambda: clock_finding(root, patient.now())), _ANOTHER_FOLDER),
        await checked(
            "port",
            lambda: _port(patient, answer),
            "choose another address: coord serve --listen HOST:PORT",
        ),
    ]


async def _versions() -> Finding:
    return fine(f"Python {platform.python_version()}, brigade {program_version()}")


async def _settings(patient: Patient) -> Finding:
    await in_thread(patient.settings)
    return fine("the options and the environment can be used")


async def _port(patient: Patient, answer: _Answer | None) -> Finding:
    if answer is not None:
        return fine(f"the coordinator answers at {answer.url}")
    return await in_thread(lambda: port_finding(patient.listen_host, patient.listen_port))


async def _database(root: Path, named: str | None) -> Finding:
    url = database_url_of(root, named)
    if url.get_backend_name() == "sqlite":
        return await in_thread(lambda: sqlite_finding(url))
    return await postgresql_finding(url)


async def _asked(target: AdminTarget) -> _Answer:
    async with pinned_session(target.url, target.key) as session:
        return _Answer(
            url=target.url, status=await session.get("/admin/v1/status", ClusterStatus), ca_pem=session.ca_pem
        )


async def _checks_of_the_cluster(answer: _Answer) -> list[Check]:
    status = answer.status
    present = [
        worker for worker in status.workers if worker.url and worker.state not in ("lost", "gone", "enrolling")
    ]
    checks = [
        _named("database in use", in_use_finding(status.database_problem)),
        _named("address", address_finding(status.url, [worker.url for worker in present])),
        _named("worker versions", versions_finding(status.version, present)),
    ]
    checks += await dialled(present, answer.ca_pem)
    checks += [
        _named(_shown(worker), doubtful(f"lost: {worker.reason}", "start it again, if it is to come back"))
        for worker in status.workers
        if worker.state == "lost"
    ]
    if not present:
        how = f"worker join {status.url} --secret-file FILE"
        checks.append(_named("workers", doubtful("no worker is connected", how)))
    checks += [_named(f"model {model.name}", model_finding(model)) for model in status.models]
    if not status.models:
        checks.append(_named("models", doubtful("no model was added", "coord model add NAME SOURCE")))
    return checks


def in_use_finding(problem: str) -> Finding:
    """Whether the coordinator can use its database; that the file or server is well says nothing of that."""
    if problem:
        return broken(f"the coordinator can't use it: {problem}", "mend it; what runs goes on meanwhile")
    return fine("the coordinator reads and writes it")


def model_finding(model: ModelInfo) -> Finding:
    """Whether a model can be used, by as many workers as it is to be."""
    seen, is_ready = f"{model.n_blocks} blocks, ready", model.state == "ready"
    if is_ready and not model.reason:
        return fine(seen)
    mend = "add workers, or wait" if is_ready else "add workers or memory, or wait if blocks are on their way"
    if model.n_missing_files:
        mend = f"coord model add {model.name} SOURCE, from the source that it was made of"
    if not is_ready:
        return broken(f"{model.state}: {model.reason}", mend)
    return doubtful(f"{seen}; {model.reason}", mend)


def address_finding(url: str, worker_urls: Sequence[str]) -> Finding:
    """Whether the address that the coordinator goes by can be one for its workers' machines."""
    remote = [worker_url for worker_url in worker_urls if not _is_loopback(worker_url)]
    if not _is_loopback(url):
        return fine(f"{url}, not loopback: other machines may reach it")
    if remote:
        return broken(
            f"{url} is loopback, but {len(remote)} workers are on other addresses ({remote[0]})",
            "coord serve --listen 0.0.0.0:PORT --public-url https://THIS-HOST:PORT",
        )
    return fine(f"{url} is loopback: only this machine reaches it, and all workers are here")


def versions_finding(ours: str, workers: Sequence[WorkerInfo]) -> Finding:
    """Whether all workers run the coordinator's version."""
    others = sorted({worker.version or "unknown" for worker in workers} - {ours})
    if not others:
        return fine(f"{len(workers)} workers, all of version {ours} as the coordinator")
    n_others = sum(worker.version != ours for worker in workers)
    return doubtful(
        f"{n_others} of {len(workers)} workers run {', '.join(others)}, the coordinator {ours}",
        "install the same version everywhere; restart the workers one after the other",
    )


async def dialled(workers: Sequence[WorkerInfo], ca_pem: str) -> list[Check]:
    """Connect to each worker as a client would: over TLS, at the address that it advertises."""
    context = await asyncio.to_thread(client_context, ca_pem)
    slots = asyncio.Semaphore(MAX_DIALS)

    async def dial(worker: WorkerInfo) -> Check:
        async with slots:
            return await checked(_shown(worker), lambda: _dial_finding(worker, context), _FIREWALL)

    async with asyncio.TaskGroup() as tasks:
        dials = [tasks.create_task(dial(worker), name=f"dial-{worker.worker_id}") for worker in workers]
    return [task.result() for task in dials]


async def _dial_finding(worker: WorkerInfo, context: ssl.SSLContext) -> Finding:
    url, loop = URL(worker.url), asyncio.get_running_loop()
    began_s = loop.time()
    try:
        _, writer = await asyncio.open_connection(
            url.host, url.port, ssl=context, server_hostname=worker_name(WorkerId(worker.worker_id))
        )
    except ssl.SSLCertVerificationError as exc:
        return broken(f"another program answers at {worker.url}: {exc.verify_message}", _FIREWALL)
    except OSError as exc:
        return broken(f"{worker.url} can't be reached from here: {reason_of(exc)}", _FIREWALL)
    writer.transport.abort()
    return fine(f"{worker.state}; reached at {worker.url} within {1000 * (loop.time() - began_s):.0f} ms")


def _is_loopback(url: str) -> bool:
    host = URL(url).host or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(worker: WorkerInfo) -> str:
    return f"worker {worker.worker_id[:_SHOWN_ID_CHARS]} ({worker.hostname})"


def _named(name: str, found: Finding) -> Check:
    return Check(name=name, status=found.status, seen=found.seen, mend=found.mend)
