"""Errors keep their class over the wire and never say more than their message."""

from __future__ import annotations

import subprocess
import sys

import pytest

from protocol import coordinator_errors, errors, exit_codes
from protocol.error_forms import error_fields, error_from_body
from protocol.errors import BrigadeError, ErrorBody, InternalError, ServiceError


def all_classes(root: type[BrigadeError] = BrigadeError) -> list[type[BrigadeError]]:
    """Those that travel: a program's own kinds, made of these, don't."""
    found = [c for child in root.__subclasses__() for c in (child, *all_classes(child))]
    return [c for c in found if c.__module__ in (errors.__name__, coordinator_errors.__name__)]


@pytest.mark.parametrize("cls", all_classes(), ids=lambda c: c.__name__)
def test_an_error_comes_off_the_wire_as_it_went_on(cls: type[BrigadeError]) -> None:
    sent = cls("17 of 3", retry_after_s=2.5)
    got = error_from_body(sent.body())
    assert (got.code, got.message, got.retry_after_s) == (sent.code, "17 of 3", 2.5)
    assert got.status == sent.status
    assert got.exit_code != exit_codes.EXIT_OK
    assert 400 <= cls.status < 600


def test_codes_are_unique_up_to_a_class_and_its_own_general_form() -> None:
    by_code: dict[str, type[BrigadeError]] = {}
    for cls in all_classes():
        known = by_code.setdefault(cls.code, cls)
        assert issubclass(cls, known), f"{cls.__name__} and {known.__name__} share {cls.code}"


def test_an_unknown_code_is_an_internal_error() -> None:
    got = error_from_body(ErrorBody(code="from-the-future", message="what"))
    assert type(got) is InternalError
    assert type(error_from_body(ServiceError("x").body())) is InternalError


def test_log_fields_are_the_code_and_the_sentence() -> None:
    assert error_fields(InternalError("x")) == {"error_code": "internal", "error_message": "x"}


def test_who_reads_errors_off_the_wire_knows_those_of_coordinators_too() -> None:
    """Where nothing else imports them, as in a client."""
    program = (
        "from protocol.error_forms import error_from_body; from protocol.errors import ErrorBody\n"
        "print(error_from_body(ErrorBody(code='database_away', message='x')).status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.strip() == "503"
