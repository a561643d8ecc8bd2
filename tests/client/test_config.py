from __future__ import annotations

from pathlib import Path

import pytest

from client.config import ClientConfig
from protocol.api_key import new_api_key
from protocol.errors import ConfigError, UnauthenticatedError

KEY = new_api_key("client", "a" * 64)
OTHER = new_api_key("client", "b" * 64)


def env(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"BRIGADE_STATE": str(tmp_path / "state"), **more}


def test_arguments_win_over_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY.text() + "\n")
    environ = env(
        tmp_path, BRIGADE_URL="https://other:1", BRIGADE_API_KEY=OTHER.text(), BRIGADE_CACHE=str(tmp_path)
    )
    environ["BRIGADE_CHAT_HISTORY"] = str(tmp_path / "history")
    config = ClientConfig.from_env(url="host:7400", api_key_file=file, environ=environ)
    assert (config.url, config.api_key, config.cache) == ("https://host:7400", KEY, tmp_path / "client")
    assert config.chat_history == tmp_path / "history"


def test_the_environment_is_enough(tmp_path: Path) -> None:
    environ = env(tmp_path, BRIGADE_URL="https://host:1", BRIGADE_API_KEY=KEY.text())
    assert ClientConfig.from_env(environ=environ).api_key == KEY


def test_on_the_coordinators_machine_nothing_has_to_be_said(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "url").write_text("https://127.0.0.1:7400\n")
    (tmp_path / "state" / "client.key").write_text(KEY.text())
    config = ClientConfig.from_env(environ=env(tmp_path))
    assert (config.url, config.api_key) == ("https://127.0.0.1:7400", KEY)


def test_several_coordinators_are_kept_in_their_order(tmp_path: Path) -> None:
    config = ClientConfig.from_env(url="b:2, https://a:1/,b:2", api_key=KEY.text(), environ=env(tmp_path))
    assert config.url == "https://b:2,https://a:1"
    environ = env(tmp_path, BRIGADE_URL="https://a:1,https://b:2", BRIGADE_API_KEY=KEY.text())
    assert ClientConfig.from_env(environ=environ).url == "https://a:1,https://b:2"


def test_without_an_address_it_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--url .* BRIGADE_URL"):
        ClientConfig.from_env(environ=env(tmp_path))


def test_without_a_key_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="coord key create NAME"):
        ClientConfig.from_env(url="https://host:1", environ=env(tmp_path))


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        ClientConfig.from_env(url="https://host:1", api_key_file=tmp_path / "nowhere", environ=env(tmp_path))


@pytest.mark.parametrize(
    "url",
    [
        "http://host:1",
        "https://",
        "ftp://x",
        "https://h:1/path",
        "https://h:99999999",
        "https://a:1,http://b:2",
        ",",
    ],
)
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError):
        ClientConfig.from_env(url=url, api_key=KEY.text(), environ=env(tmp_path))


def test_what_is_no_key_is_refused_without_being_repeated(tmp_path: Path) -> None:
    with pytest.raises(UnauthenticatedError) as raised:
        ClientConfig.from_env(url="https://host:1", api_key="hunter2-hunter2", environ=env(tmp_path))
    assert "hunter2" not in str(raised.value)


def test_the_key_is_not_in_its_repr(tmp_path: Path) -> None:
    config = ClientConfig.from_env(url="https://host:1", api_key=KEY.text(), environ=env(tmp_path))
    assert KEY.secret not in repr(config)
