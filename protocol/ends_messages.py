"""What a client and the process that runs a model's ends for it say to each other, over that process's pipes.

A private session's workers run the blocks in between; embedding, first and last blocks, head and sampling are run
on the client's own machine, by a process beside it, since the client itself never loads torch. Every request gets
one answer, under its number; frames are those of `protocol.frames`.
"""

from __future__ import annotations

import msgspec

from protocol.errors import ErrorBody
from protocol.ids import Revision
from protocol.messages import Precision, SamplingParams, Step


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what the client asks."""

    number: int
    """Of the request; its answer has the same."""


class LoadEnds(_Request, frozen=True, kw_only=True, tag="load"):
    """Fetch and load a model's first and last blocks, once a process. Payload: the model's manifest."""

    revision: Revision
    n_blocks_each: int
    """How many blocks at each end."""
    precision: Precision
    folder: str
    """Where files are kept."""
    coordinator_urls: tuple[str, ...]
    ca_pem: str
    api_key: str
    """For fetching the files; it goes through the pipe since arguments and environment are seen by others."""


class BeginText(_Request, frozen=True, kw_only=True, tag="begin"):
    """Begin a text. Payload: the prompt's token ids, int32."""

    text_id: int
    n_positions: int
    """Most positions of prompt and answer together."""
    n_prompt: int
    """As in `OpenSession`: tokens before the answer, of which a part may have come already."""
    sampling: SamplingParams


class RunFirst(_Request, frozen=True, kw_only=True, tag="first"):
    """Run prompt positions [position, position + n_tokens) through the first blocks. Answer: `FirstStates`."""

    text_id: int
    position: int
    n_tokens: int


class RunLast(_Request, frozen=True, kw_only=True, tag="last"):
    """Run what the workers gave back through the last blocks. Payload: that of the step. Answer: `LastDone`."""

    text_id: int
    step: Step
    """As the tail sent it, but for `is_last`, which says whether a token is to be sampled after it."""


class ForgetText(_Request, frozen=True, kw_only=True, tag="forget"):
    """Free a text. Answer: `Done`."""

    text_id: int


ToEnds = LoadEnds | BeginText | RunFirst | RunLast | ForgetText
"""To the process that runs the ends."""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what comes back."""

    number: int


class Loading(_Answer, frozen=True, kw_only=True, tag="loading"):
    """How far `LoadEnds` is, for people; its answer follows."""

    progress: str


class EndsLoaded(_Answer, frozen=True, kw_only=True, tag="loaded"):
    """Answer to `LoadEnds`."""

    hidden_size: int


class FirstStates(_Answer, frozen=True, kw_only=True, tag="first-states"):
    """Hidden states (n_tokens, hidden_size) after the first blocks: the payload of a step."""

    precision: Precision


class LastDone(_Answer, frozen=True, kw_only=True, tag="last-done"):
    """The sampled token, if one was wanted. Payload: its hidden states after the first blocks, if it goes on."""

    token_id: int | None = None
    is_stop: bool = False
    precision: Precision | None = None
    """Of the payload; None if there is none."""
    logprob: float | None = None
    """Of the token, as in `Token`."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    is_outgrown: bool = False
    """Whether the text is to be run anew before there can be another token, as in `Token`."""


class Done(_Answer, frozen=True, kw_only=True, tag="done"):
    """Answer to requests that ask for nothing."""


class EndsFailed(_Answer, frozen=True, kw_only=True, tag="failed"):
    """The request can't be done."""

    error: ErrorBody


FromEnds = Loading | EndsLoaded | FirstStates | LastDone | Done | EndsFailed
"""From the process that runs the ends."""
