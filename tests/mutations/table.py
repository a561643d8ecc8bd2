"""All mutations, by the class of the attack."""

from __future__ import annotations

from tests.mutations.cluster import CLUSTER
from tests.mutations.data_path import DATA_PATH
from tests.mutations.files import FILES
from tests.mutations.getting_in import GETTING_IN
from tests.mutations.http import HTTP

MUTATIONS = tuple(sorted((*GETTING_IN, *HTTP, *DATA_PATH, *FILES, *CLUSTER), key=lambda mutation: mutation.attack))
