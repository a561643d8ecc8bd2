"""Class 8. Defences: `hmac.compare_digest` wherever secrets are compared; one answer to all of a stranger."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator
from protocol.api_key import api_key_from_text
from protocol.handshake import PROOF_HEADER
from protocol.ids import KeyId
from protocol.key_rest import CreatedKey, CreateKeyRequest
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, proven_join

ROOT = Path(__file__).parents[2]
SECRET_NAME = re.compile(r"(^|_)(secret|secret_hash|proof|mac|signature|password|token|api_key|ticket_key|hmac)$")


ITS_OWN = {"credentials.ticket_key != self.current.ticket_key", "old.signature == event.signature"}
"""Nobody's guess: a worker compares its own new key with its own old one, and a model's signature is public."""


def compared_by_equality(source: str) -> Iterator[int]:
    """Lines that compare something named like a secret by `==`, `!=` or `in`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq | ast.In) for op in node.ops):
            names = (_name(side) for side in (node.left, *node.comparators))
            if any(SECRET_NAME.search(name) for name in names) and ast.unparse(node) not in ITS_OWN:
                yield node.lineno


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=func):
            return _name(func)
    return ""


@pytest.mark.parametrize(
    "source", ["proof == given", "x.secret != y", "join_proof(k) == p", "stored.secret_hash == shown"]
)
def test_the_scan_finds_what_it_looks_for(source: str) -> None:
    assert list(compared_by_equality(source)) == [1]


def test_no_secret_is_compared_by_equality() -> None:
    """Fails if `compare_digest` is replaced by `==`."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for room in ("coordinator", "worker", "client", "protocol")
        for path in sorted((ROOT / room).rglob("*.py"))
        for line in compared_by_equality(path.read_text())
    ]
    assert found == []
    for path, n_uses in (("protocol/handshake.py", 1), ("coordinator/credentials.py", 2)):
        assert (ROOT / path).read_text().count("hmac.compare_digest(") >= n_uses


async def test_a_stranger_cannot_tell_which_keys_exist(tmp_path: Path) -> None:
    """Fails if unknown, wrong and revoked keys, or those of another cluster, are answered differently."""
    async with running_coordinator(tmp_path) as coordinator:
        revoked = await _revoked_key(coordinator)
        good = key_of(coordinator, "client")
        shown = api_key_from_text(good)
        tries = [
            good.replace(shown.secret, "A" * 43),
            good.replace(shown.key_id, KeyId("zzzzzzzz")),
            good.replace(shown.ca_fingerprint, "0" * 64),
            good.replace("client", "admin", 1),
            revoked,
        ]
        answers = set()
        for text in tries:
            async with http_session(coordinator, text) as http:
                answer = await http.ask("GET", "/v1/models")
                answers.add((answer.status, answer.body, answer.headers.get("WWW-Authenticate")))
        assert len(answers) == 1
        assert answers.pop()[0] == 401


async def _revoked_key(coordinator: RunningCoordinator) -> str:
    async with http_session(coordinator, key_of(coordinator, "admin")) as operator:
        made = (await operator.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="x"))).read(CreatedKey)
        await operator.ask("DELETE", f"/admin/v1/keys/{made.key_id}")
    return made.key


async def test_a_stranger_cannot_tell_which_challenges_and_workers_exist(tmp_path: Path) -> None:
    """Fails if anything about a join is looked at before its proof verifies, or said of one that doesn't."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        known = WorkerKey()
        first = await proven_join(http, coordinator, known)
        assert (await http.ask("POST", "/v1/join", first.body, headers=first.headers())).status == 200
        wrong = {PROOF_HEADER: "0" * 64}
        tries = [
            (first.body, first.headers()),  # used
            ((await proven_join(http, coordinator, known)).body, wrong),
            ((await proven_join(http, coordinator, WorkerKey())).body, wrong),
            ((await proven_join(http, coordinator, known, time_s=0.0)).body, wrong),
            ((await proven_join(http, coordinator, known, certificate_request_pem="x")).body, wrong),
            ((await proven_join(http, coordinator, known, server_nonce="0" * 64)).body, wrong),
        ]
        answers = [await http.ask("POST", "/v1/join", body, headers=headers) for body, headers in tries]
        assert len({(answer.status, answer.body) for answer in answers}) == 1
        assert answers[0].status == 401
