from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from protocol.config_shown import ShownOption, settings_text
from protocol.config_values import FromFile, Section

SECTION = Section(
    name="worker",
    commands=("join",),
    variables={"state": "STATE"},
    yields_to={"secret-file": ("SECRET", "--secret")},
)


def shown(key: str, value: Any = None, *, is_given: bool = False, what: str = "") -> ShownOption:
    return ShownOption(key=key, value=value, is_given=is_given, help=what)


def test_every_value_says_where_it_comes_from_and_secrets_are_not_shown() -> None:
    options = [
        shown("listen", "127.0.0.1:1", is_given=True),
        shown("threads", 4),
        shown("state"),
        shown("wire", "auto"),
        shown("secret", "S3CRET"),
        shown("secret-file"),
        shown("database-url", "postgresql://b:S3CRET@h/d", is_given=True),
        shown("verbose", False, what="Log\n  more \\[default: no]."),
    ]
    taken = {
        key: FromFile(section="worker", key=key, value=None, where=f"/f, line {line}")
        for key, line in (("threads", 3), ("secret", 4))
    }
    text = settings_text("# x", [SECTION], options, taken, {"STATE": "/env", "SECRET": "S3CRET"})
    assert text.splitlines() == [
        "# x",
        "[worker]",
        'listen = "127.0.0.1:1"  # --listen',
        "threads = 4  # /f, line 3",
        'state = "/env"  # STATE',
        'wire = "auto"  # the default',
        "# secret is set, and a secret  # /f, line 4",
        "# secret-file: SECRET goes before it",
        "# database-url is set, and a secret  # --database-url",
        "",
        "# Not set:",
        "# verbose: Log more [default: no].",
    ]


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"))
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.just(value=True)
    | st.lists(st.text("ab\"'\\\n"), min_size=1)
)
def test_what_is_printed_is_a_file_that_says_the_same(value: Any) -> None:
    text = settings_text("# x", [SECTION], [shown("wire", value, is_given=True)], {}, {})
    assert tomllib.loads(text) == {"worker": {"wire": value}}
