from __future__ import annotations

import json

import pytest

from client.cli import main
from protocol.api_key import new_api_key
from protocol.errors import ErrorBody
from protocol.messages import PROTOCOL_VERSION
from tests.support.client_program import Program, cluster, program
from tests.support.scripted_cluster import Script, ScriptedCluster

__all__ = ["cluster", "program"]


async def test_what_cant_be_done_is_said_before_a_prompt_is_typed(program: Program) -> None:
    process = await program.start("generate", "--logprobs", "2")
    assert process.stderr is not None
    assert b"--logprobs shows in --json alone" in await process.stderr.read()
    assert await process.wait() == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", ""], "empty"),
        (["generate", "  "], "empty"),
        (["generate", "x", "--temperature", "-1"], "temperature"),
        (["generate", "x", "--temperature", "nan"], "temperature"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens"),
        (["generate", "x", "--max-tokens", "-5"], "max_tokens"),
        (["generate", "x", "--max-tokens", "many"], "--max-tokens"),
        (["generate", "x", "--top-p", "1.01"], "top_p"),
        (["generate", "x", "--timeout", "0"], "timeout"),
        (["generate", "x", "--stop", ""], "stop string"),
        (["generate", "x", "--raw", "--system", "y"], "--system"),
        (["generate", "x", "--url", "http://plain:1"], "TLS"),
        (["generate", "x", "--no-such"], "--no-such"),
        (["nothing"], "nothing"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setenv("BRIGADE_URL", "https://127.0.0.1:1")
    monkeypatch.setenv("BRIGADE_API_KEY", new_api_key("client", "0" * 64).text())
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_nobody_at_the_address_is_exit_code_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIGADE_API_KEY", new_api_key("client", "0" * 64).text())
    assert main(["generate", "x", "--url", "https://127.0.0.1:1", "--connect-timeout", "0"]) == 3
    assert "no coordinator answers at https://127.0.0.1:1" in capsys.readouterr().err


def test_prints_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("brigade ")


async def test_a_model_that_is_not_there_is_exit_code_2(program: Program) -> None:
    ended = await program.run("generate", "x", "--model", "other")
    assert (ended.code, ended.out) == (2, "")
    assert "there are tiny" in ended.err


async def test_a_model_that_is_not_available_is_exit_code_7(program: Program, cluster: ScriptedCluster) -> None:
    cluster.script = Script(route_error=ErrorBody(code="model_unavailable", message="blocks 3:5 are missing"))
    ended = await program.run("generate", "x")
    assert (ended.code, ended.err) == (7, "error: blocks 3:5 are missing\n")


async def test_a_key_that_the_coordinator_does_not_know_is_exit_code_4(
    program: Program, cluster: ScriptedCluster
) -> None:
    program.environ["BRIGADE_API_KEY"] = new_api_key("client", cluster.authority.fingerprint).text()
    assert (await program.run("models")).code == 4


async def test_several_models_need_a_choice_and_none_says_what_to_do(
    program: Program, cluster: ScriptedCluster
) -> None:
    cluster.model_names = ["tiny", "other"]
    ended = await program.run("generate", "x")
    assert (ended.code, "tiny, other" in ended.err) == (2, True)
    cluster.model_names = []
    ended = await program.run("generate", "x")
    assert (ended.code, "coord model add" in ended.err) == (2, True)


async def test_lists_models(program: Program) -> None:
    ended = await program.run("models")
    header, line = ended.out.splitlines()
    assert header.split() == ["NAME", "KIND", "STATE", "BLOCKS", "CONTEXT", "SIZE", "CHAT"]
    assert line.split() == ["tiny", "decoder", "ready", "10", "1000", "10.0", "MB", "yes"]
    ended = await program.run("models", "--json")
    assert json.loads(ended.out)["models"][0]["name"] == "tiny"


async def test_another_protocol_version_is_exit_code_5(
    program: Program, cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.scripted_cluster.PROTOCOL_VERSION", "9.0")
    ended = await program.run("models")
    assert ended.code == 5
    assert "9.0" in ended.err
    assert PROTOCOL_VERSION in ended.err
