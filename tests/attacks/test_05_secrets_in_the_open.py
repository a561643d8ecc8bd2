"""Class 5. Defences: files instead of arguments, redacted logs, reprs without secrets, hashes in the database."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from demo.local_cluster import LocalCluster
from protocol.api_key import api_key_from_text
from protocol.exit_codes import EXIT_AUTH
from protocol.ids import WorkerId
from protocol.tickets import SessionToken, ticket_key
from tests.support.forked_program import ForkedCommands
from tests.support.tiny_cluster import TINY, add_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
PROMPT = "the very secret prompt"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with ForkedCommands(tmp_path_factory.mktemp("secrets")) as cluster:
        cluster.start_coordinator("--verbose")
        add_tiny_model(cluster)
        cluster.start_worker("worker", "--precision", "float32", "--verbose")
        cluster.wait_for_workers(1)
        cluster.wait_until_ready(TINY)
        for rotation in ("rotate", "rotate-signing-key"):  # so that there are older ones to be found as well
            assert cluster.run("coord", "secret", rotation).returncode == 0
        yield cluster


def secrets_of(cluster: LocalCluster) -> dict[str, bytes]:
    """Everything that must not be seen, as it would be seen: text, hex, base64."""
    state = cluster.state
    found = {name: (state / name).read_text().strip() for name in ("join-secret", "admin.key", "client.key")}
    for i, older in enumerate(json.loads((state / "join-secrets-previous.json").read_text())):
        found[f"older join secret {i}"] = older["value"]
    for name in ("admin.key", "client.key"):
        found[f"secret part of {name}"] = api_key_from_text(found[name]).secret
    worker_id = WorkerId(cluster.status()["workers"][0]["worker_id"])
    for i, key in enumerate(json.loads((state / "signing-keys.json").read_text())):
        found[f"signing key {i}"] = key["value"]
        raw = ticket_key(bytes.fromhex(key["value"]), worker_id)
        found[f"ticket key {i}"] = raw.hex()
        found[f"ticket key {i}, base64"] = base64.b64encode(raw).decode()[:40]
        found[f"ticket key {i}, repr"] = repr(raw)[2:-1]
    # nobody but the worker has its session token; any token begins like this
    token = msgspec.msgpack.encode(SessionToken(expires_at_s=0.0, worker_id=worker_id))
    found["a session token"] = base64.urlsafe_b64encode(token[: token.index(b"worker-session") + 14]).decode()[:16]
    found["a private key"] = "PRIVATE KEY"
    return {name: text.encode() for name, text in found.items()}


def check_clean(cluster: LocalCluster, seen: dict[str, bytes]) -> None:
    secrets = secrets_of(cluster)
    for where, data in seen.items():
        for what, secret in secrets.items():
            assert secret not in data, f"{what} is in {where}"


def test_the_ways_of_looking_find_what_they_look_for(cluster: LocalCluster) -> None:
    """So that the tests below can fail: each secret is found where it has to be."""
    secrets = secrets_of(cluster)
    kept = b"".join((cluster.state / name).read_bytes() for name in ("join-secret", "admin.key", "client.key"))
    for name in ("join-secret", "admin.key", "client.key", "secret part of admin.key"):
        assert secrets[name] in kept
    assert secrets["a private key"] in (cluster.folder / "worker" / "identity.key").read_bytes()
    token = SessionToken(expires_at_s=1.5, worker_id=WorkerId("w-x"))
    assert base64.urlsafe_b64encode(msgspec.msgpack.encode(token)).startswith(secrets["a session token"])


def test_not_in_the_arguments_of_any_process(cluster: LocalCluster) -> None:
    """Fails if a program takes a secret as an argument where a file is given, or starts another with one."""
    arguments = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_readable(path)]
    assert any(str(cluster.folder).encode() in line for line in arguments)
    check_clean(cluster, {"ps": b"\n".join(arguments)})


def _is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_not_in_logs_and_outputs_of_errors_and_successes(cluster: LocalCluster) -> None:
    """Fails if logs aren't redacted, or an error repeats what it was given. Prompts aren't logged either."""
    wrong_key = cluster.folder / "wrong.key"
    wrong_key.write_text((cluster.state / "admin.key").read_text().strip() + "0")
    other_secret = cluster.folder / "other-secret"
    other_secret.write_text((cluster.state / "admin.key").read_text())  # any long random text
    joining = ("worker", "join", cluster.url, "--secret-file", str(other_secret), "--verbose")
    commands = {
        "status": ("coord", "status"),
        "status --json": ("coord", "status", "--json"),
        "key list": ("coord", "key", "list", "--json"),
        "secret show": ("coord", "secret", "show"),
        "secret show --json": ("coord", "secret", "show", "--json"),
        "settings show": ("coord", "settings", "show"),
        "generate": ("client", "generate", PROMPT, "--model", TINY, "--max-tokens", "4", "--raw"),
        "an unknown model": ("client", "generate", PROMPT, "--model", "other"),
        "a mangled key": ("coord", "status", "--admin-key-file", str(wrong_key)),
        "a client's key": ("coord", "status", "--admin-key-file", str(cluster.state / "client.key")),
        "a wrong secret": (*joining, "--state", str(cluster.folder / "other-worker")),
    }
    done = {name: cluster.run(*command) for name, command in commands.items()}
    codes = {name: one.returncode for name, one in done.items()}
    assert codes["generate"] == 0, done["generate"].stderr
    assert [codes[name] for name in ("a mangled key", "a client's key", "a wrong secret")] == 3 * [EXIT_AUTH]
    seen = {name: one.stdout + one.stderr for name, one in done.items()}
    logs = {name: cluster.log(name).encode() for name in ("coordinator", "worker")}
    check_clean(cluster, seen | logs)
    for where, data in (seen | logs).items():
        assert where == "generate" or PROMPT.encode() not in data, where


def test_not_in_error_answers(cluster: LocalCluster) -> None:
    """Fails if an answer repeats the request's credentials, or shows the coordinator's insides."""
    key = (cluster.state / "client.key").read_text().strip()
    headers = ("-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json")
    bodies = ("{", json.dumps({"model": key, "n_prompt_tokens": 1, "max_tokens": 1}), "[" * 5000)
    seen = {}
    for i, body in enumerate(bodies):
        done = subprocess.run(
            ["curl", "-sk", "-i", *headers, "-d", body, f"{cluster.url}/v1/routes"],
            capture_output=True,
            check=True,
            timeout=20,
        )
        assert b'"error"' in done.stdout
        answered = done.stdout.replace(key[:80].encode(), b"", 1) if key in body else done.stdout
        seen[f"answer {i}"] = answered
        assert b"Traceback" not in done.stdout
    check_clean(cluster, seen)


PAGES = (
    "/metrics", "/", "/dashboard/", "/openapi.json", "/docs", "/v1/hello", "/v1/models", "/admin/v1/status",
    "/admin/v1/workers", "/admin/v1/keys", "/admin/v1/audit", "/admin/v1/trust", "/admin/v1/settings",
    "/admin/v1/secrets", "/admin/v1/invites", "/admin/v1/usage", "/admin/v1/generations",
)  # fmt: skip


def test_not_in_metrics_nor_on_any_page(cluster: LocalCluster) -> None:
    """Fails if a metric's label, the dashboard's HTML and scripts, or what they show, has a secret or a prompt."""
    done = cluster.run("client", "generate", PROMPT, "--model", TINY, "--max-tokens", "4", "--raw")
    assert done.returncode == 0, done.stderr
    page = answer_to(cluster, "/dashboard/")
    scripts = sorted(set(re.findall(r"/dashboard/assets/[^\"' >]+", page.decode())))
    assert scripts
    seen = {path: answer_to(cluster, path) for path in (*PAGES, *scripts)}
    assert b"brigade_" in seen["/metrics"]
    check_clean(cluster, seen)
    assert not [path for path, data in seen.items() if PROMPT.encode() in data]


def answer_to(cluster: LocalCluster, path: str) -> bytes:
    """What an operator is answered, headers included."""
    header = cluster.folder / "authorization"
    header.write_text(f"Authorization: Bearer {(cluster.state / 'admin.key').read_text().strip()}")
    done = subprocess.run(
        ["curl", "-skL", "-i", "-H", f"@{header}", f"{cluster.url}{path}"],
        capture_output=True,
        check=True,
        timeout=20,
    )
    header.unlink()
    assert b" 200 " in done.stdout, (path, done.stdout[:200])
    return done.stdout


@pytest.mark.parametrize("program", ["coordinator", "worker", "client"])
def test_a_defect_s_traceback_shows_no_values(program: str) -> None:
    """Fails if tracebacks have the values of variables in them: keys, secrets and prompts are among those."""
    script = f"""
from {program}.cli import app

@app.command("crash")
def crash() -> None:
    canary = "-".join(["a", "secret", "4711"])
    raise RuntimeError(f"a defect near {{len(canary)}} characters")

app(["crash"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=120)
    assert b"a defect near 13 characters" in done.stderr
    assert b"a-secret-4711" not in done.stdout + done.stderr


def test_not_in_the_database(cluster: LocalCluster) -> None:
    """Fails if keys are stored as they are instead of hashed."""
    files = {path.name: path.read_bytes() for path in cluster.state.glob("brigade.db*")}
    assert "brigade.db" in files
    check_clean(cluster, files)


def test_files_with_secrets_are_for_their_owner_alone(cluster: LocalCluster) -> None:
    """Fails if a file in a state folder is written with the usual mode."""
    for state in (cluster.state, cluster.folder / "worker"):
        assert state.stat().st_mode & 0o077 == 0
        for path in state.rglob("*"):
            holds = path.is_file() and any(secret in path.read_bytes() for secret in secrets_of_files(cluster))
            assert not holds or path.stat().st_mode & 0o077 == 0, path


def secrets_of_files(cluster: LocalCluster) -> tuple[bytes, ...]:
    return (
        *tuple((cluster.state / name).read_bytes().strip() for name in ("join-secret", "admin.key")),
        b"PRIVATE KEY",
    )
