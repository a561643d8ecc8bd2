"""Logs: one event a line on standard error, for people on a terminal, JSON elsewhere. Secrets never get in.

Field names are the domain's words (worker_id, session_id, model, revision, epoch, url, error_code). Values of
fields whose names say secret are replaced, whoever logs them; control characters are shown, never obeyed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET_FIELDS = ("secret", "token", "ticket", "proof", "password", "api_key", "prompt", "text", "authorization")
_COUNTS = ("n_", "max_")


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in event:
        if name.startswith(_COUNTS) or name in ("event", "level", "timestamp"):
            continue
        if any(word in name.lower() for word in _SECRET_FIELDS):
            event[name] = "[redacted]"
    return event


def _make_harmless(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What strangers wrote can neither begin a line of its own nor be obeyed by a terminal."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = "".join(_visible(character, is_traceback=name == "exception") for character in value)
    return event


def _visible(character: str, *, is_traceback: bool) -> str:
    if character.isprintable() or (is_traceback and character == "\n"):
        return character
    return character.encode("unicode_escape").decode()


def configure_logs(program: str, *, is_verbose: bool = False) -> None:
    """Set structlog up for a program. Called once, by the CLI; a library user's own set-up is left alone."""
    renderer: Any
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    else:
        renderer = structlog.processors.JSONRenderer(sort_keys=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _redact,
            structlog.processors.format_exc_info,
            _make_harmless,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if is_verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(program=program)
