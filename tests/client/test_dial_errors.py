from __future__ import annotations

import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from client.dial_errors import dial_errors
from protocol.errors import UnauthenticatedError
from protocol.ids import WorkerId

URL = "https://host:7401"
KEY = ConnectionKey("host", 7401, True, True, None, None, None)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            9,
            f"^the certificate that {URL} shows isn't good at this time .* by this machine's clock .* UTC: set ",
        ),
        (10, "isn't good at this time"),
        (19, f"^the certificate that {URL} shows is not that of worker w .*: somebody may be in between$"),
    ],
)
def test_a_worker_whose_certificate_is_not_good_at_this_time_is_no_other(code: int, words: str) -> None:
    """A worker's is younger than the coordinator's, which a clock that is behind may still find good."""
    why = ssl.SSLCertVerificationError("certificate verify failed")
    why.verify_code = code
    with pytest.raises(UnauthenticatedError, match=words), dial_errors(WorkerId("w"), URL):
        raise aiohttp.ClientConnectorCertificateError(KEY, why)
