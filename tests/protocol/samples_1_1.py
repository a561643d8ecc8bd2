"""One of everything that protocol 1.1 added to what `tests.protocol.samples` has, with values of 1.1.

`python -m tests.protocol.samples_1_1 FOLDER` writes all that 1.1 has as the `protocol` package that it finds
encodes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from msgspec.structs import replace

from protocol.cluster_rest import ChangeModelRequest, ClusterStatus, WorkerInfo
from protocol.errors import ErrorBody
from protocol.ids import FileHash, WorkerId
from protocol.messages import CloseSession
from protocol.rest import ErrorAnswer, HopFailure, ModelInfo, RouteRequest
from protocol.worker_rest import BadSource
from tests.protocol import samples
from tests.protocol.samples import HASH, ONE, OTHER, SESSION, Samples

_MODEL: ModelInfo = replace(samples.SAMPLES.bodies["model-info"], n_replicas=2)
_WORKER: WorkerInfo = replace(samples.SAMPLES.bodies["worker-info"], version="0.1.0")
_STATUS: ClusterStatus = samples.SAMPLES.bodies["cluster-status"]
_ROUTE: RouteRequest = samples.SAMPLES.bodies["route-request"]

ADDED = Samples(
    frames={
        "close-blaming": (CloseSession(session_id=SESSION, reason="failed", worker_id=WorkerId(OTHER)), b""),
    },
    to_coordinator={},
    to_worker={},
    claims={
        "route-ticket-continuing": replace(samples.SAMPLES.claims["route-ticket-full"], continues=SESSION),
    },
    bodies={
        "error-loading": ErrorAnswer(
            error=ErrorBody(code="model_loading", message="on its way", retry_after_s=2.0)
        ),
        "error-lease": ErrorAnswer(error=ErrorBody(code="lease", message="another coordinator has the database")),
        "model-info-replicas": _MODEL,
        "cluster-status-full": replace(
            _STATUS, models=(_MODEL,), workers=(_WORKER,), database_problem="it is locked"
        ),
        "worker-info-version": _WORKER,
        "route-request-continuing": replace(
            _ROUTE, continues=SESSION, failure=HopFailure(code="stalled"), wait_s=5.0
        ),
        "route-request-blaming": replace(
            _ROUTE, continues=SESSION, failure=HopFailure(worker_id=ONE, noticed_by=OTHER, code="hop_lost")
        ),
        "add-model-request-replicas": replace(samples.SAMPLES.bodies["add-model-request"], n_replicas=3),
        "change-model-request": ChangeModelRequest(n_replicas=2),
        "bad-source": BadSource(worker_id=ONE, file=FileHash(HASH)),
    },
)
SAMPLES = samples.SAMPLES | ADDED
"""All that 1.1 has."""

if __name__ == "__main__":
    SAMPLES.write(Path(sys.argv[1]))
