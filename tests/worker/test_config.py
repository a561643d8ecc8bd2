from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import secrets
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError
from protocol.ids import InviteId
from protocol.invites import Invite
from worker.config import WorkerConfig, listed_urls, listen_address, size_from_text

SECRET = secrets.token_urlsafe(32)


def config(**changes: Any) -> WorkerConfig:
    options: dict[str, Any] = {
        "coordinator_urls": ("https://10.0.0.1:7400",),
        "environment": {},
        "secret": SECRET,
        "state": Path("/nowhere"),
    }
    return WorkerConfig.from_env(**(options | changes))


def test_secret_comes_from_the_environment() -> None:
    assert config(secret=None, environment={"BRIGADE_SECRET": SECRET + "\n"}).secret == SECRET


def test_secret_comes_from_a_file_before_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    environment = {"BRIGADE_SECRET": secrets.token_urlsafe(32)}
    assert config(secret=None, secret_file=path, environment=environment).secret == SECRET


@pytest.mark.parametrize("secret", ["", "password", "0" * 64, "changeme" * 8])
def test_a_weak_secret_stops_the_program_and_is_not_repeated(secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(secret=None, environment={"BRIGADE_SECRET": secret})
    assert not secret or secret not in caught.value.message


def test_without_a_secret_it_says_where_to_get_one() -> None:
    with pytest.raises(ConfigError, match="BRIGADE_SECRET"):
        config(secret=None)


def test_secret_twice_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both"):
        config(secret_file=tmp_path)
    with pytest.raises(ConfigError, match="can't be read"):
        config(secret=None, secret_file=tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff" * 40)
    with pytest.raises(ConfigError, match="no text"):
        config(secret=None, secret_file=tmp_path / "binary")


def test_a_secret_that_came_through_a_pipe_is_not_read_again(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, SECRET.encode())
        os.close(writing)
        given = config(secret=None, secret_file=Path(f"/dev/fd/{reading}"))
        assert given.join_secret() == given.join_secret() == SECRET
    finally:
        os.close(reading)


def test_repr_hides_the_secret() -> None:
    assert SECRET not in repr(config())


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://10.0.0.1:7400", "TLS only"),
        ("10.0.0.1:7400", "https://HOST:PORT"),
        ("ftp://10.0.0.1", "https://HOST:PORT"),
        ("https://", "https://HOST:PORT"),
        ("https://host:99999", "https://HOST:PORT"),
        ("https://user:pw@host", "more than a host"),
        ("https://host/path", "more than a host"),
    ],
)
def test_other_addresses_than_https_are_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config(coordinator_urls=(url,))
    with pytest.raises(ConfigError, match=why):
        config(advertise_url=url)


@pytest.mark.parametrize(
    "changes",
    [{"listen_port": 70_000}, {"n_threads": 0}, {"chunk_tokens": 0}],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        config(**changes)


def test_state_folder_comes_from_option_environment_or_user(tmp_path: Path) -> None:
    assert config(state=tmp_path).state == tmp_path
    assert config(state=None, environment={"BRIGADE_WORKER_STATE": "/x"}).state == Path("/x")
    assert config(state=None).state.parts[-2:] == ("brigade", "worker")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("8GiB", 8 * 2**30), ("500MB", 500_000_000), ("1.5k", 1500), ("12", 12), (" 2 TiB ", 2 * 2**40), ("3b", 3)],
)
def test_sizes_are_read(text: str, n_bytes: int) -> None:
    assert size_from_text(text, "--memory") == n_bytes


@pytest.mark.parametrize("text", ["", "0", "-1", "1e9", "lots", "8 GiBs", "nan"])
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        size_from_text(text, "--memory")


@pytest.mark.parametrize(
    ("text", "address"),
    [("0.0.0.0", ("0.0.0.0", 0)), ("10.0.0.2:80", ("10.0.0.2", 80)), ("[::1]:7", ("::1", 7))],
)
def test_listen_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    assert listen_address(text) == address


@pytest.mark.parametrize("text", ["", "a:b", "host:70000", "u@host", "host/path", ":80"])
def test_other_texts_are_no_listen_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="--listen"):
        listen_address(text)


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert size_from_text(text, "--memory") >= 1
    with contextlib.suppress(ConfigError):
        listen_address(text)


def test_addresses_are_listed_with_spaces_or_commas() -> None:
    one, two, three = (f"https://10.0.0.{n}:7400" for n in (1, 2, 3))
    assert listed_urls([f"{one}, {two},", three, one]) == (one, two, three)
    assert listed_urls([]) == ()
    with pytest.raises(ConfigError, match="no coordinator's address"):
        listed_urls([","])


def test_an_invite_says_where_to_join_unless_addresses_are_given(tmp_path: Path) -> None:
    invite = Invite(
        invite_id=InviteId("0123abcd"),
        ca_fingerprint="ab" * 32,
        urls=("https://10.0.0.2:7400", "https://[fd00::2]:7400"),
        key=secrets.token_bytes(32),
    )
    file = tmp_path / "invite"
    file.write_text(invite.text() + "\n")
    text = invite.text()
    for said in ({"invite_file": file}, {"invite": text}, {"environment": {"BRIGADE_INVITE": text}}):
        found = config(secret=None, coordinator_urls=(), **said)
        assert (found.coordinator_urls, found.secret) == (invite.urls, invite)
        assert config(secret=None, **said).coordinator_urls == ("https://10.0.0.1:7400",)
        assert base64_of(invite.key) not in repr(found)
    later = dataclasses.replace(invite, key=secrets.token_bytes(32))
    from_file = config(secret=None, invite_file=file)
    file.write_text(later.text())
    assert from_file.join_secret() == later, "the file is read anew at each joining"


def base64_of(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode()[:43]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"secret": SECRET, "invite": "x"}, "--secret and --invite are both given"),
        (
            {"secret": None, "environment": {"BRIGADE_SECRET": SECRET, "BRIGADE_INVITE": "x"}},
            "BRIGADE_INVITE are both",
        ),
        ({"secret": None, "invite": "brigade-invite.0123abcd"}, "copy it whole"),
        ({"secret": None, "invite_file": Path("/nowhere/invite")}, "--invite-file /nowhere/invite can't be read"),
        ({"secret": None}, "`coord invite` prints it"),
    ],
)
def test_what_is_wrong_with_an_invite_is_said(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config(**given)
