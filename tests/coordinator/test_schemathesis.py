"""What the OpenAPI document promises is kept, whatever is sent: no 500, no status or body that isn't described."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode

from tests.support.coord_process import Served, served

N_EXAMPLES = 6
"""Of each kind (as described, and not), of each operation: a sample that CI has time for."""
KEPT_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("openapi") / "state") as running:
        yield running


@pytest.fixture(scope="module")
def admin(coordinator: Served) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # else another CA may be named there
        session.verify = str(coordinator.state / "ca.pem")
        session.headers["Authorization"] = f"Bearer {(coordinator.state / 'admin.key').read_text().strip()}"
        yield session


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_as_described(coordinator: Served, admin: requests.Session, mode: GenerationMode) -> None:
    document = json.loads(admin.get(coordinator.url + "/openapi.json").content)
    victim = admin.post(coordinator.url + "/admin/v1/keys", json={"name": "victim"}).json()["key_id"]
    schema = schemathesis.openapi.from_dict(document)
    checks = CHECKS.get_by_names(KEPT_CHECKS)
    failures: list[str] = []

    def check(operation: Any) -> None:
        @settings(
            max_examples=N_EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            if "key_id" in case.path_parameters:
                case.path_parameters["key_id"] = victim
            answer = case.call(base_url=coordinator.url, session=admin, verify=admin.verify, timeout=20)
            case.validate_response(answer, checks=checks)

        try:
            ask()
        except BaseExceptionGroup as group:
            failures.extend(f"{operation.label}: {failure}" for failure in group.exceptions)

    for found in schema.get_all_operations():
        operation = found.ok()
        answers = operation.definition.raw["responses"]
        is_endless = "text/event-stream" in answers.get("200", {}).get("content", {})
        if "101" not in answers and not is_endless:  # a WebSocket is no HTTP once it is open
            check(operation)
    assert failures == []
