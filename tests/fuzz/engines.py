"""Two ways to make inputs: atheris, which is guided by the code that an input reaches, and hypothesis.

Both start at the target's seeds and alter them by `tests.fuzz.edits`. Each runs in a process of its own, since
libFuzzer ends its process, and a finding may.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.edits import Edit, edited
from tests.fuzz.target import MAX_INPUT_BYTES, FindingError, Target, check

MAX_EDITS = 6
HEADROOM_BYTES = 2**30
"""Address space that the process may take beyond what it has when all is imported, by C and Rust code too."""
SLOWEST_S = 60
"""Of one input, by the wall clock; the target's own limit counts computing."""

_EDITS = st.lists(
    st.builds(Edit, st.integers(0, 8), st.integers(0, MAX_INPUT_BYTES), st.integers(0, 200), st.integers(0, 255)),
    max_size=MAX_EDITS,
)


def has_atheris() -> bool:
    """Whether the coverage-guided engine is installed (`pip install ".[fuzz]"`; Linux and macOS)."""
    return importlib.util.find_spec("atheris") is not None


def inputs(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Altered seeds and, now and then, anything."""
    altered = st.builds(edited, st.sampled_from(seeds), _EDITS, st.just(seeds))
    return altered | st.binary(max_size=200)


def run_examples(target: Target, n_examples: int, *, seed_number: int) -> None:
    """So many inputs by hypothesis, always the same for a `seed_number`.

    Raises:
        FindingError: of the smallest input that was found; it has the input as its last argument.
    """
    smallest: dict[type, tuple[bytes, FindingError]] = {}

    @seed(seed_number)
    @settings(
        max_examples=n_examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(inputs(list(target.seeds())))
    def examples(data: bytes) -> None:
        try:
            check(target, data)
        except FindingError as finding:
            smallest[FindingError] = data, finding
            raise

    try:
        examples()
    except FindingError as finding:
        data = smallest[FindingError][0]
        raise FindingError(str(finding), data) from finding


def fuzz_with_hypothesis(target: Target, seconds: float, folder: Path) -> int:
    """Inputs until the time is over. The number that ran.

    Raises:
        FindingError: after the input was saved in `folder`.
    """
    ends_at_s, n_run, n_examples = time.monotonic() + seconds, 0, 100
    while time.monotonic() < ends_at_s:
        try:
            run_examples(target, n_examples, seed_number=random.SystemRandom().getrandbits(32))
        except FindingError as finding:
            data: bytes = finding.args[1]
            (folder / f"finding-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise
        n_run += n_examples
    return n_run


def fuzz_with_atheris(target: Target, seconds: float, folder: Path, corpus: Path) -> None:
    """Inputs until the time is over; then, or at a finding, which is saved in `folder`, the process ends."""
    atheris = importlib.import_module("atheris")
    seeds = list(target.seeds())
    for data in seeds:
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    limit_address_space()

    def one(data: bytes) -> None:
        check(target, data, measures_memory=False)

    def altered(data: bytes, max_size: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        edits = [
            Edit(rng.randrange(9), rng.randrange(MAX_INPUT_BYTES), rng.randrange(201), rng.randrange(256))
            for _ in range(rng.randint(1, MAX_EDITS))
        ]
        return edited(data, edits, seeds)[:max_size]

    options = (
        f"-max_total_time={seconds:.0f}",
        f"-artifact_prefix={folder}/",
        f"-timeout={SLOWEST_S}",
        f"-max_len={max([MAX_INPUT_BYTES, *map(len, seeds)])}",
        "-rss_limit_mb=0",  # the address space is limited instead: what is claimed counts, touched or not
        "-print_final_stats=1",
        "-verbosity=0",
    )
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=altered)
    atheris.Fuzz()


def instrumented(load: Callable[[], Any], rooms: Iterable[str]) -> Any:
    """What `load` imports, with the code of these packages watched by atheris."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=list(rooms), enable_loader_override=False):
        return load()


def limit_address_space() -> None:
    """Have an allocation of a gigabyte fail, in C code too."""
    with Path("/proc/self/statm").open() as statm:
        now_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (now_bytes + HEADROOM_BYTES, hard))
