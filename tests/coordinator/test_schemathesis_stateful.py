"""What one answer tells is used in the next request: still no 500, and no status or body that isn't described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from schemathesis.checks import CHECKS

from tests.coordinator.test_schemathesis import KEPT_CHECKS
from tests.support.coord_process import served

N_CHAINS = 60
N_STEPS = 6
"""A sample that CI has time for. The links between operations are inferred from their schemas."""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_answers_to_what_follows_from_answers_are_as_described(tmp_path: Path) -> None:
    with served(tmp_path / "state") as running, requests.Session() as session:
        session.trust_env = False  # else another CA may be named there
        session.verify = str(running.state / "ca.pem")
        session.headers["Authorization"] = f"Bearer {(running.state / 'admin.key').read_text().strip()}"
        document = json.loads(session.get(running.url + "/openapi.json").content)
        schema = schemathesis.openapi.from_dict(document)
        checks, followed = CHECKS.get_by_names(KEPT_CHECKS), set[str]()

        class Chain(schema.as_state_machine()):  # type: ignore[misc]
            def get_call_kwargs(self, _case: Any) -> dict[str, Any]:
                return {"base_url": running.url, "session": session, "verify": session.verify, "timeout": 20}

            def validate_response(self, response: Any, case: Any, **_: Any) -> None:
                if response.status_code < 300:
                    followed.add(case.operation.label)
                case.validate_response(response, checks=checks)

        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Chain,
            settings=settings(
                max_examples=N_CHAINS,
                stateful_step_count=N_STEPS,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert any("{" in label for label in followed), f"nothing that was made was found again: {sorted(followed)}"
