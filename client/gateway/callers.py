"""Which API key a request is answered with: its own, or the gateway's if that is allowed. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from client.gateway.config import GatewayConfig
from protocol.api_key import ApiKey, api_key_from_text
from protocol.errors import UnauthenticatedError

BEARER = "bearer "
KEY_HEADER = "x-api-key"
"""Anthropic's."""
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
"""Of a request that a proxy on this machine passed on, from wherever it came."""


def caller_key(headers: Mapping[str, str], config: GatewayConfig) -> ApiKey:
    """The key of whoever sent a request with these headers.

    Raises:
        UnauthenticatedError: there is none, or one that isn't a cluster's; says how to do it.
    """
    text = _shown_key(headers)
    if not text and not config.share_key and (header := next(filter(headers.__contains__, PROXY_HEADERS), None)):
        raise UnauthenticatedError(
            f"no API key, and a proxy passed the request on ({header}): only this machine's own programs need "
            "none. Send a key as `Authorization: Bearer brigade-client...`, or have the gateway started with "
            "--share-key"
        )
    if not text:
        return _own(
            config.own_key_for_none,
            "no API key: send one of the cluster's as `Authorization: Bearer brigade-client...` (an operator makes "
            "it by `coord key create`)",
        )
    if text.startswith("brigade-"):
        return _of_this_cluster(api_key_from_text(text), config)
    return _own(
        config.own_key_for_strange,
        f"the API key that was sent ({len(text)} characters) is none of this cluster: a key begins with "
        "'brigade-client.'; or have the gateway started with --share-key, which answers all with its own",
    )


def _shown_key(headers: Mapping[str, str]) -> str:
    authorization = headers.get("Authorization", "").strip()
    if authorization.lower().startswith(BEARER):
        return authorization[len(BEARER) :].strip()
    if authorization:
        raise UnauthenticatedError("the Authorization header isn't `Bearer KEY`")
    return headers.get(KEY_HEADER, "").strip()


def _of_this_cluster(key: ApiKey, config: GatewayConfig) -> ApiKey:
    """Whoever has no key of the cluster knows its CA's fingerprint seldom: the coordinator isn't troubled."""
    if key.ca_fingerprint != config.cluster.api_key.ca_fingerprint:
        raise UnauthenticatedError(
            f"the API key {key.key_id} is of another cluster than this gateway's: use one that was made on its "
            "coordinator"
        )
    return key


def _own(key: ApiKey | None, refusal: str) -> ApiKey:
    if key is None:
        raise UnauthenticatedError(refusal)
    return key
