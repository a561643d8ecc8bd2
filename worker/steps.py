"""The values that go into the engine and come out of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from protocol.ids import BlockRange, Revision, SessionId
from protocol.messages import KvPrecision, Precision, Quantization, SamplingParams, SharedPrefix, WeightFormat
from worker.fairness import UNLABELLED, Tenant
from worker.grammar import TokenizerSource
from worker.screening import NO_SCREENING, Screening
from worker.text_lengths import ALL_ALIKE, TextLengths


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanKey:
    """Names a loaded span: the same blocks may be loaded in two precisions while one replaces the other."""

    revision: Revision
    blocks: BlockRange
    precision: Precision
    """Of the computing, and of the hidden states on the wire."""
    quantization: Quantization | None = None
    """What the weights are held in, if not in that."""

    @property
    def held_as(self) -> WeightFormat:
        """What the weights are held in."""
        return self.quantization or self.precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiling:
    """That a span's step of one token is to be compiled."""

    folder: Path
    """Where what was compiled is kept."""
    n_sessions: int
    """How many run on the worker, and would have to wait until that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """What to load. `files` hold the weights of `key.blocks` and what comes before and after them if owned."""

    key: SpanKey
    config_folder: Path
    files: tuple[Path, ...]
    compiling: Compiling | None = None
    """None: nothing is to be compiled."""
    context_length: int = 0
    """Positions that the model can take; nothing longer is tried."""
    cache_bytes: int | None = None
    """What caches have beside the weights: codes that make steps quicker may take little of it. None: plenty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """The worker's draft model beside a span."""

    model: str
    unfit_because: str
    """Why it can't guess for this one; empty if it can."""
    n_positions: int = 0
    """The longest text that it reads."""
    context_length: int = 0
    """The longest text that the span's model takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSpan:
    """What was loaded, measured."""

    key: SpanKey
    n_blocks: int
    """Blocks of the whole model."""
    n_weight_bytes: int
    kv_precision: KvPrecision
    """What keys and values are kept in."""
    kv_bytes_by_block: tuple[int, ...]
    """Bytes of cache for one position of one session, in each block."""
    hidden_bytes: int
    """Bytes of one position's hidden states."""
    load_s: float
    unbatched_because: str = ""
    """Why its sessions run one at a time; empty if they run together."""
    unpacked_because: str = ""
    """Why its codes are unpacked for each product, which takes longer; empty if they aren't."""
    screening: Screening = NO_SCREENING
    drafting: Drafting | None = None
    """Of a worker with a draft model, if sessions begin here."""
    is_compiled: bool = False
    """Whether steps of one token run by compiled code."""
    uncompiled_because: str = ""
    """Why they don't although that was asked for."""
    is_encoder: bool = False
    """Whether its texts are taken whole, and nothing is kept of them."""
    working_bytes: int = 0
    """Then: bytes that one position takes while its text is run."""
    context_length: int = 0
    """Positions that the model can take; 0: not said."""
    tokenizer: TokenizerSource | None = None
    """Where the model's tokenizer is, for sessions that are held to a constraint."""
    unconstrained_because: str = ""
    """Why answers that end here can't be held to one; empty if they can."""
    text_lengths: TextLengths = ALL_ALIKE
    """Which lengths of text the model tells apart."""

    @property
    def hidden_size(self) -> int:
        """Values of one position's hidden states."""
        return self.hidden_bytes // (4 if self.key.precision == "float32" else 2)

    def kv_bytes_per_position(self, blocks: BlockRange, *, hands_on: bool = False) -> int:
        """Bytes that one position in `blocks`, a part of the span, takes: its cache, and what is sent onwards.

        And what a text that isn't cut takes while it is run, as if all that are open ran at the same time.

        `hands_on`: whether the last block's states are, too.

        The latter is kept, for the next hop may have to be replaced by one that hasn't got it.
        """
        start = self.key.blocks.start
        kv_bytes = self.working_bytes + sum(self.kv_bytes_by_block[blocks.start - start : blocks.end - start])
        return kv_bytes + self.hidden_bytes if hands_on or blocks.end < self.n_blocks else kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """A session's part on this worker: which blocks, and room for how many positions."""

    session_id: SessionId
    span: SpanKey
    blocks: BlockRange
    n_positions: int
    continues: SessionId | None = None
    """The session that failed and goes on as this one: what it left here this one takes over."""
    prefix: SharedPrefix | None = None
    """What the text shares with another session: this one begins with a copy of that, if it is here."""
    sampling: SamplingParams | None = None
    prompt_token_ids: tuple[int, ...] = ()
    n_prompt: int = 0
    """Tokens before the answer, however many of its own are in what is run first; 0: not said."""
    n_hops: int = 1
    """Hops of the session's route: so many groups of sessions keep all of them busy."""
    hands_on: bool = False
    """Whether hidden states are wanted of the last block too: the route goes on behind it, as audits' do, or they
    are what the client wants."""
    wants_inputs: bool = False
    """Whether what goes into the first block is wanted, and no block is to run."""
    tenant: Tenant = UNLABELLED
    """Whose sessions it shares the worker with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """New positions of one session: [position, position + n_tokens)."""

    session_id: SessionId
    position: int
    n_tokens: int
    payload: torch.Tensor
    """Token ids (n_tokens,) for a first stage, hidden states (n_tokens, hidden_size) for any other."""
    drafts: tuple[int, ...] = ()
    """The tokens at the last positions, if those are guesses: a last stage verifies them; the next step begins at
    the first that does not hold, or after all."""
    wants_sample: bool = False
    """Whether a last stage samples the token that follows the last position, and those that verify the guesses."""

    @property
    def n_drafts(self) -> int:
        """How many of the last positions are guesses."""
        return len(self.drafts)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """A token, and the position that it takes."""

    token_id: int
    position: int
    is_stop: bool
    """Whether it is one of the session's stop tokens."""
    logprob: float | None = None
    """The natural logarithm of its probability, if the session asked for it."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What a step gave: hidden states unless the stage is last, tokens if they were wanted."""

    session_id: SessionId
    position: int
    hidden: torch.Tensor | None
    """(n_tokens, hidden_size), on the CPU, in the span's precision."""
    tokens: tuple[SampledToken, ...]
    """In the order of their positions: the guesses that hold, and the one that follows them."""
    compute_s: float = 0.0
    """Of the forward, which is its whole batch's."""
    sampling_s: float = 0.0
    """Of that step alone, after that; the others' of its batch, before or after its own, is waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """How busy the engine is; what is parked counts as free."""

    kv_budget_bytes: int
    kv_free_bytes: int
    n_sessions: int
    n_waiting_sessions: int
    n_pending_steps: int
    n_positions_run: int
    """Positions computed since the engine began."""
