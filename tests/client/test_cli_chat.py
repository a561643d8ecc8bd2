from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.cli import main
from client.terminal.conversation import Conversation
from client.terminal.saved_conversation import saved, write_conversation
from protocol.api_key import new_api_key
from tests.support.client_program import DEADLINE_S, ROOT, Program
from tests.support.coordinators import key_of
from tests.support.gateways import packed_tiny_chat
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.terminals import CTRL_C, CTRL_D, on_terminal
from tests.support.tiny_tokenizer import ids_of, tiny_tokenizer
from tests.support.whole_cluster import whole_cluster

pytestmark = pytest.mark.timeout(120)

CONTEXT = 256
CHAT = ("-m", "client", "chat")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ScriptedCluster]:
    async with scripted_cluster(tmp_path) as running:
        yield running


@pytest.fixture
async def program(tmp_path: Path) -> AsyncIterator[Program]:
    """The command, for a tiny chat model on two workers."""
    packed = await asyncio.to_thread(packed_tiny_chat, tmp_path, context=CONTEXT)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("a", "0:2", files=packed)
        await cluster.join("b", "2:4", files=packed)
        await cluster.until_ready()
        yield program_for(cluster.coordinator.url, key_of(cluster.coordinator, "client"), tmp_path)


def program_for(url: str, key_text: str, folder: Path) -> Program:
    program = Program(SimpleNamespace(url=url, key_text=key_text), folder)  # type: ignore[arg-type]
    program.environ["BRIGADE_CHAT_HISTORY"] = str(folder / "state" / "history")
    return program


def prompt_text(cluster: ScriptedCluster) -> str:
    return str(tiny_tokenizer().decode(cluster.prompt_ids, skip_special_tokens=False))


async def test_ctrl_c_stops_the_answer_and_not_the_chat(cluster: ScriptedCluster, tmp_path: Path) -> None:
    program = program_for(cluster.url, cluster.key_text, tmp_path)
    cluster.script = Script(answer=tuple(ids_of("it \x1b[31mnever ends")), stop_short=True)
    async with on_terminal(program.environ, *CHAT, "--system", "Be brief.") as chat:
        await chat.until("turns 0")
        chat.type("the capital?\r")
        assert "it \N{REPLACEMENT CHARACTER}[31mnever ends" in await chat.until("never ends")
        chat.type(CTRL_C)
        await chat.until("(cancelled)")
        await chat.until("stopped")
        await cluster.until_closed("cancelled")

        cluster.script = Script(answer=(*ids_of(" Paris"), 3))
        chat.type("once more\r")
        await chat.until(" Paris\n")
        await chat.until("via ")
        assert "never ends<|im_end|>\n<|im_start|>user\nonce more<|im_end|>" in prompt_text(cluster)

        cluster.script = Script(stop_short=True)
        chat.type("and now?\r")
        await cluster.until(lambda: len(cluster.seen) == 3 and cluster.latest.attached is not None)
        chat.type(CTRL_C)
        await chat.until("stopped before an answer came")
        cluster.script = Script(answer=(*ids_of(" Rome"), 3))
        chat.type("/retry\r")
        await chat.until(" Rome\n")
        assert prompt_text(cluster).startswith("<s><|im_start|>system\nBe brief.<|im_end|>")
        assert prompt_text(cluster).count("and now?") == 1

        chat.type(CTRL_C)
        await chat.until("Ctrl-C again leaves")
        chat.type(CTRL_C)
        assert await chat.ended() == 0


async def test_what_happens_to_an_answer_is_told_in_the_middle_of_it(
    cluster: ScriptedCluster, tmp_path: Path
) -> None:
    program = program_for(cluster.url, cluster.key_text, tmp_path)
    cluster.attempts = [
        Script(answer=tuple(ids_of("half")), drops_connection=True, on_answered=no_more_routes(cluster))
    ]
    cluster.script = Script(answer=(*ids_of(" and half"), 3))
    async with on_terminal(program.environ, *CHAT) as chat:
        await chat.until("turns 0")
        chat.type("halves\r")
        await chat.until("half\n")
        await chat.until("going on by another route\n")
        chat.type(f"/route\r{CTRL_D}")  # wait for the prompt, and aren't shown before it
        assert "/route" not in await chat.until("waiting: blocks 0:1 are loading\n")
        cluster.has_route.set()
        assert "/route" not in await chat.until(" and half\n")
        await chat.until("1 failover")
        await chat.until("failovers: 1")
        assert await chat.ended() == 0


def no_more_routes(cluster: ScriptedCluster) -> Callable[[], Awaitable[None]]:
    async def stop_granting() -> None:
        cluster.has_route.clear()

    return stop_granting


async def test_a_conversation_is_saved_and_goes_on_elsewhere(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    environ = program.environ | {"PYTHONIOENCODING": "latin-1"}
    async with on_terminal(environ, *CHAT, "--max-tokens", "24", "--seed", "3") as chat:
        await chat.until("turns 0")
        chat.type("/model \N{ROCKET}\r")
        await chat.until("can't be a model's name")
        chat.type("a" * 32 + "\x1b\rthe in\r")
        await chat.until("via ")
        chat.type("more\r")
        await chat.until("prompt tokens cached")
        for line, words in (
            ("/set temperature 3000", "error: temperature"),
            ("/save ~nobody9/x", "no home folder is known"),
        ):
            chat.type(f"{line}\r")
            await chat.until(words)
        chat.type(f"/save {file}\r")
        await chat.until("saved 2 turns")
        chat.type("x" * CONTEXT + "\r")
        await chat.until("no turn forgotten makes room enough")
        chat.type("y" * 130 + "\r")
        refused = await chat.until("Then /retry sends your message")
        assert f"a context of {CONTEXT}" in refused
        chat.type(refused[refused.index("/drop") :][: len("/drop 1")] + "\r")
        await chat.until("forgot ")
        chat.type("/retry\r")
        await chat.until("via ")
        chat.terminate()
        assert await chat.ended() == 128 + signal.SIGTERM
    held = json.loads(file.read_bytes())
    assert (held["model"], held["settings"]) == ("tiny", {"max_tokens": 24, "seed": 3})
    assert [message["role"] for message in held["messages"]] == ["user", "assistant"] * 2
    assert held["messages"][0]["content"] == "a" * 32 + "\nthe in"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "a\n+the in\n" in (tmp_path / "state" / "history").read_text()

    ended = await program.run("chat", "--resume", str(file), "--json", stdin=b"/undo\nmore\n\n/save\n/models")
    assert ended.code == 0, ended.err
    (line,) = ended.out.splitlines()
    assert json.loads(line)["done"]["text"] == held["messages"][3]["content"], "the same seed, the same answer"
    assert json.loads(file.read_bytes()) == held


async def test_a_script_gets_answers_alone_and_hears_of_what_went_wrong(
    cluster: ScriptedCluster, tmp_path: Path
) -> None:
    program = program_for(cluster.url, cluster.key_text, tmp_path)
    cluster.script = Script(answer=(*ids_of("Paris \N{ROCKET}"), 3))
    process = await program.start("chat")
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(2):
            process.stdin.write(b"hello\n")  # and the answer comes before the next line is there
            assert await process.stdout.readline() == "Paris \N{ROCKET}\n".encode()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 143
    other_model = tmp_path / "saved.json"
    write_conversation(other_model, saved(Conversation(), model="other", settings={}), may_replace=False)
    ended = await program.run("chat", "--resume", str(other_model))
    assert ended.code == 2
    assert "other answered in " in ended.err
    ended = await program.run("chat", stdin=b"/clear\n/frown\nhello\n")
    assert (ended.code, ended.out) == (2, "")
    assert "there is no command /frown" in ended.err
    assert len(cluster.route_requests) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resume", "pyproject.toml"), "pyproject.toml is no conversation that /save wrote"),
        (("--max-tokens", "0"), "max_tokens"),
    ],
)
def test_a_chat_that_cannot_begin_says_why(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRIGADE_API_KEY", new_api_key("client", "0" * 64).text())
    monkeypatch.chdir(ROOT)
    assert main(["chat", "--url", "https://127.0.0.1:9", *arguments]) == 2
    assert words in capsys.readouterr().err
