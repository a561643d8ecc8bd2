"""A stage of an encoder (BERT and its kin): each text whole, in both directions, and nothing kept of it.

Texts of about the same length go through in one forward, padded to the longest; which positions are padding the
library's own masks say. Positions and token types are the library's own too: a text always begins at its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from protocol.messages import KvPrecision
from worker.kv_cache import KVCache
from worker.stage import Stage, StageInput
from worker.stage_batching import Batching

_LEAST_FILLED = 0.75
"""A text joins longer ones if it fills as much of their length: what is padding is computed for nothing."""
_STATES_AT_ONCE = 8
"""As wide as hidden states: queries, keys, values, what is added to what, and norms. BERT takes 44 to 57 kB for a
position in float32 (measured), and by this 49."""


class EncoderStage(Stage):
    """As `Stage`. Every step is a whole text, from position 0 on; its cache stays empty."""

    is_encoder = True

    def new_cache(self, n_positions: int, held_as: KvPrecision | None = None) -> KVCache:  # noqa: ARG002 - as Stage's
        """What a session of any model has: here nothing is ever put into it."""
        return KVCache(len(self.blocks), n_positions)

    def batch(self, batching: Batching) -> None:
        """Run texts together from now on, or one at a time."""
        self.batching = batching

    def kv_bytes_by_block(self, held_as: KvPrecision | None = None) -> tuple[int, ...]:  # noqa: ARG002 - as Stage's
        """Nothing is kept of a text; warms the stage up."""
        payload = torch.zeros(1, dtype=torch.int32) if self.is_first else torch.zeros(1, self.hidden_size)
        self.run([StageInput(payload=payload, position=0, cache=self.new_cache(1))])
        return (0,) * len(self.blocks)

    @property
    def working_bytes(self) -> int:  # type: ignore[override]  # a stage that cuts its texts has none
        """About what one position takes: twice the widest layer's results, before and after what bends them."""
        widest = max(getattr(module, "out_features", 0) for module in self._base.modules())
        item_bytes: int = self.dtype.itemsize
        return (2 * widest + _STATES_AT_ONCE * self.hidden_size) * item_bytes

    def run_alone(self, one: StageInput) -> torch.Tensor:
        """Run one text."""
        with self.rotary.rotating(0, len(one.payload), 0):
            return self._encoded([one])[0]

    def run_together(self, inputs: Sequence[StageInput]) -> list[torch.Tensor]:
        """Run several texts, those of about the same length in one forward."""
        results: dict[int, torch.Tensor] = {}
        for group in alike([len(one.payload) for one in inputs]):
            results.update(zip(group, self._encoded([inputs[index] for index in group]), strict=True))
        return [results[index] for index in range(len(inputs))]

    def _encoded(self, inputs: Sequence[StageInput]) -> list[torch.Tensor]:
        """Of each text (n_tokens, hidden_size), all in one forward."""
        n_tokens = [len(one.payload) for one in inputs]
        pad_id = self.configs[0].pad_token_id or 0 if self.is_first else 0
        rows = pad_sequence([one.payload for one in inputs], batch_first=True, padding_value=pad_id)
        arguments: dict[str, Any] = {}
        if self.is_first:
            arguments["input_ids"] = rows.to(self.device, torch.long)
        else:
            arguments["inputs_embeds"] = self._taps.incoming = rows.to(self.device, self.dtype)
        if min(n_tokens) < max(n_tokens):
            lengths = torch.tensor(n_tokens, device=self.device)
            arguments["attention_mask"] = (
                torch.arange(max(n_tokens), device=self.device) < lengths[:, None]
            ).long()
        states = self._rows(self._base(**arguments)[0])  # (texts, longest, hidden)
        return [own[:n] for own, n in zip(states, n_tokens, strict=True)]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """The places of texts of these lengths in groups that are worth padding to their longest."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if groups and lengths[index] >= _LEAST_FILLED * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
