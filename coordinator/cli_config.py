"""What `brigade.toml` may say to `coord`: the options of `coord serve`, and where the other commands find it."""

from __future__ import annotations

from protocol.config_values import Section

_SETTINGS = ("placement", "replan", "auto-quantize", "require-signed-models", "audit-share")
_OTHER_STATE = ("--state", "BRIGADE_STATE")
"""Who names a state folder means the coordinator that keeps its address and its keys there."""

SECTION = Section(
    name="coordinator",
    commands=("serve",),
    shared=("url", "admin-key-file", "state", "listen", "database-url"),
    variables={
        name: f"BRIGADE_{name.upper().replace('-', '_')}"
        for name in (
            "state",
            "listen",
            "database-url",
            "public-url",
            "dashboard",
            "mdns",
            "metrics-listen",
            "url",
            *_SETTINGS,
        )
    },
    yields_to={
        "secret": ("--secret-file", "BRIGADE_SECRET"),
        "secret-file": ("--secret", "BRIGADE_SECRET"),
        "url": _OTHER_STATE,
        "admin-key-file": ("BRIGADE_ADMIN_KEY", *_OTHER_STATE),
    },
    is_announced=True,
)
