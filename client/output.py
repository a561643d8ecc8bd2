"""What the command line shows: lines made of results. Pure; nothing is written here."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from client.results import Generation, RouteStage, TokenPiece
from client.timings import Timings
from protocol.byte_sizes import human_bytes
from protocol.rest import ModelInfo


def piece_line(piece: TokenPiece) -> str:
    """One token as a line of JSON, with logarithms of probabilities if they were asked for."""
    shown: dict[str, Any] = {"token": piece.token_id, "text": piece.text}
    if piece.logprob is not None:
        top = [{"token": token_id, "logprob": logprob} for token_id, logprob in piece.top_logprobs]
        shown |= {"logprob": piece.logprob, "top_logprobs": top}
    return _json(shown)


def done_line(result: Generation) -> str:
    """The end as a line of JSON."""
    return _json({"done": asdict(result)})


def summary_line(result: Generation) -> str:
    """The end for people: `32 tokens, 18.2 tokens/s, first after 0.31 s, 1 failover, via w-ab 0:10 float32`."""
    n_tokens = result.completion_tokens
    parts = [f"{n_tokens} token" if n_tokens == 1 else f"{n_tokens} tokens"]
    if result.finish_reason == "cancelled":
        parts[0] += " (cancelled)"
    if n_tokens > 1:
        parts.append(f"{result.tokens_per_s:.1f} tokens/s")
    if n_tokens > 0:
        parts.append(f"first after {result.ttft_s:.2f} s")
    if result.cached_tokens > 0:
        parts.append(f"{result.cached_tokens} of {result.prompt_tokens} prompt tokens cached")
    if result.drafted_tokens > 0:
        parts.append(f"{result.accepted_tokens} of {result.drafted_tokens} guesses held")
    if result.failovers > 0:
        parts.append("1 failover" if result.failovers == 1 else f"{result.failovers} failovers")
    if result.private_blocks > 0:
        parts.append(f"private ({result.private_blocks} at each end of the model's blocks run here)")
    if result.route:
        parts.append("via " + " -> ".join(stage_text(stage) for stage in result.route))
    return ", ".join(parts)


def timings_lines(timings: Timings) -> list[str]:
    """Where the time went, for people: what the client saw, then what each worker took of it.

    Sums over stages and `wire` are those of decoding; while a prompt is run, stages work at the same time.
    """
    phases = (
        f"prepare {_ms(timings.prepare_s)} + route {_ms(timings.route_s)} + open {_ms(timings.open_s)}"
        f" + prefill {_ms(timings.prefill_s)} + decode {_ms(timings.decode_s)} = {_ms(timings.total_s)}"
    )
    if not timings.stages:
        return [phases, "of the stages nothing is known: a worker of the route is older than 1.2, or no token came"]
    stages = [
        f"{stage.worker_id} {stage.start}:{stage.end}: waited for memory {_ms(stage.memory_s)}; prefill: "
        f"queue {_ms(stage.prefill_queue_s)}, compute {_ms(stage.prefill_compute_s)}, "
        f"sampling {_ms(stage.prefill_sampling_s)}; decode: queue {_ms(stage.decode_queue_s)}, "
        f"compute {_ms(stage.decode_compute_s)}, sampling {_ms(stage.decode_sampling_s)}"
        for stage in timings.stages
    ]
    return [phases, *stages, f"decode, none of the stages (wire and the rest): {_ms(timings.wire_s)}"]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def models_table(models: Sequence[ModelInfo]) -> list[str]:
    """Models as aligned lines, each with what it waits for."""
    if not models:
        return ["no models: add one with `coord model add NAME SOURCE` on the coordinator's machine"]
    rows = [("NAME", "KIND", "STATE", "BLOCKS", "CONTEXT", "SIZE", "CHAT", "")]
    rows += [
        (
            model.name,
            model.kind,
            model.state,
            str(model.n_blocks),
            str(model.context_length),
            human_bytes(model.size_bytes),
            "yes" if model.is_chat else "no",
            printable(model.reason),
        )
        for model in models
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1])).rstrip()
        for row in rows
    ]


def models_line(models: Sequence[ModelInfo]) -> str:
    """Models as one line of JSON."""
    return _json({"models": [msgspec.to_builtins(model) for model in models]})


def printable(text: str) -> str:
    """Text for a terminal: what could move its cursor or change its settings is shown as a replacement."""
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) != "Cc" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def stage_text(stage: RouteStage) -> str:
    """A hop of a route: `w-ab 0:10 float32`, or what the weights are held in: `w-ab 0:10 int4, caches int8`."""
    text = f"{stage.worker_id} {stage.start}:{stage.end} {stage.quantization or stage.precision}"
    return f"{text}, caches {stage.kv_precision}" if stage.kv_precision is not None else text


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
