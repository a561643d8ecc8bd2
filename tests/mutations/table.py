"""All mutations, by the class of the attack."""

from __future__ import annotations

from tests.mutations.cluster import CLUSTER
from tests.mutations.data_path import DATA_PATH
from tests.mutations.files import FILES
from tests.mutations.gateway import GATEWAY
from tests.mutations.getting_in import GETTING_IN
from tests.mutations.grammars import GRAMMARS
from tests.mutations.http import HTTP
from tests.mutations.invites import INVITES
from tests.mutations.machines import MACHINES
from tests.mutations.tool_calls import TOOL_CALLS
from tests.mutations.trust import TRUST

MUTATIONS = tuple(
    sorted(
        (
            *GETTING_IN,
            *INVITES,
            *HTTP,
            *GATEWAY,
            *TOOL_CALLS,
            *DATA_PATH,
            *GRAMMARS,
            *FILES,
            *CLUSTER,
            *MACHINES,
            *TRUST,
        ),
        key=lambda mutation: mutation.attack,
    )
)
