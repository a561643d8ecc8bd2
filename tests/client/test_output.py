from __future__ import annotations

import json

import pytest

from client.output import done_line, models_line, models_table, piece_line, printable, summary_line, timings_lines
from client.results import Generation, RouteStage, TokenPiece
from client.timings import StageTimings, Timings
from protocol.ids import ModelName, Revision, WorkerId
from protocol.rest import ModelInfo

RESULT = Generation(
    token_ids=(1, 2),
    text='a "b"\n',
    prompt_tokens=5,
    completion_tokens=32,
    finish_reason="length",
    ttft_s=0.3125,
    tokens_per_s=18.22,
    route=(
        RouteStage(worker_id=WorkerId("w-a"), start=0, end=10, precision="float32"),
        RouteStage(
            worker_id=WorkerId("w-b"),
            start=10,
            end=30,
            precision="bfloat16",
            quantization="int4",
            kv_precision="int8",
        ),
    ),
    seed=4,
)


def changed(**fields: object) -> Generation:
    return Generation(**{**{name: getattr(RESULT, name) for name in Generation.__dataclass_fields__}, **fields})


def test_the_summary_is_one_line_with_the_route() -> None:
    assert summary_line(RESULT) == (
        "32 tokens, 18.2 tokens/s, first after 0.31 s, via w-a 0:10 float32 -> w-b 10:30 int4, caches int8"
    )


@pytest.mark.parametrize(("failovers", "expected"), [(1, ", 1 failover, via w-a"), (2, ", 2 failovers, via w-a")])
def test_the_summary_counts_failovers(failovers: int, expected: str) -> None:
    assert expected in summary_line(changed(failovers=failovers))


def test_the_summary_says_how_many_guesses_held() -> None:
    assert ", 5 of 9 guesses held, via w-a" in summary_line(changed(drafted_tokens=9, accepted_tokens=5))


def test_the_summary_says_how_much_of_the_prompt_workers_had() -> None:
    assert ", first after 0.31 s, 3 of 5 prompt tokens cached, via w-a" in summary_line(changed(cached_tokens=3))


def test_the_summary_says_what_ran_here() -> None:
    assert ", private (2 at each end of the model's blocks run here), via w-a" in summary_line(
        changed(private_blocks=2)
    )


def test_the_summary_says_only_what_was_measured() -> None:
    assert summary_line(changed(completion_tokens=1, route=())) == "1 token, first after 0.31 s"
    assert summary_line(changed(completion_tokens=0, route=(), finish_reason="cancelled")) == "0 tokens (cancelled)"


def test_json_lines_have_the_fields_that_are_documented() -> None:
    assert json.loads(piece_line(TokenPiece(token_id=7, text="\n"))) == {"token": 7, "text": "\n"}
    with_logprobs = TokenPiece(token_id=7, text="a", logprob=-0.5, top_logprobs=((7, -0.5), (9, -2.0)))
    assert json.loads(piece_line(with_logprobs)) == {
        "token": 7,
        "text": "a",
        "logprob": -0.5,
        "top_logprobs": [{"token": 7, "logprob": -0.5}, {"token": 9, "logprob": -2.0}],
    }
    assert json.loads(done_line(RESULT)) == {
        "done": {
            "token_ids": [1, 2],
            "text": 'a "b"\n',
            "prompt_tokens": 5,
            "completion_tokens": 32,
            "finish_reason": "length",
            "ttft_s": 0.3125,
            "tokens_per_s": 18.22,
            "route": [
                {"worker_id": "w-a", "start": 0, "end": 10}
                | {"precision": "float32", "quantization": None, "kv_precision": None},
                {"worker_id": "w-b", "start": 10, "end": 30}
                | {"precision": "bfloat16", "quantization": "int4", "kv_precision": "int8"},
            ],
            "failovers": 0,
            "cached_tokens": 0,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
            "private_blocks": 0,
            "stop_string": "",
            "timings": None,
            "trace_id": "",
            "rates": [],
            "seed": 4,
        }
    }
    assert "\n" not in done_line(RESULT)


def test_models_are_aligned_and_say_what_they_wait_for() -> None:
    model = ModelInfo(
        name=ModelName("tiny"),
        revision=Revision("0" * 64),
        state="incomplete",
        reason="blocks 3:5 are missing",
        architecture="LlamaForCausalLM",
        n_blocks=10,
        context_length=2048,
        size_bytes=1_500_000_000,
        is_chat=False,
        coverage=(),
    )
    header, line = models_table([model])
    assert line == "tiny  decoder  incomplete  10      2048     1.5 GB  no    blocks 3:5 are missing"
    assert header.index("STATE") == line.index("incomplete")
    assert json.loads(models_line([model]))["models"][0]["size_bytes"] == 1_500_000_000


def test_no_models_says_what_to_do() -> None:
    assert "coord model add" in models_table([])[0]


def test_text_cannot_steer_a_terminal() -> None:
    assert printable("a\tb\n\x1b[2J\x07\N{ROCKET}") == "a\tb\n\ufffd[2J\ufffd\N{ROCKET}"


def test_timings_are_lines_for_phases_stages_and_the_rest() -> None:
    stage = StageTimings(
        worker_id=WorkerId("w-a"),
        start=0,
        end=9,
        memory_s=0.0,
        prefill_queue_s=0.001,
        prefill_compute_s=0.02,
        prefill_sampling_s=0.0,
        decode_queue_s=0.003,
        decode_compute_s=0.9,
        decode_sampling_s=0.004,
    )
    timings = Timings(
        total_s=2.0,
        prepare_s=0.25,
        route_s=0.25,
        open_s=0.25,
        prefill_s=0.25,
        decode_s=1.0,
        wire_s=0.093,
        stages=(stage,),
    )
    phases, of_stage, rest = timings_lines(timings)
    assert phases.endswith("prefill 250.0 ms + decode 1000.0 ms = 2000.0 ms")
    assert of_stage.startswith("w-a 0:9: waited for memory 0.0 ms; prefill: queue 1.0 ms, compute 20.0 ms")
    assert of_stage.endswith("decode: queue 3.0 ms, compute 900.0 ms, sampling 4.0 ms")
    assert rest.endswith(": 93.0 ms")
