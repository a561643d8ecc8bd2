"""Every target by name."""

from __future__ import annotations

from tests.fuzz.credential_targets import CREDENTIAL_TARGETS
from tests.fuzz.file_targets import FILE_TARGETS
from tests.fuzz.gateway_targets import GATEWAY_TARGETS
from tests.fuzz.settings_targets import SETTINGS_TARGETS
from tests.fuzz.wire_targets import WIRE_TARGETS

_ALL = (*WIRE_TARGETS, *CREDENTIAL_TARGETS, *FILE_TARGETS, *GATEWAY_TARGETS, *SETTINGS_TARGETS)
TARGETS = {target.name: target for target in _ALL}
