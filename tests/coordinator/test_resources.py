"""Which worker operators mean by the beginning of its id."""

from __future__ import annotations

import pytest

from coordinator.resources import named_worker
from protocol.errors import InvalidRequestError, NotFoundError
from protocol.ids import WorkerId

WORKERS = (WorkerId("w-abcdef1"), WorkerId("w-abcdef2"), WorkerId("w-abcxyz"))


def test_the_beginning_of_an_id_names_the_only_worker_of_that_beginning() -> None:
    assert named_worker("w-abcx", WORKERS) == "w-abcxyz"
    assert named_worker("w-abcdef2", WORKERS) == "w-abcdef2"
    with pytest.raises(InvalidRequestError, match="2 workers' ids begin with 'w-abcdef'"):
        named_worker("w-abcdef", WORKERS)


def test_too_short_a_beginning_is_said_to_be_that_and_not_that_nobody_is_called_so() -> None:
    with pytest.raises(InvalidRequestError, match=r"'w-abc' is 5 characters .* at least 6"):
        named_worker("w-abc", WORKERS)
    with pytest.raises(NotFoundError, match="there is no worker 'w-no'"):
        named_worker("w-no", WORKERS)
