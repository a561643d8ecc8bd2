"""A small model that guesses what a big one will say: its weights, and a cache for each session it guesses for.

It stands beside the worker's blocks and is nobody's but this worker's. Used by the engine's thread alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from protocol.errors import BrigadeError, ConfigError, InternalError, OverloadedError
from protocol.ids import BlockRange, SessionId
from protocol.messages import Quantization
from worker.drafts_worth import ModelTimes
from worker.gguf_file import GgufFile, is_gguf
from worker.kv_cache import KVCache
from worker.loaded_stage import load_stage
from worker.loading import load_config
from worker.stage import Stage, StageInput
from worker.steps import Drafting

MAX_POSITIONS = 4096
"""Of all sessions together: memory for their caches is set aside when the worker starts."""
_N_TRIED = 64
"""Tokens of the text by which its speed is measured."""
_N_TIMED = 3
_CAN_BE = "name a .gguf file, or a transformers folder (config.json and safetensors)"
OTHERWISE = "name another model, or leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModelRequest:
    """Which model, and in what."""

    path: Path
    """A transformers folder (config.json and safetensors), or a GGUF file."""
    precision: str
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModelInfo:
    """What was loaded, measured."""

    name: str
    vocab_size: int
    max_positions: int
    """The longest text that it reads, and there is room for; longer ones are gone on with without it."""
    n_bytes: int
    """Weights, and room for the caches."""
    times: ModelTimes

    def beside(self, stage: Stage, context_length: int) -> Drafting:
        """What it can do for sessions of such a stage, and a model of such a context."""
        return Drafting(
            model=self.name,
            unfit_because=_undrafted_because(stage) or self.unfit_for(stage.vocab_size),
            n_positions=self.max_positions,
            context_length=context_length,
        )

    def unfit_for(self, vocab_size: int) -> str:
        """Why it can't guess for a model of such a vocabulary; empty if it can."""
        if vocab_size == self.vocab_size:
            return ""
        return (
            f"the draft model {self.name} has {self.vocab_size} tokens and this model {vocab_size}: "
            "start the worker with a --draft-model of the same vocabulary"
        )


def _undrafted_because(stage: Stage) -> str:
    """Why nobody asks for guesses there, whatever the draft model; empty if they do."""
    if stage.is_encoder:
        return "an encoder generates nothing"
    return "" if stage.is_first else "generations begin in block 0, which this worker doesn't hold"


class DraftModel:
    """The model, and the sessions that it guesses for."""

    def __init__(self, stage: Stage, name: str, max_positions: int) -> None:
        self._stage = stage
        self._caches: dict[SessionId, KVCache] = {}
        kv_bytes = sum(stage.kv_bytes_by_block())
        self.info = DraftModelInfo(
            name=name,
            vocab_size=stage.vocab_size,
            max_positions=max_positions,
            n_bytes=stage.n_weight_bytes() + MAX_POSITIONS * kv_bytes,
            times=self._measured(max_positions),
        )

    def next_token(self, session_id: SessionId, position: int, token_ids: Sequence[int], n_positions: int) -> int:
        """Read tokens from `position` on, and say which comes next; `n_positions` are the most there will be.

        What was read from there on before is forgotten.

        Raises:
            OverloadedError: no room for the session.
            InternalError: the model can't be run.
        """
        if session_id not in self._caches:
            self._open(session_id, n_positions)
        cache = self._caches[session_id]
        cache.truncate(position)
        try:
            return self._run(cache, position, token_ids)
        except (MemoryError, torch.OutOfMemoryError) as exc:
            raise OverloadedError(f"no memory left for {len(token_ids)} tokens in the draft model") from exc
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as exc:
            raise InternalError(f"the draft model {self.info.name} failed at position {position}: {exc}") from exc

    def forget(self, session_id: SessionId) -> None:
        """Free what is kept of a session; nothing happens if there is none."""
        self._caches.pop(session_id, None)

    def _open(self, session_id: SessionId, n_positions: int) -> None:
        n_taken = sum(cache.capacity for cache in self._caches.values())
        if n_taken + n_positions > MAX_POSITIONS:
            raise OverloadedError(
                f"{n_positions} positions in the draft model; {MAX_POSITIONS - n_taken} of {MAX_POSITIONS} are free"
            )
        self._caches[session_id] = self._stage.new_cache(n_positions)

    def _run(self, cache: KVCache, position: int, token_ids: Sequence[int]) -> int:
        payload = torch.tensor(token_ids, dtype=torch.long)
        (logits,) = self._stage.run([StageInput(payload=payload, position=position, cache=cache, n_logits=1)])
        return int(logits[-1].argmax())

    def _measured(self, max_positions: int) -> ModelTimes:
        n_read = max(1, min(_N_TRIED, max_positions - _N_TIMED))
        cache = self._stage.new_cache(n_read + _N_TIMED)
        seconds = []
        for position, n_tokens in ((0, n_read), *((n_read + index, 1) for index in range(_N_TIMED))):
            started_s = time.perf_counter()
            self._run(cache, position, [0] * n_tokens)
            seconds.append(time.perf_counter() - started_s)
        return ModelTimes(guess_s=min(seconds[1:]), prompt_token_s=seconds[0] / n_read)


def load_draft_model(request: DraftModelRequest, device: torch.device) -> DraftModel:
    """Load it, whole.

    Raises:
        ConfigError: it is no such model, or it can't be run here; the message says what to do.
    """
    path = request.path
    check_draft_model(path)
    try:
        source = GgufFile(path) if is_gguf(path) else path
        files = (source,) if isinstance(source, GgufFile) else weight_files(path)
        config = load_config(source)
        stage = load_stage(
            source,
            files,
            BlockRange(0, config.num_hidden_layers),
            dtype=getattr(torch, request.precision),
            device=device,
            quantization=request.quantization,
        )
        longest = getattr(config, "max_position_embeddings", None) or MAX_POSITIONS
        return DraftModel(stage, path.resolve().name, min(longest, MAX_POSITIONS))
    except BrigadeError as exc:
        raise ConfigError(f"--draft-model {path}: {exc.message}; {OTHERWISE}") from exc
    except (MemoryError, torch.OutOfMemoryError) as exc:
        raise ConfigError(f"--draft-model {path} doesn't fit into the memory of {device}: leave it out") from exc
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as exc:
        raise ConfigError(f"--draft-model {path} can't be run: {exc}; {OTHERWISE}") from exc


def check_draft_model(path: Path) -> None:
    """Look whether it can be one, without reading it.

    Raises:
        ConfigError: it is neither a GGUF file nor a folder of a model in safetensors.
    """
    if is_gguf(path) and path.is_file():
        return
    if not path.is_dir():
        what = "is a file, and no .gguf" if path.exists() else "isn't there"
        raise ConfigError(f"--draft-model {path} {what}: {_CAN_BE}")
    files = weight_files(path)
    if not files or not (path / "config.json").is_file():
        missing = "config.json" if files else "safetensors file"
        ggufs = sorted(file.name for file in path.iterdir() if is_gguf(file))
        instead = f"name the file {path / ggufs[0]}" if ggufs else _CAN_BE
        raise ConfigError(f"--draft-model {path} has no {missing}: {instead}")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of its weights, in order of their names."""
    return tuple(sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors")))
