"""The items that a `/v1/responses` answer consists of: messages and calls, in the order of the model. Pure.

They come about event by event, whether or not those are sent: a whole answer has the same items as a streamed one.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from client.gateway.openai_shapes import new_id
from client.gateway.turns import ToolCallDelta, TurnDelta

ItemEvent: TypeAlias = tuple[str, dict[str, Any]]
"""A kind of event, and its fields."""
ItemStatus: TypeAlias = Literal["completed", "incomplete"]

_NO_LOGPROBS: dict[str, Any] = {"logprobs": []}


class OutputItems:
    """One answer's. `complete` has the items that nothing is added to any more."""

    def __init__(self) -> None:
        self.complete: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._pieces: list[str] = []
        """Of the open item: its text, or its arguments."""

    def of(self, delta: TurnDelta) -> list[ItemEvent]:
        """What is said of this."""
        if isinstance(delta, ToolCallDelta):
            begun = [] if delta.id is None else [*self._closed("completed"), self._call_begun(delta)]
            return begun + self._more("response.function_call_arguments.delta", delta.arguments, {})
        if not delta.text:
            return []
        is_open = self._open is not None and self._open["type"] == "message"
        begun = [] if is_open else [*self._closed("completed"), *self._message_begun()]
        return begun + self._more("response.output_text.delta", delta.text, _NO_LOGPROBS)

    def ended(self, status: ItemStatus) -> list[ItemEvent]:
        """What is said at the end; `status` is the last item's. An answer without anything is an empty message."""
        begun = [] if self.complete or self._open is not None else self._message_begun()
        return begun + self._closed(status)

    def _message_begun(self) -> list[ItemEvent]:
        message = {"id": new_id("msg_"), "type": "message", "role": "assistant"}
        added = self._added(message | {"status": "in_progress", "content": []})
        return [added, ("response.content_part.added", self._place() | {"part": _part("")})]

    def _call_begun(self, delta: ToolCallDelta) -> ItemEvent:
        call = {"id": new_id("fc_"), "type": "function_call", "call_id": delta.id, "name": delta.name}
        return self._added(call | {"status": "in_progress", "arguments": ""})

    def _added(self, item: dict[str, Any]) -> ItemEvent:
        self._open, self._pieces = item, []
        return "response.output_item.added", {"output_index": len(self.complete), "item": item}

    def _more(self, kind: str, piece: str, fields: dict[str, Any]) -> list[ItemEvent]:
        if not piece:
            return []
        self._pieces.append(piece)
        return [(kind, self._place() | {"delta": piece} | fields)]

    def _closed(self, status: ItemStatus) -> list[ItemEvent]:
        if self._open is None:
            return []
        whole = "".join(self._pieces)
        if self._open["type"] == "message":
            item = self._open | {"status": status, "content": [_part(whole)]}
            said: list[ItemEvent] = [
                ("response.output_text.done", self._place() | {"text": whole} | _NO_LOGPROBS),
                ("response.content_part.done", self._place() | {"part": _part(whole)}),
            ]
        else:
            item = self._open | {"status": status, "arguments": whole}
            said = [("response.function_call_arguments.done", self._place() | {"arguments": whole})]
        said.append(("response.output_item.done", {"output_index": len(self.complete), "item": item}))
        self.complete.append(item)
        self._open = None
        return said

    def _place(self) -> dict[str, Any]:
        """Where in the answer something is; a message has one part."""
        assert self._open is not None, "an item has begun"
        place = {"item_id": self._open["id"], "output_index": len(self.complete)}
        return place | {"content_index": 0} if self._open["type"] == "message" else place


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
