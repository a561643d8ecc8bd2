"""Which API key a request is answered with: its own, or the gateway's if that is allowed. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from client.gateway.config import GatewayConfig
from protocol.api_key import ApiKey, api_key_from_text
from protocol.errors import UnauthenticatedError

BEARER = "bearer "
KEY_HEADER = "x-api-key"
"""Anthropic's."""


def caller_key(headers: Mapping[str, str], config: GatewayConfig) -> ApiKey:
    """The key of whoever sent a request with these headers.

    Raises:
        UnauthenticatedError: there is none, or one that isn't a cluster's; says how to do it.
    """
    text = _shown_key(headers)
    if not text:
        return _own(
            config.own_key_for_none,
            "no API key: send one of the cluster's as `Authorization: Bearer brigade-client...` (an operator makes "
            "it by `coord key create`)",
        )
    if text.startswith("brigade-"):
        return api_key_from_text(text)
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


def _own(key: ApiKey | None, refusal: str) -> ApiKey:
    if key is None:
        raise UnauthenticatedError(refusal)
    return key
