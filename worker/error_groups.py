"""What a task group's error holds."""

from __future__ import annotations

from protocol.errors import BrigadeError, UnreachableError


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group, of groups in it too; or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for child in error.exceptions for leaf in leaves(child)]
    return [error]


def most_telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error in a group, or one of ours if all are; the group itself if there is a defect among several.

    What broke a connection says less than anything else that was said on it.
    """
    found = leaves(group)
    ours = [error for error in found if isinstance(error, BrigadeError)]
    if len(found) == 1:
        return found[0]
    if len(ours) == len(found):
        return min(ours, key=lambda error: isinstance(error, UnreachableError))
    return group
