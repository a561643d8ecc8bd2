"""All mutations, by the class of the attack."""

from __future__ import annotations

from tests.mutations.cluster import CLUSTER
from tests.mutations.data_path import DATA_PATH
from tests.mutations.files import FILES
from tests.mutations.getting_in import GETTING_IN
from tests.mutations.grammars import GRAMMARS
from tests.mutations.http import HTTP
from tests.mutations.invites import INVITES
from tests.mutations.tool_calls import TOOL_CALLS

MUTATIONS = tuple(
    sorted(
        (*GETTING_IN, *INVITES, *HTTP, *TOOL_CALLS, *DATA_PATH, *GRAMMARS, *FILES, *CLUSTER),
        key=lambda mutation: mutation.attack,
    )
)
