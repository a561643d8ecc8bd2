"""TLS names and ids (the contexts are exercised by every test that opens a socket)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UnauthenticatedError
from protocol.tls import is_worker_id, peer_worker_id, worker_id_of_key, worker_name


class Shown:
    """An SSL object that has verified this certificate."""

    def __init__(self, certificate: dict[str, object] | None) -> None:
        self.certificate = certificate

    def getpeercert(self) -> dict[str, object] | None:
        return self.certificate


@given(key=st.binary(min_size=1, max_size=100))
def test_an_id_fits_a_dns_label_and_follows_from_the_key(key: bytes) -> None:
    worker_id = worker_id_of_key(key)
    assert is_worker_id(worker_id)
    assert worker_id == worker_id_of_key(key) != worker_id_of_key(key + b"x")
    assert len(worker_name(worker_id).split(".")[0]) <= 63


def test_the_peer_s_id_is_the_one_in_its_certificate() -> None:
    worker_id = worker_id_of_key(b"k")
    names = (("DNS", "localhost"), ("DNS", worker_name(worker_id)))
    assert peer_worker_id(Shown({"subjectAltName": names})) == worker_id
    assert peer_worker_id(Shown({})) is None
    assert peer_worker_id(None) is None


@pytest.mark.parametrize("name", ["coordinator.brigade.internal", "x.workers.brigade.internal", "w-a.example.org"])
def test_a_certificate_that_is_not_a_worker_s_is_refused(name: str) -> None:
    with pytest.raises(UnauthenticatedError, match="not a worker's"):
        peer_worker_id(Shown({"subjectAltName": (("DNS", name),)}))
