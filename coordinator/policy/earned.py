"""Which owners' keys have earned priority by what their machines gave. Values in, values out.

What an owner gave counts half as much with every week. Who gave at least as much as the owners did on the average
(his share of all is at least 1/n of n), and something that is worth mentioning at all, has his keys served as one
class higher: `low` as `normal`, `normal` as `high`. Nobody gets more than that, whatever he gives, so that a key of
a stranger is never served less than the weights of the classes say; and who stops giving falls back in time.

That who gives more is served first, among few fixed classes, is the rule by which BitTorrent's peers choose
whom they serve (Cohen, Incentives Build Robustness in BitTorrent, 2003).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date

from protocol.key_limits import Priority
from protocol.quota_rest import Contribution

HALF_LIFE_DAYS = 7.0
LOOKED_BACK_DAYS = 56
"""What is older counts for less than 1/256."""
LEAST_TOKEN_BLOCKS = 1000.0
"""Who gave less gave nothing: a few tokens through a few blocks, in a cluster that is hardly used."""

_RAISED: Mapping[Priority, Priority] = {"low": "normal", "normal": "high", "high": "high"}


def given_lately(contributions: Iterable[Contribution], today: date) -> dict[str, float]:
    """What each owner gave, older days counting for less; what is nobody's counts for nobody."""
    given: defaultdict[str, float] = defaultdict(float)
    for one in contributions:
        age_days = (today - date.fromisoformat(one.day)).days
        if one.owner:
            given[one.owner] += one.n_token_blocks * 0.5 ** (max(0, age_days) / HALF_LIFE_DAYS)
    return dict(given)


def raised_owners(given: Mapping[str, float]) -> frozenset[str]:
    """Those whose keys have earned priority."""
    counted = {owner: amount for owner, amount in given.items() if amount >= LEAST_TOKEN_BLOCKS}
    if not counted:
        return frozenset()
    average = sum(counted.values()) / len(counted)
    return frozenset(owner for owner, amount in counted.items() if amount >= average * (1 - 1e-9))


def raised(priority: Priority) -> Priority:
    """One class higher; there is none above `high`."""
    return _RAISED[priority]
