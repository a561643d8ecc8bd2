from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from coordinator.admin_client import AdminTarget
from protocol.api_key import ApiKey, new_api_key
from protocol.errors import ConfigError, UnauthenticatedError, UnreachableError


@pytest.fixture
def key() -> ApiKey:
    return new_api_key("admin", secrets.token_hex(32))


def test_the_state_folder_says_all(tmp_path: Path, key: ApiKey) -> None:
    (tmp_path / "url").write_text("https://127.0.0.1:7400\n")
    (tmp_path / "admin.key").write_text(key.text() + "\n")
    for target in (
        AdminTarget.found(state=tmp_path, environ={}),
        AdminTarget.found(environ={"BRIGADE_STATE": str(tmp_path)}),
    ):
        assert (target.url, target.key, target.state) == ("https://127.0.0.1:7400", key, tmp_path)
    assert key.secret not in repr(target)


def test_options_go_before_the_environment_and_that_before_the_folder(tmp_path: Path, key: ApiKey) -> None:
    (tmp_path / "url").write_text("https://folder:1")
    (tmp_path / "admin.key").write_text(key.text())
    environ = {"BRIGADE_URL": "https://environment:2", "BRIGADE_STATE": str(tmp_path)}
    assert AdminTarget.found(environ=environ).url == "https://environment:2"
    other = new_api_key("admin", key.ca_fingerprint)
    (tmp_path / "other").write_text(other.text())
    target = AdminTarget.found(
        url="https://option:3",
        key_file=tmp_path / "other",
        environ=environ | {"BRIGADE_ADMIN_KEY": key.text()},
    )
    assert (target.url, target.key) == ("https://option:3", other)


def test_what_is_missing_or_wrong_is_said(tmp_path: Path, key: ApiKey) -> None:
    with pytest.raises(UnreachableError, match="coord serve"):
        AdminTarget.found(state=tmp_path, environ={})
    with pytest.raises(UnreachableError, match="--admin-key-file"):
        AdminTarget.found(url="https://a:1", state=tmp_path, environ={})
    with pytest.raises(ConfigError, match="TLS only"):
        AdminTarget.found(url="http://a:1", state=tmp_path, environ={"BRIGADE_ADMIN_KEY": key.text()})
    with pytest.raises(UnauthenticatedError, match="no Brigade API key"):
        AdminTarget.found(url="https://a:1", state=tmp_path, environ={"BRIGADE_ADMIN_KEY": "x"})
