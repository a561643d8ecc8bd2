"""What `brigade.toml` may say to `client`: [client] to generations and chats, [gateway] to `client serve`."""

from __future__ import annotations

from protocol.config_values import Section

_VARIABLES = {"url": "BRIGADE_URL"}
_YIELDS_TO = {"url": ("BRIGADE_STATE",), "api-key-file": ("BRIGADE_API_KEY", "BRIGADE_STATE")}

CLIENT = Section(
    name="client",
    commands=("generate", "chat"),
    shared=("url", "api-key-file", "connect-timeout", "min-trust", "pinned-ends"),
    variables=_VARIABLES,
    yields_to=_YIELDS_TO,
)
GATEWAY = Section(
    name="gateway", commands=("serve",), variables=_VARIABLES, yields_to=_YIELDS_TO, is_announced=True
)
