"""What clients ask of vectors: `Client.embed` and `Client.hidden_states`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from client.deadline import Deadline
from client.generation_request import Prompt, encoded_prompt
from client.options import DEFAULT_TIMEOUT_S
from client.private_ends import PrivateEnds
from client.tokenizer import ModelTokenizer
from client.transport import ConnectionPool
from protocol.ids import Revision
from protocol.pinned_http import CoordinatorSession
from protocol.rest import ModelInfo

if TYPE_CHECKING:
    from client.embedding import Embeddings
    from client.hidden_states import StatesFinder
    from client.states_attempt import Rows


class VectorCalls(ABC):
    """The part of `client.api.Client` that gives hidden states and what is made of them."""

    _on_notice: Callable[[str], None]

    @abstractmethod
    async def model(self, name: str) -> ModelInfo:
        """One model."""

    @abstractmethod
    async def tokenizer(self, revision: Revision) -> ModelTokenizer:
        """What turns text into tokens."""

    @abstractmethod
    def _connected(self) -> tuple[CoordinatorSession, ConnectionPool, PrivateEnds]:
        """What an open client has."""

    async def embed(
        self,
        model: str | ModelInfo,
        inputs: Sequence[str | Sequence[int]],
        *,
        pooling: Literal["auto", "mean", "last", "cls"] = "auto",
        normalize: bool = True,
        dimensions: int | None = None,
        truncate: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **routing: Any,
    ) -> Embeddings:
        """Vectors of texts, or of token ids; `routing` are the fields of `client.hidden_states.Routing`.

        Raises:
            InvalidRequestError: an option or an input can't be used; says which.
            ContextExceededError: an input is too long, and `truncate` isn't asked for.
        """
        from client import embedding  # noqa: PLC0415 - numpy takes 0.1 s, for which who generates needn't wait

        how = embedding.EmbeddingOptions(
            pooling=pooling,
            normalize=normalize,
            dimensions=dimensions,
            truncate=truncate,
            routing=embedding.routing_of(routing),
        )
        deadline = embedding.deadline_in(timeout_s)
        finder, info, tokenizer = await self._states_of(model, deadline)
        return await embedding.embedded(finder, info, tokenizer, inputs, how, deadline)

    async def hidden_states(
        self,
        model: str | ModelInfo,
        prompt: Prompt,
        *,
        block: int,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **routing: Any,
    ) -> Rows:
        """The hidden states (n_tokens, hidden_size) of a text after `block` blocks, as float32.

        As transformers' `output_hidden_states` counts: 0 is what goes into the first block, n what comes out of the
        n-th, the last with the final norm. Only workers that hold these blocks are asked.

        Raises:
            InvalidRequestError: the model has no such block, or the prompt is none.
            ContextExceededError: it is too long.
        """
        from client import embedding  # noqa: PLC0415 - as above

        deadline = embedding.deadline_in(timeout_s)
        finder, info, tokenizer = await self._states_of(model, deadline)
        async with deadline.applied():
            token_ids = await encoded_prompt(tokenizer, prompt)
        wanted = embedding.states_request(info, tokenizer, token_ids, block, embedding.routing_of(routing))
        return (await finder.states(wanted, deadline)).rows

    async def _states_of(
        self, model: str | ModelInfo, deadline: Deadline
    ) -> tuple[StatesFinder, ModelInfo, ModelTokenizer]:
        from client.hidden_states import StatesFinder  # noqa: PLC0415 - as above

        coordinator, pool, _ = self._connected()
        async with deadline.applied():
            info = model if isinstance(model, ModelInfo) else await self.model(model)
            return StatesFinder(coordinator, pool, self._on_notice), info, await self.tokenizer(info.revision)
