from __future__ import annotations

import pytest

from client.legs import AGAIN_S, LIFE_S, N_SAMPLES, N_SURE, Ends, Legs
from protocol.client_legs import MAX_CLIENT_LEGS, ClientLeg
from protocol.ids import WorkerId

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")


def said_s(legs: Legs, worker_id: WorkerId = A, now_s: float = 0.0) -> float:
    return {leg.worker_id: leg.round_trip_s for leg in legs.said((), now_s)}[worker_id]


def test_the_shortest_of_the_last_ones_counts() -> None:
    legs = Legs()
    assert legs.said((), 0.0) == ()
    for round_trip_s in (0.050, 0.020, 0.040):
        legs.add(A, round_trip_s, 1.0)
    legs.add(B, 0.001, 1.0)
    assert legs.said({B}, 2.0) == (
        ClientLeg(worker_id=A, round_trip_s=0.020),
        ClientLeg(worker_id=B, round_trip_s=0.001, is_connected=True),
    )
    for _ in range(N_SAMPLES):
        legs.add(A, 0.050, 1.0)
    assert said_s(legs) == 0.050


def test_what_is_said_stays_while_the_difference_is_noise() -> None:
    legs = Legs()
    legs.add(A, 0.040, 0.0)
    for round_trip_s in (0.037, 0.033, 0.031):
        legs.add(A, round_trip_s, 0.0)
        assert said_s(legs) == 0.040
    legs.add(A, 0.029, 0.0)
    assert said_s(legs) == 0.029
    legs.add(B, 0.0015, 0.0)
    legs.add(B, 0.0006, 0.0)
    assert said_s(legs, B) == 0.0015, "less than a millisecond is none at all"


def test_a_new_connection_begins_anew_and_what_is_old_is_forgotten() -> None:
    legs = Legs()
    legs.add(A, 0.001, 0.0)
    legs.begin(A, 5.0)
    assert said_s(legs) == 0.001, "until there is an answer"
    legs.add(A, 0.080, 10.0)
    assert said_s(legs) == 0.080
    assert not legs.is_due(A, 10.0 + AGAIN_S / 2)
    assert legs.is_due(A, 10.0 + AGAIN_S)
    assert legs.is_due(B, 10.0)
    assert legs.said((), 10.0 + LIFE_S) == ()


def test_no_more_are_kept_than_a_request_may_name() -> None:
    legs = Legs()
    for i in range(MAX_CLIENT_LEGS + 5):
        legs.add(WorkerId(f"w{i:02}"), 0.01, float(i))
    said = legs.said((), 70.0)
    assert len(said) == MAX_CLIENT_LEGS
    assert said[0].worker_id == "w05"


def test_a_ping_that_took_minutes_is_still_no_longer_than_may_be_said() -> None:
    legs = Legs()
    legs.add(A, 300.0, 0.0)
    assert said_s(legs) == pytest.approx(60.0)


def known_there() -> Legs:
    """From the office: a is there, b and c are far."""
    legs = Legs()
    for worker_id, round_trip_s in ((A, 0.001), (B, 0.040), (C, 0.041)):
        legs.begin(worker_id, 0.0, Ends(own="10.0.0.5", peer=f"10.1.0.{ord(worker_id)}"))
        legs.add(worker_id, round_trip_s, 0.0)
    return legs


def names(legs: Legs, now_s: float) -> str:
    return "".join(leg.worker_id for leg in legs.said((), now_s))


def test_once_a_worker_is_much_farther_or_nearer_than_before_the_others_are_forgotten() -> None:
    for worker_id, now_so_far_s in ((A, 0.040), (B, 0.002)):
        legs = known_there()
        legs.begin(worker_id, 10.0)
        for _ in range(N_SURE - 1):
            legs.add(worker_id, now_so_far_s, 11.0)
        assert names(legs, 11.0) == "abc", "it might be chance"
        legs.add(worker_id, now_so_far_s, 11.0)
        assert names(legs, 11.0) == worker_id


def test_one_that_is_as_far_as_before_or_was_measured_on_the_new_network_is_kept() -> None:
    legs = known_there()
    legs.begin(B, 10.0)
    for _ in range(N_SURE):
        legs.add(B, 0.045, 11.0)
    legs.begin(A, 11.5)
    for _ in range(N_SURE):
        legs.add(A, 0.004, 12.0)
    assert names(legs, 12.0) == "abc", "four times as far, but by 3 ms"
    legs.begin(C, 20.0)
    legs.begin(B, 20.0)
    legs.add(B, 0.001, 21.0)
    for _ in range(N_SURE):
        legs.add(C, 0.001, 22.0)
    assert names(legs, 22.0) == "bc"


def test_what_was_measured_from_another_address_is_forgotten() -> None:
    legs = known_there()
    legs.leave(lambda peer: "10.0.0.5")
    legs.leave(lambda peer: None)
    assert names(legs, 1.0) == "abc", "no network at all says nothing"
    legs.leave(lambda peer: "192.168.1.7" if peer.endswith(str(ord("b"))) else "10.0.0.5")
    assert names(legs, 1.0) == "ac"
    legs.add(B, 0.001, 2.0)  # on a connection that was made before
    legs.leave(lambda peer: "192.168.1.7")
    assert names(legs, 2.0) == "b"
