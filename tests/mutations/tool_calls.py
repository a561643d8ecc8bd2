"""Classes 12 and 13 again: what a model's own words do to whoever reads them as calls of tools."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_READER = "tests/client/gateway/test_tool_reader.py"
_WIRE = "tests/client/gateway/test_tool_calls_on_the_wire.py"

TOOL_CALLS = (
    Mutation(
        attack=12,
        what="so much of an answer waits to be a call, and no more",
        file="client/gateway/tool_reader.py",
        before="        if len(self._taken) > _MAX_BEFORE_NAME:\n",
        after="        if len(self._taken) > 10**9:\n",
        tests=(f"{_READER}::test_no_more_is_held_back_than_a_call_can_begin_with",),
    ),
    Mutation(
        attack=13,
        what="JSON without a mark is a call only of a tool that there is",
        file="client/gateway/tool_reader.py",
        before="or (is_bare and name not in self._names):\n",
        after="or (is_bare and not name):\n",
        tests=(f"{_READER}::test_reads_what_models_write",),
    ),
    Mutation(
        attack=13,
        what="arguments that can't be written again are no object",
        file="client/gateway/tool_json.py",
        before="        return msgspec.json.decode(text, type=dict[str, Any])\n",
        after='        return dict(__import__("json").loads(text))\n',
        tests=(f"{_WIRE}::test_what_a_model_writes_is_told_whole_and_streamed_alike",),
    ),
    Mutation(
        attack=13,
        what="an answer that has to be a call is held to one",
        file="client/gateway/tool_calls.py",
        before='    is_held = turn.tool_choice != "auto" or is_strict or form is GENERIC\n',
        after="    is_held = is_strict or form is GENERIC\n",
        tests=(f"{_WIRE}::test_the_choice_of_a_tool_is_what_the_answer_is_held_to",),
    ),
)
