"""Logs: fields that hold secrets are replaced, counts of tokens are not."""

from __future__ import annotations

import json

import pytest
import structlog

from protocol.logs import configure_logs


def test_secrets_are_redacted_and_counts_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("test")
    try:
        structlog.get_logger().info(
            "joined", join_secret="s3cret", n_prompt_tokens=7, ticket="t1cket", url="https://x"
        )
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    line = json.loads(capsys.readouterr().err)
    assert line["join_secret"] == line["ticket"] == "[redacted]"
    assert (line["event"], line["n_prompt_tokens"], line["url"], line["program"]) == (
        "joined",
        7,
        "https://x",
        "test",
    )


def test_debug_lines_are_only_there_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        configure_logs("test")
        structlog.get_logger().debug("quiet")
        configure_logs("test", is_verbose=True)
        structlog.get_logger().debug("loud")
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    err = capsys.readouterr().err
    assert "quiet" not in err
    assert "loud" in err
