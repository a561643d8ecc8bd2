from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from client.api import Client
from client.config import ClientConfig
from protocol.api_key import new_api_key
from protocol.errors import (
    BrigadeError,
    ConfigError,
    ContextExceededError,
    DeadlineExceededError,
    ErrorBody,
    HopLostError,
    InternalError,
    InvalidRequestError,
    ModelUnavailableError,
    NotFoundError,
    ProtocolError,
    UnauthenticatedError,
    UnreachableError,
    UntrustedFileError,
)
from protocol.frames import encode_frame
from protocol.ids import SessionId
from protocol.messages import CloseSession, SharedPrefix
from tests.support.coordinators import eventually
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.tiny_tokenizer import ids_of, tiny_files

IM_END = 3


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ScriptedCluster]:
    async with scripted_cluster(tmp_path) as running:
        running.script = Script(answer=(*ids_of(" Paris."), IM_END))
        yield running


def config_of(cluster: ScriptedCluster, tmp_path: Path) -> ClientConfig:
    return ClientConfig(url=cluster.url, api_key=cluster.api_key, cache=tmp_path / "cache")


@pytest.fixture
async def client(cluster: ScriptedCluster, tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(config=config_of(cluster, tmp_path)) as opened:
        yield opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at the second failure in a row."""
    monkeypatch.setattr("client.failover.MAX_FRUITLESS_ATTEMPTS", 2)


async def test_a_client_that_is_opened_while_the_coordinator_is_away_waits_for_it(
    cluster: ScriptedCluster, tmp_path: Path
) -> None:
    (served,) = cluster.served
    notices: asyncio.Queue[str] = asyncio.Queue()
    await served.stop()

    async def comes_back() -> None:
        assert "coordinator away, trying again: no coordinator answers" in await notices.get()
        await served.start()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(comes_back())
        async with Client(config=config_of(cluster, tmp_path), on_notice=notices.put_nowait) as client:
            assert await client.models()
    assert notices.empty()


async def test_a_client_gives_up_when_its_time_is_over(cluster: ScriptedCluster, tmp_path: Path) -> None:
    await cluster.served[0].stop()
    config = replace(config_of(cluster, tmp_path), connect_timeout_s=0.3)
    with pytest.raises(UnreachableError):
        async with Client(config=config):
            pass


async def test_generates_text_tokens_and_numbers(client: Client, cluster: ScriptedCluster) -> None:
    result = await client.generate("tiny", "The capital of France is", max_tokens=20)
    assert result.text == " Paris."
    assert result.token_ids == cluster.script.answer
    assert result.completion_tokens == len(cluster.script.answer)
    assert (result.finish_reason, result.failovers) == ("stop", 0)
    assert result.prompt_tokens == len(cluster.prompt_ids)
    assert result.ttft_s > 0
    assert result.tokens_per_s > 0
    assert [(stage.start, stage.end, stage.precision) for stage in result.route] == [
        (0, 1, "float32"),
        (1, 10, "float32"),
    ]


async def test_text_gets_bos_once_and_the_tail_gets_the_prompt_too(
    client: Client, cluster: ScriptedCluster
) -> None:
    await client.generate("tiny", "hello")
    assert cluster.prompt_ids == [0, *ids_of("hello")]
    assert cluster.latest.attached_prompt == bytes(cluster.latest.prompt_step.payload)  # type: ignore[union-attr]


async def test_a_chat_has_the_templates_bos_alone(client: Client, cluster: ScriptedCluster) -> None:
    await client.generate("tiny", [{"role": "user", "content": "hi"}])
    expected = ids_of("<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert cluster.prompt_ids == expected
    assert expected.count(0) == 1


async def test_the_tail_is_told_how_to_sample_and_where_to_stop(client: Client, cluster: ScriptedCluster) -> None:
    await client.generate("tiny", [5, 6], max_tokens=7, temperature=0.25, top_k=3, seed=11)
    sampling = cluster.sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.max_tokens) == (0.25, 3, 11, 7)
    assert set(sampling.stop_token_ids) == {1, 3}
    assert [request.n_prompt_tokens for request in cluster.route_requests] == [2]


async def test_is_greedy_unless_the_model_says_that_it_samples(client: Client, cluster: ScriptedCluster) -> None:
    await client.generate("tiny", "x")
    assert cluster.sampling.temperature == 0.0  # generation_config.json has 0.5, but no do_sample


LONG = list(range(4, 60))


async def test_the_next_turn_names_the_session_whose_text_it_begins_with(
    client: Client, cluster: ScriptedCluster
) -> None:
    first = await client.generate("tiny", LONG)
    assert (cluster.route_requests[-1].prefix, first.cached_tokens) == (None, 0)
    cluster.script.n_cached = 57
    prompt = [*LONG, *first.token_ids, 7, 8, 9]
    second = await client.generate("tiny", prompt)
    n_run = len(LONG) + len(first.token_ids) - 1
    assert cluster.route_requests[-1].prefix == SharedPrefix(session_id=SessionId("s-1"), n_positions=n_run)
    assert second.cached_tokens == 57
    assert cluster.prompt_ids == prompt, "the head compares it all"
    cluster.script.n_cached = 0  # by now the workers have lost it
    await client.generate("tiny", [*prompt[:50], 5, 5, 5])
    assert cluster.route_requests[-1].prefix == SharedPrefix(session_id=SessionId("s-2"), n_positions=50)
    await client.generate("tiny", [*prompt[:50], 6, 6, 6])
    assert cluster.route_requests[-1].prefix == SharedPrefix(session_id=SessionId("s-3"), n_positions=50)


async def test_without_a_prefix_cache_no_session_is_named(cluster: ScriptedCluster, tmp_path: Path) -> None:
    async with Client(config=config_of(cluster, tmp_path), prefix_cache=False) as client:
        for _ in range(2):
            await client.generate("tiny", LONG)
    assert [request.prefix for request in cluster.route_requests] == [None, None]


async def test_connections_are_made_once(client: Client, cluster: ScriptedCluster) -> None:
    for _ in range(3):
        await client.generate("tiny", "x")
    assert cluster.n_worker_connections == 2
    assert len(cluster.fetched) == len(set(cluster.fetched))


async def test_one_worker_is_head_and_tail_on_one_connection(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path, n_workers=1) as cluster:
        cluster.script = Script(answer=tuple(ids_of("yes")), finish="length")
        async with Client(config=config_of(cluster, tmp_path)) as client:
            result = await client.generate("tiny", "x")
        assert (result.text, result.finish_reason, cluster.n_worker_connections) == ("yes", "length", 1)


async def test_many_at_once_share_connections_and_keep_apart(client: Client, cluster: ScriptedCluster) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.generate("tiny", f"number {i}")) for i in range(8)]
    assert {task.result().text for task in tasks} == {" Paris."}
    assert cluster.n_worker_connections == 2


async def test_of_many_that_begin_at_once_one_loads_the_tokenizer(client: Client) -> None:
    revision = (await client.model("tiny")).revision
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.tokenizer(revision)) for _ in range(8)]
    assert len({id(task.result()) for task in tasks}) == 1


async def test_a_stop_string_ends_it_on_all_workers(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("one two\nthree")), stop_short=True)
    async with client.stream("tiny", "count", stop=["\nth"]) as stream:
        pieces = [piece async for piece in stream]
    assert "".join(piece.text for piece in pieces) == stream.result.text == "one two"
    assert stream.result.finish_reason == "stop"
    await cluster.until_closed("cancelled")


async def test_what_only_began_like_a_stop_string_is_shown_at_the_end(
    client: Client, cluster: ScriptedCluster
) -> None:
    cluster.script = Script(answer=tuple(ids_of("one\nt")), finish="length")
    result = await client.generate("tiny", "count", stop=["\nth"])
    assert (result.text, result.finish_reason) == ("one\nt", "length")


async def test_characters_of_several_tokens_are_never_broken(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("a\N{EURO SIGN}\N{ROCKET}")), finish="length")
    async with client.stream("tiny", "x") as stream:
        texts = [piece.text async for piece in stream]
    assert [text for text in texts if text] == ["a", "\N{EURO SIGN}", "\N{ROCKET}"]


async def test_leaving_early_cancels_on_head_and_tail(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    async with client.stream("tiny", "x") as stream:
        async for _ in stream:
            break
    await cluster.until_closed("cancelled")
    assert stream.result.finish_reason == "cancelled"


async def test_cancelling_the_task_cancels_on_head_and_tail(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    has_begun = asyncio.Event()

    async def generating() -> None:
        async for _ in client.stream("tiny", "x"):
            has_begun.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(generating())
        await has_begun.wait()
        task.cancel()
    await cluster.until_closed("cancelled")


async def test_the_deadline_ends_it_on_all_workers(client: Client, cluster: ScriptedCluster) -> None:
    await client.generate("tiny", "x")
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    with pytest.raises(DeadlineExceededError, match=r"0\.3 s"):
        await client.generate("tiny", "x", timeout_s=0.3)
    await cluster.until_closed("deadline")


async def test_a_lost_connection_is_dialled_again_and_the_caller_is_told(
    client: Client, cluster: ScriptedCluster
) -> None:
    cluster.attempts = [Script(answer=tuple(ids_of("abc")), drops_connection=True)]
    cluster.script = Script(answer=tuple(ids_of("def")), finish="length")
    notices: list[str] = []
    async with client.stream("tiny", "x", on_notice=notices.append) as stream:
        assert "".join([piece.text async for piece in stream]) == "abcdef"
    assert (stream.result.text, stream.result.failovers) == ("abcdef", 1)
    assert cluster.n_worker_connections == 3
    tail = cluster.workers[1][0]
    assert notices == [f"worker {tail} went away after 3 tokens; going on by another route"]


async def test_connections_that_are_always_lost_are_an_error_with_the_text_so_far(
    impatient: None, client: Client, cluster: ScriptedCluster
) -> None:
    cluster.attempts = [Script(answer=tuple(ids_of("abc")), drops_connection=True)]
    cluster.script = Script(drops_connection=True)
    async with client.stream("tiny", "x") as stream:
        with pytest.raises(HopLostError):
            async for _ in stream:
                pass
        assert stream.result.text == "abc"


@pytest.mark.parametrize("where", ["head", "tail"])
async def test_what_all_workers_say_went_wrong_is_raised_as_it_is(
    impatient: None, client: Client, cluster: ScriptedCluster, where: str
) -> None:
    error = ErrorBody(code="overloaded", message="12 of 12 sessions", retry_after_s=2.0)
    cluster.script = Script(head_ends_with=error) if where == "head" else Script(ends_with=error)
    with pytest.raises(BrigadeError, match="12 of 12") as raised:
        await client.generate("tiny", "x")
    assert (raised.value.code, raised.value.retry_after_s) == ("overloaded", 2.0)


async def test_an_unknown_error_of_newer_workers_is_internal(
    impatient: None, client: Client, cluster: ScriptedCluster
) -> None:
    cluster.script = Script(ends_with=ErrorBody(code="brand_new", message="something"))
    with pytest.raises(InternalError, match="something"):
        await client.generate("tiny", "x")


async def test_tokens_out_of_order_are_refused(impatient: None, client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), indexes=(1, 2, 3), stop_short=True)
    with pytest.raises(ProtocolError, match="comes next"):
        await client.generate("tiny", "x")
    await cluster.until_closed("failed")


async def test_a_token_that_the_model_does_not_have_is_refused(
    impatient: None, client: Client, cluster: ScriptedCluster
) -> None:
    cluster.script = Script(answer=(100_000,), stop_short=True)
    with pytest.raises(ProtocolError, match="100000"):
        await client.generate("tiny", "x")


async def test_no_more_tokens_come_out_than_were_asked_for(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abcdefgh")), stop_short=True)
    result = await client.generate("tiny", "x", max_tokens=2)
    assert (result.text, result.finish_reason) == ("ab", "length")
    await cluster.until_closed("cancelled")


@pytest.mark.parametrize("raw", [b"nonsense", b"", encode_frame(CloseSession(session_id="s-1", reason="lost"))])  # type: ignore[arg-type]
async def test_nonsense_from_all_workers_is_a_protocol_error(
    impatient: None, client: Client, cluster: ScriptedCluster, raw: bytes
) -> None:
    cluster.script = Script(raw=raw, stop_short=True)
    with pytest.raises(ProtocolError):
        await client.generate("tiny", "x")


async def test_errors_of_the_coordinator_are_raised_as_they_are(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(route_error=ErrorBody(code="model_unavailable", message="blocks 3:5 are missing"))
    with pytest.raises(ModelUnavailableError, match="3:5"):
        await client.generate("tiny", "x")
    with pytest.raises(NotFoundError, match="tiny"):
        await client.generate("other", "x")


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {}),
        ([], {}),
        ([-1], {}),
        ([270], {}),
        ([5, "x"], {}),
        ("\ud800", {}),
        ([{"content": "no role"}], {}),
        ("x", {"max_tokens": 0}),
        ("x", {"max_tokens": -3}),
        ("x", {"temperature": -0.1}),
        ("x", {"temperature": float("nan")}),
        ("x", {"top_p": 0.0}),
        ("x", {"top_p": 1.5}),
        ("x", {"min_p": -1}),
        ("x", {"top_k": -1}),
        ("x", {"repetition_penalty": 0.0}),
        ("x", {"seed": -1}),
        ("x", {"stop": [""]}),
        ("x", {"stop": "text"}),
        ("x", {"timeout_s": 0}),
        ("x", {"no_such_option": 1}),
    ],
)
async def test_bad_input_never_gets_to_a_worker(
    client: Client, cluster: ScriptedCluster, prompt: object, options: dict[str, object]
) -> None:
    with pytest.raises(InvalidRequestError):
        await client.generate("tiny", prompt, **options)  # type: ignore[arg-type]
    assert cluster.route_requests == []


async def test_the_context_bounds_prompt_and_answer(tmp_path: Path) -> None:
    async with (
        scripted_cluster(tmp_path, context_length=10) as cluster,
        Client(config=config_of(cluster, tmp_path)) as client,
    ):
        with pytest.raises(ContextExceededError, match="10"):
            await client.generate("tiny", [5] * 10)
        with pytest.raises(ContextExceededError, match="room for 6"):
            await client.generate("tiny", [5] * 4, max_tokens=7)
        cluster.script = Script(answer=tuple(ids_of("a")), finish="length")
        await client.generate("tiny", [5] * 4)
        assert cluster.sampling.max_tokens == 6


async def test_a_key_of_another_cluster_is_refused(cluster: ScriptedCluster, tmp_path: Path) -> None:
    config = ClientConfig(url=cluster.url, api_key=new_api_key("client", "0" * 64), cache=tmp_path)
    with pytest.raises(UnauthenticatedError, match="another cluster"):
        async with Client(config=config):
            pass


async def test_workers_with_another_workers_name_are_refused(impatient: None, tmp_path: Path) -> None:
    name = f"w-{'a' * 26}.workers.brigade.internal"
    async with (
        scripted_cluster(tmp_path, worker_certificate_name=name) as cluster,
        Client(config=config_of(cluster, tmp_path)) as client,
    ):
        with pytest.raises(UnauthenticatedError, match="is not that of worker"):
            await client.generate("tiny", "x")
        assert cluster.latest.opening is None


async def test_an_altered_file_is_refused_and_not_kept(
    client: Client, cluster: ScriptedCluster, tmp_path: Path
) -> None:
    sha256 = next(sha for sha, data in cluster.contents.items() if b"im_start" in data and b"for message" in data)
    good = cluster.contents[sha256]
    cluster.contents[sha256] = good.replace(b"user", b"none") + b" "
    with pytest.raises(UntrustedFileError, match="chat_template"):
        await client.generate("tiny", "x")
    cluster.contents[sha256] = good
    assert (await client.generate("tiny", "x")).text == " Paris."


async def test_a_model_without_tokenizer_takes_ids(tmp_path: Path) -> None:
    files = {name: data for name, data in tiny_files().items() if name.endswith("config.json")}
    async with (
        scripted_cluster(tmp_path, files=files) as cluster,
        Client(config=config_of(cluster, tmp_path)) as client,
    ):
        cluster.script = Script(answer=(7, 8), finish="length")
        result = await client.generate("tiny", [5])
        assert (result.token_ids, result.text) == ((7, 8), "")
        with pytest.raises(InvalidRequestError, match="no tokenizer"):
            await client.generate("tiny", "text")


async def test_the_callers_own_exception_comes_out_as_it_is(cluster: ScriptedCluster, tmp_path: Path) -> None:
    async def failing() -> None:
        async with Client(config=config_of(cluster, tmp_path)) as client:
            await client.generate("tiny", "x")
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await failing()


async def test_a_client_that_is_not_open_says_so(cluster: ScriptedCluster, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not open"):
        await Client(config=config_of(cluster, tmp_path)).models()


async def test_lists_models(client: Client) -> None:
    assert [model.name for model in await client.models()] == ["tiny"]
    assert (await client.model("tiny")).is_chat


async def test_a_whole_generation_loads_no_torch(cluster: ScriptedCluster, tmp_path: Path) -> None:
    program = (
        "import sys, asyncio\n"
        "import client.cli\n"
        "code = client.cli.main(['generate', 'hello', '--json'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'coordinator', 'worker'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else code)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env={"BRIGADE_URL": cluster.url, "BRIGADE_API_KEY": cluster.key_text, "BRIGADE_CACHE": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b'"done"' in out


async def test_a_route_is_asked_for_with_how_far_the_workers_were_that_were_used_before(
    cluster: ScriptedCluster, client: Client
) -> None:
    await client.generate("tiny", "x", max_tokens=9)
    await eventually(lambda: len(client._connected()[1].legs()) == len(cluster.workers))
    await client.generate("tiny", "x", max_tokens=9)
    first, second = (request.client_legs for request in cluster.route_requests)
    assert first == ()
    assert {leg.worker_id for leg in second} == {worker_id for worker_id, _ in cluster.workers}
    assert all(leg.is_connected and leg.round_trip_s > 0 for leg in second)
