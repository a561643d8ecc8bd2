from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator.cli import main
from coordinator.cli_audits import outcome_words
from coordinator.config import CoordinatorConfig
from protocol.audit_rest import AuditInfo, AuditOutcome
from protocol.errors import ConfigError
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.support.coordinators import running_coordinator
from tests.support.scripted_worker import joined_worker


@pytest.mark.parametrize("share", ["-0.1", "0.6", "nan", "a lot"])
def test_a_share_that_cannot_be_is_refused(share: str) -> None:
    with pytest.raises(ConfigError, match=r"BRIGADE_AUDIT_SHARE is .*between 0 .* and 0\.5"):
        CoordinatorConfig.from_env({"BRIGADE_AUDIT_SHARE": share})
    assert CoordinatorConfig.from_env({}).audit_share == 0.01
    assert CoordinatorConfig.from_env({"BRIGADE_AUDIT_SHARE": "0"}).audit_share == 0.0
    assert CoordinatorConfig.from_env({"BRIGADE_AUDIT_SHARE": "0"}, audit_share=0.2).audit_share == 0.2


async def test_the_commands_say_when_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:

        def said(*arguments: str) -> tuple[int, str]:
            with pytest.raises(SystemExit) as caught:
                main([*arguments, "--state", str(tmp_path / "state")])
            return int(caught.value.code or 0), "".join(capsys.readouterr())

        code, text = await asyncio.to_thread(said, "trust", "audits")
        assert (code, "No audits yet" in text, "--audit-share 0" in text) == (0, True, True)
        code, text = await asyncio.to_thread(said, "trust", "audit", worker.worker_id)
        assert code != 0
        assert "serves no blocks now" in text
        code, text = await asyncio.to_thread(said, "trust", "audits", "--json")
        assert '"audits"' in text


@pytest.mark.parametrize(
    ("of_partner", "words"),
    [
        ("suspected", "is suspected, and so is the other one"),
        ("passed", "is suspected; the other one passed"),
        ("undecided", "is suspected"),
    ],
)
def test_of_the_other_one_is_said_what_was_found_of_it(of_partner: AuditOutcome, words: str) -> None:
    found = AuditInfo(
        at="2026-11-22T01:02:03+00:00",
        worker_id=WorkerId("w-a"),
        model=ModelName("m"),
        blocks=BlockRange(0, 4),
        partner="w-b",
        referee="",
        outcome="suspected",
        partner_outcome=of_partner,
        difference=0.25,
        allowed=0.01,
        reason="",
    )
    assert outcome_words(found) == words
