from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from coordinator.config import CoordinatorConfig, checked_database_url
from coordinator.state_folder import default_state
from protocol.errors import ConfigError
from protocol.exit_codes import EXIT_USAGE

SECRET = secrets.token_urlsafe(32)


def test_defaults_listen_on_loopback_only() -> None:
    config = CoordinatorConfig.from_env({})
    assert (config.listen_host, config.listen_port) == ("127.0.0.1", 7400)
    assert config.secret is None
    assert config.database_url is None
    assert config.state.name == "coordinator"


def test_options_go_before_the_environment(tmp_path: Path) -> None:
    environ = {
        "BRIGADE_STATE": "/elsewhere",
        "BRIGADE_LISTEN": "10.0.0.1:1",
        "BRIGADE_SECRET": "short",
        "BRIGADE_DATABASE_URL": "sqlite:///x.db",
        "BRIGADE_PUBLIC_URL": "https://a:1",
    }
    config = CoordinatorConfig.from_env(
        environ,
        state=tmp_path,
        listen="[::1]:0",
        secret=SECRET,
        database_url="postgresql://u:p@h/d",
        public_url="https://b.example/",
    )
    assert (config.state, config.listen_host, config.listen_port) == (tmp_path, "::1", 0)
    assert (config.secret, config.public_url) == (SECRET, "https://b.example")
    assert config.database_url == "postgresql+asyncpg://u:p@h/d"


def test_what_blocks_are_given_out_for_is_one_of_four() -> None:
    assert CoordinatorConfig.from_env({}).placement == "balance"
    assert CoordinatorConfig.from_env({"BRIGADE_PLACEMENT": "spread"}).placement == "spread"
    assert CoordinatorConfig.from_env({"BRIGADE_PLACEMENT": "x"}, placement="one-stream").placement == "one-stream"
    with pytest.raises(ConfigError, match="'luck' isn't one of balance, one-stream, many-streams, spread"):
        CoordinatorConfig.from_env({}, placement="luck")


def test_whether_blocks_are_moved_by_themselves_is_auto_or_off() -> None:
    assert CoordinatorConfig.from_env({}).replan == "auto"
    assert CoordinatorConfig.from_env({"BRIGADE_REPLAN": "off"}).replan == "off"
    with pytest.raises(ConfigError, match="--replan 'maybe' isn't one of auto, off"):
        CoordinatorConfig.from_env({"BRIGADE_REPLAN": "off"}, replan="maybe")


def test_the_environment_is_read() -> None:
    environ = {"BRIGADE_STATE": "/srv/brigade", "BRIGADE_LISTEN": "0.0.0.0", "BRIGADE_SECRET": f" {SECRET}\n"}
    config = CoordinatorConfig.from_env(environ)
    assert (config.state, config.listen_host, config.listen_port) == (Path("/srv/brigade"), "0.0.0.0", 7400)
    assert config.secret == SECRET
    assert default_state(environ) == Path("/srv/brigade")


@pytest.mark.parametrize("secret", ["", "   ", "default", "changeme" * 8, "0" * 64, "x"])
def test_a_weak_secret_stops_the_program(secret: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(secret)
    with pytest.raises(ConfigError, match="join secret") as caught:
        CoordinatorConfig.from_env({}, secret=secret)
    assert caught.value.exit_code == EXIT_USAGE
    with pytest.raises(ConfigError, match="join secret"):
        CoordinatorConfig.from_env({}, secret_file=file)
    with pytest.raises(ConfigError, match="join secret"):
        CoordinatorConfig.from_env({"BRIGADE_SECRET": secret})
    assert len(secret.strip()) < 4 or secret not in str(caught.value)


def test_a_secret_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with pytest.raises(ConfigError, match="No such file"):
        CoordinatorConfig.from_env({}, secret_file=file)
    file.write_bytes(b"\xff\xfe" * 40)
    with pytest.raises(ConfigError, match="isn't text"):
        CoordinatorConfig.from_env({}, secret_file=file)
    file.write_bytes(b"a" * 70_000)
    with pytest.raises(ConfigError, match="over 65536 bytes"):
        CoordinatorConfig.from_env({}, secret_file=file)
    file.write_text(SECRET + "\n")
    assert CoordinatorConfig.from_env({}, secret_file=file).secret == SECRET
    with pytest.raises(ConfigError, match="give one"):
        CoordinatorConfig.from_env({}, secret_file=file, secret=SECRET)


def test_the_repr_shows_no_secret() -> None:
    config = CoordinatorConfig.from_env({}, secret=SECRET, database_url="postgresql://user:hunter2@host/db")
    assert SECRET not in repr(config)
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    "text", ["nonsense", "mysql://user:hunter2@host/db", "postgresql://u:hunter2@h:port/d", "://", "sqlite"]
)
def test_bad_database_urls_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(ConfigError, match="database") as caught:
        checked_database_url(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["sqlite://", "sqlite:///", "sqlite+aiosqlite:///:memory:"])
def test_a_database_that_would_not_last_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="needs a file"):
        checked_database_url(text)


@pytest.mark.parametrize(
    "text", ["http://a:1", "https://", "ftp://a", "https://u:p@a", "https://a/path", "https://a:99999"]
)
def test_bad_public_urls(text: str) -> None:
    with pytest.raises(ConfigError, match="https://host:port"):
        CoordinatorConfig.from_env({}, public_url=text)


def test_fewer_bits_can_be_forbidden() -> None:
    assert CoordinatorConfig.from_env({}).auto_quantize
    assert not CoordinatorConfig.from_env({"BRIGADE_AUTO_QUANTIZE": "off"}).auto_quantize
    assert CoordinatorConfig.from_env({"BRIGADE_AUTO_QUANTIZE": "off"}, auto_quantize="on").auto_quantize
    with pytest.raises(ConfigError, match="--auto-quantize 'never' isn't one of on, off"):
        CoordinatorConfig.from_env({}, auto_quantize="never")


def test_it_is_announced_unless_that_is_switched_off() -> None:
    assert CoordinatorConfig.from_env({}).announces
    assert not CoordinatorConfig.from_env({"BRIGADE_MDNS": "off"}).announces
    assert not CoordinatorConfig.from_env({"BRIGADE_MDNS": "on"}, mdns=False).announces
    with pytest.raises(ConfigError, match="BRIGADE_MDNS"):
        CoordinatorConfig.from_env({"BRIGADE_MDNS": "maybe"})
