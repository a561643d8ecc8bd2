from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.config_file import ConfigFile
from protocol.config_values import OptionKind, Section, ValueKind, checked_keys, counting, keys_for
from protocol.errors import ConfigError

SECTION = Section(
    name="worker",
    commands=("join",),
    shared=("state",),
    variables={"state": "STATE"},
    yields_to={"secret-file": ("--secret", "SECRET")},
)
KINDS: dict[str, ValueKind] = {
    "compile": "switch",
    "threads": "whole number",
    "timeout": "number",
    "memory": "size",
    "state": "path",
    "secret-file": "path",
    "secret": "text",
}
OPTIONS = {key: OptionKind(parameter=key.replace("-", "_"), kind=kind) for key, kind in KINDS.items()} | {
    "urls": OptionKind(parameter="urls", kind="text", takes_several=True)
}


def file_of(table: Mapping[str, Any], section: str = "worker") -> ConfigFile:
    return ConfigFile(path=Path("/etc/b/brigade.toml"), lines=(), tables={section: table})


def values(table: Mapping[str, Any], *, given: frozenset[str] = frozenset(), **environ: str) -> dict[str, Any]:
    keys = [(SECTION, keys_for(SECTION, "join", OPTIONS))]
    found = counting(file_of(table), keys, OPTIONS, given=given, environ=environ)
    return {key: each.value for key, each in found.items()}


@given(
    in_option=st.booleans(),
    in_environment=st.sampled_from(["", "/env"]),
    in_file=st.booleans(),
)
def test_an_option_goes_before_the_environment_and_that_before_the_file(
    in_option: bool, in_environment: str, in_file: bool
) -> None:
    table = {"state": "/file"} if in_file else {}
    found = values(table, given=frozenset({"--state"} if in_option else ()), STATE=in_environment)
    is_left = in_file and not in_option and not in_environment  # an empty variable is none
    assert found == ({"state": "/file"} if is_left else {})


def test_a_secret_given_otherwise_goes_before_the_files() -> None:
    table = {"secret-file": "s"}
    assert values(table) == {"secret-file": "/etc/b/s"}
    assert values(table, given=frozenset({"--secret"})) == {}
    assert values(table, SECRET="x") == {}


def test_values_are_as_the_command_line_would_give_them() -> None:
    table = {"memory": 8_000_000_000, "state": "../kept", "threads": 4, "urls": "https://a:1", "compile": False}
    assert values(table) == {
        "memory": "8000000000",
        "state": "/etc/b/../kept",
        "threads": 4,
        "urls": ["https://a:1"],
        "compile": False,
    }
    assert values({"state": "~/kept"}) == {"state": str(Path.home() / "kept")}


def test_another_command_takes_what_is_shared_and_has_an_option_for() -> None:
    assert keys_for(SECTION, "doctor", OPTIONS) == {"state"}
    assert keys_for(SECTION, "doctor", {"threads": OPTIONS["threads"]}) == frozenset()


def test_of_two_sections_the_first_counts() -> None:
    other = Section(name="client", commands=("serve",))
    file = ConfigFile(path=Path("/f"), lines=(), tables={"worker": {"threads": 1}, "client": {"threads": 2}})
    for first, second, expected in ((SECTION, other, 1), (other, SECTION, 2)):
        keys = [(first, {"threads"}), (second, {"threads"})]
        found = counting(file, keys, OPTIONS, given=frozenset(), environ={})
        assert found["threads"].value == expected


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"treads": 1}, "[worker] has no key 'treads'; did you mean 'threads'?"),
        ({"zzz": 1}, "[worker] has no key 'zzz'; there are compile, memory"),
        ({"threads": "4"}, "[worker] threads is a string; it must be a whole number"),
        ({"threads": True}, "[worker] threads is true; it must be a whole number"),
        ({"threads": 1.5}, "[worker] threads is a number; it must be a whole number"),
        ({"compile": "yes"}, "[worker] compile is a string; it must be true or false"),
        ({"state": 7}, "[worker] state is a number; it must be a string, the path of a file or folder"),
        ({"secret": 12345678}, "[worker] secret is a number; it must be a string"),
        ({"memory": [1]}, "[worker] memory is an array; it must be a string such as '8GiB', or a number"),
        ({"urls": ["a", 1]}, "[worker] urls is an array; it must be an array of these: a string; or one"),
        ({"state": {"x": 1}}, "[worker] state is a table; it must be a string, the path of a file or folder"),
    ],
)
def test_unknown_keys_and_other_kinds_are_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_keys(file_of(table), "worker", OPTIONS)
    assert says in caught.value.message
    assert "12345678" not in caught.value.message
