from __future__ import annotations

import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from protocol.errors import UnauthenticatedError
from protocol.http_answers import connection_errors

KEY = ConnectionKey("host", 7400, True, True, None, None, None)


@pytest.mark.parametrize(
    ("code", "words"),
    [(9, "by this machine's"), (10, "by this machine's"), (19, "somebody may be in between")],
)
def test_a_certificate_that_is_not_good_at_this_time_is_a_matter_of_clocks(code: int, words: str) -> None:
    why = ssl.SSLCertVerificationError("certificate verify failed")
    why.verify_code = code
    with pytest.raises(UnauthenticatedError, match=words), connection_errors("https://host:7400"):
        raise aiohttp.ClientConnectorCertificateError(KEY, why)
