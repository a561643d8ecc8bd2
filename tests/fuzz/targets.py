"""Every target by name."""

from __future__ import annotations

from tests.fuzz.credential_targets import CREDENTIAL_TARGETS
from tests.fuzz.file_targets import FILE_TARGETS
from tests.fuzz.wire_targets import WIRE_TARGETS

TARGETS = {target.name: target for target in (*WIRE_TARGETS, *CREDENTIAL_TARGETS, *FILE_TARGETS)}
