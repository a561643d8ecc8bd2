from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidRequestError
from protocol.tracing import Trace, begun_span, given_trace, trace_from_text, within

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEX = st.sampled_from("0123456789abcdef")


def ids(n_digits: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=n_digits, max_size=n_digits).filter(lambda digits: int(digits, 16) > 0)


@given(st.builds(Trace, trace_id=ids(32), span_id=ids(16), is_sampled=st.booleans()))
def test_what_is_written_is_read_again(trace: Trace) -> None:
    assert trace_from_text(trace.traceparent()) == trace


@pytest.mark.parametrize(
    ("text", "is_sampled"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", True),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-of a later version", True),
    ],
)
def test_flags_and_later_versions_as_w3c_has_them(text: str, is_sampled: bool) -> None:
    assert trace_from_text(text) == Trace(trace_id=TRACE_ID, span_id=SPAN_ID, is_sampled=is_sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[1:]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n",
        f"00-{TRACE_ID}-{SPAN_ID}",
    ],
)
def test_what_is_none_is_passed_over_unless_it_was_given_by_hand(text: str) -> None:
    assert trace_from_text(text) is None
    with pytest.raises(InvalidRequestError, match="--traceparent"):
        given_trace(text, "--traceparent")


def test_what_begins_within_a_trace_is_a_span_of_it() -> None:
    around = Trace(trace_id=TRACE_ID, span_id=SPAN_ID, is_sampled=False)
    with within(around):
        (one, cause), (other, _) = begun_span(), begun_span()
    assert (one.trace_id, cause, one.is_sampled) == (TRACE_ID, SPAN_ID, False)
    assert len({one.span_id, other.span_id, SPAN_ID}) == 3
    alone, cause_of_none = begun_span()
    assert alone.trace_id != TRACE_ID
    assert (cause_of_none, alone.is_sampled) == (None, True)
