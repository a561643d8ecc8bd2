from __future__ import annotations

import pytest

from protocol.client_legs import MAX_CLIENT_LEGS
from protocol.codec import decode_json
from protocol.errors import BrigadeError
from protocol.rest import RouteRequest


def asked(legs: str) -> RouteRequest:
    body = f'{{"model": "m", "n_prompt_tokens": 1, "max_tokens": 1, "client_legs": [{legs}]}}'
    return decode_json(body.encode(), RouteRequest)


def leg(name: str, round_trip_s: str = "0.5") -> str:
    return f'{{"worker_id": "{name}", "round_trip_s": {round_trip_s}}}'


def test_as_many_as_may_be_are_taken() -> None:
    legs = asked(", ".join(leg(f"w{i}") for i in range(MAX_CLIENT_LEGS))).client_legs
    assert (len(legs), legs[0].round_trip_s, legs[0].is_connected) == (MAX_CLIENT_LEGS, 0.5, False)


@pytest.mark.parametrize(
    ("legs", "why"),
    [
        (", ".join(leg(f"w{i}") for i in range(33)), "names 33 workers; at most 32"),
        (f"{leg('w')}, {leg('w')}", "a worker twice among 2"),
        (leg("w", "-0.1"), r"round_trip_s is -0\.1; it must be between 0 and 60"),
        (leg("w", "60.1"), r"round_trip_s is 60\.1; it must be between 0 and 60"),
        (leg("w", "1e400"), "client_legs"),
        (leg("w", '"1"'), "client_legs"),
        ('{"worker_id": "w"}', "round_trip_s"),
        (leg("w").replace("}", ', "way_s": 1}'), "way_s"),
    ],
)
def test_what_can_be_no_distance_is_refused_with_what_may_be_said(legs: str, why: str) -> None:
    with pytest.raises(BrigadeError, match=why) as caught:
        asked(legs)
    assert caught.value.status == 400
