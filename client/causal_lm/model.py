"""`BrigadeForCausalLM`: generates as a transformers model does, with a cluster's workers for weights."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    MaxTimeCriteria,
    PreTrainedConfig,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from client.causal_lm.answers import Row, answers_to, watch_of
from client.causal_lm.files import read_configs, transformers_tokenizer
from client.causal_lm.rows import checked_batch, mask_of, prompts_of, with_answers
from client.causal_lm.settings import Wanted, merged_config, wanted_of
from client.generation_request import checked_options
from client.sync_api import SyncClient
from protocol.errors import InvalidRequestError

MAX_SESSIONS = 8
"""Generations that run at once for one call; the others begin as these end."""
_OF_CLUSTERS = (
    "timeout_s",
    "wait_for_quota",
    "wait_for_workers",
    "min_trust",
    "pinned_ends",
    "private",
    "private_blocks",
    "speculate",
)
"""Fields of `GenerationOptions` that transformers has no setting for."""


class _ClusterConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Only the name under which transformers' pipelines know the class."""

    model_type = "brigade"


class BrigadeForCausalLM:
    """A model of a cluster, for programs that have a transformers model. Made by `from_cluster`.

    What isn't here (logits, gradients, weights) isn't at hand: workers hand tokens out, and nothing else.
    """

    main_input_name = "input_ids"
    input_modalities = ("text",)
    output_modalities = ("text",)

    def __init__(self, client: SyncClient, model: str, *, max_sessions: int = MAX_SESSIONS, **options: Any) -> None:
        """`client` is open and stays the caller's; the rest as `from_cluster`."""
        if unknown := sorted(options.keys() - set(_OF_CLUSTERS)):
            raise InvalidRequestError(
                f"{', '.join(unknown)} can't be set here; what can: {', '.join(_OF_CLUSTERS)}"
            )
        if max_sessions < 1:
            raise InvalidRequestError(f"max_sessions is {max_sessions}; it must be at least 1")
        checked_options(options)
        AutoModelForCausalLM.register(_ClusterConfig, BrigadeForCausalLM, exist_ok=True)
        self.info = client.model(model)
        self._files = client.model_files(self.info)
        self.config, self.generation_config = read_configs(self._files)
        self.device = torch.device("cpu")
        """Where tensors are handed over; nothing is computed there."""
        self._client = client
        self._max_sessions = max_sessions
        self._options = options
        self._open = ExitStack()

    @classmethod
    def from_cluster(
        cls,
        model: str,
        *,
        url: str | None = None,
        api_key: str | None = None,
        max_sessions: int = MAX_SESSIONS,
        **options: Any,
    ) -> BrigadeForCausalLM:
        """The cluster's model of this name, to be closed by `close` or used in a `with`.

        Without `url` and `api_key` as the environment says, as for `Client`. Rows of a batch are answered together,
        `max_sessions` at once. `options` are those fields of `GenerationOptions` that say how the cluster is used:
        `timeout_s` (of each row), `wait_for_quota`, `wait_for_workers`, `min_trust`, `pinned_ends`, `private`,
        `private_blocks`, `speculate`.

        Raises:
            InvalidRequestError: there is no such option, or its value is out of its range.
            NotFoundError: there is no such model.
            BrigadeError: the coordinator can't be reached, or doesn't know the key.
        """
        with ExitStack() as opening:
            client = opening.enter_context(SyncClient(url, api_key))
            found = cls(client, model, max_sessions=max_sessions, **options)
            found._open = opening.pop_all()
        return found

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        streamer: BaseStreamer | None = None,
        tokenizer: Any = None,
        **settings: Any,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """Prompts and answers (rows, tokens), filled up with `pad_token_id`, as transformers' own gives them.

        `settings` are fields of a generation config. `torch.manual_seed` makes samples repeatable, though not the
        same as transformers' own. `stopping_criteria` are asked after each token, one row at a time and without
        scores; a `streamer` gets the tokens of a single row. `tokenizer` is for `stop_strings`, and the model's own
        where none is given.

        Raises:
            InvalidRequestError: a setting or an argument is none that a cluster carries out.
            ContextExceededError: a prompt and its answer don't fit the model's context.
            BrigadeError: as `Client.stream`; if one row fails, all do.
        """
        config = merged_config(self.generation_config, generation_config, settings)
        if inputs is not None and input_ids is not None:
            raise InvalidRequestError("prompts are given twice, as inputs and as input_ids: give one of the two")
        given = input_ids if inputs is None else inputs
        ids = self._beginning(config) if given is None else checked_batch(given)
        wanted = wanted_of(config, width=ids.shape[1])
        mask = torch.ones_like(ids) if given is None else attention_mask
        is_own = mask_of(ids, mask, pad_token_id=wanted.pad_token_id, eos_token_ids=wanted.eos_token_ids)
        ids, is_own = (tensor.repeat_interleave(wanted.n_each, dim=0) for tensor in (ids, is_own))
        if streamer is not None and len(ids) > 1:
            raise InvalidRequestError(f"a streamer shows one answer, and {len(ids)} are asked for: leave it out")
        criteria = self._criteria(wanted, stopping_criteria, tokenizer)
        answers = self._answers(ids, is_own, wanted, criteria, streamer)
        sequences: Any = with_answers(ids, answers, wanted.pad_token_id)
        return GenerateDecoderOnlyOutput(sequences=sequences) if wanted.returns_dict else sequences

    def tokenizer(self) -> Any:
        """The model's tokenizer, as transformers has it; it pads on the left, as `generate` needs it.

        Raises:
            InvalidRequestError: the model has none.
        """
        return self._tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """Of the checkpoint. What workers compute in is theirs to choose; `Generation.route` says it."""
        dtype = self.config.dtype
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    def can_generate(self) -> bool:
        """Yes: that is all that it can."""
        return True

    def eval(self) -> BrigadeForCausalLM:
        """Itself: workers never train."""
        return self

    def to(self, device: torch.device | str | int) -> BrigadeForCausalLM:
        """Itself, handing tensors over on that device. InvalidRequestError for a dtype: workers choose theirs."""
        if isinstance(device, torch.dtype):
            raise InvalidRequestError(
                f"the model can't be made {device} from here: workers choose what they compute in"
            )
        self.device = torch.device(device)
        return self

    def forward(self, *_args: Any, **_inputs: Any) -> Any:
        """InvalidRequestError: there are no logits to give."""
        raise InvalidRequestError(
            "workers hand tokens out and no logits: use generate(); Client.hidden_states gives hidden states"
        )

    __call__ = forward

    def close(self) -> None:
        """End what runs and close the connections. Repeating it does no harm."""
        self._open.close()

    def __enter__(self) -> BrigadeForCausalLM:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _tokenizer(self) -> Any:
        known = self._client.run(self._client.on_loop.tokenizer(self.info.revision))
        return transformers_tokenizer(self._files, known)

    def _beginning(self, config: GenerationConfig) -> torch.Tensor:
        """Where texts of this model begin, for who gives no prompt: (1, 1), as transformers has it."""
        if config.bos_token_id is None:
            raise InvalidRequestError("input_ids aren't given, and the model names no bos_token_id to begin with")
        return torch.tensor([[config.bos_token_id]], device=self.device)

    def _criteria(self, wanted: Wanted, given: StoppingCriteriaList | None, tokenizer: Any) -> StoppingCriteriaList:
        criteria = StoppingCriteriaList(given or ())
        if wanted.max_time_s is not None:
            criteria.append(MaxTimeCriteria(wanted.max_time_s))
        if wanted.stop_strings:
            known = self.tokenizer() if tokenizer is None else tokenizer
            criteria.append(StopStringCriteria(known, list(wanted.stop_strings)))
        return criteria

    def _answers(
        self,
        ids: torch.Tensor,
        is_own: torch.Tensor,
        wanted: Wanted,
        criteria: StoppingCriteriaList,
        streamer: BaseStreamer | None,
    ) -> list[list[int]]:
        here = ids.cpu()
        prompts = prompts_of(here, is_own.cpu())
        seeds = torch.randint(2**62, (len(here),)).tolist() if wanted.does_sample else [0] * len(here)
        rows = [
            Row(
                prompt=prompt,
                options={**self._options, **wanted.options, "seed": seed},
                watch=watch_of(row, streamer=streamer, criteria=criteria),
            )
            for prompt, seed, row in zip(prompts, seeds, here, strict=True)
        ]
        running = answers_to(self._client.on_loop, self.info, rows, max_sessions=self._max_sessions)
        if streamer is None:
            return self._client.run(running)
        show: Any = streamer
        show.put(here)
        try:
            return self._client.run(running)
        finally:
            show.end()  # who reads from it in another thread would wait for ever
