"""What `brigade.toml` may say to `worker`: the options of `worker join`, and the coordinator's addresses."""

from __future__ import annotations

from protocol.config_values import Section

SECTION = Section(
    name="worker",
    commands=("join", "doctor"),
    variables={"state": "BRIGADE_WORKER_STATE"},
    yields_to={
        "urls": ("--invite", "--invite-file", "BRIGADE_INVITE"),
        "secret": ("--secret-file", "--invite", "--invite-file", "BRIGADE_SECRET", "BRIGADE_INVITE"),
        "secret-file": ("--secret", "--invite", "--invite-file", "BRIGADE_SECRET", "BRIGADE_INVITE"),
        "invite": ("--secret", "--secret-file", "--invite-file", "BRIGADE_SECRET", "BRIGADE_INVITE"),
        "invite-file": ("--secret", "--secret-file", "--invite", "BRIGADE_SECRET", "BRIGADE_INVITE"),
    },
    is_announced=True,
)
