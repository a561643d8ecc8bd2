"""What operators have fixed by hand, as rows: pins of blocks, and settings changed while a coordinator ran."""

from __future__ import annotations

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from coordinator.operator_tables import PinRow
from coordinator.policy.effects import DeletePin, DeleteSetting, SaveMoveAsked, SaveMoving, SavePin, SaveSetting
from coordinator.policy.pins import Pin
from coordinator.policy.settings import SettingValue
from coordinator.policy.under_way import Moving
from coordinator.tables import SettingRow
from protocol.errors import StorageError
from protocol.ids import BlockRange, ModelName, WorkerId

SETTING_PREFIX = "policy."
"""Before the names of these settings among the facts about the whole cluster."""
MOVE_ASKED = "move_asked"
"""There while a move that an operator asked for isn't over."""
MOVING = "moving"
"""What is being moved, while anything is."""


def persist_choice(
    session: Session, effect: SavePin | DeletePin | SaveSetting | DeleteSetting | SaveMoveAsked | SaveMoving
) -> None:
    """Carry out one of these effects."""
    match effect:
        case SavePin(worker_id=worker_id, pin=pin):
            session.merge(_pin_row(worker_id, pin))
        case DeletePin(worker_id=worker_id):
            session.execute(delete(PinRow).where(PinRow.worker_id == worker_id))
        case SaveSetting(name=name, value=value):
            session.merge(SettingRow(key=SETTING_PREFIX + name, value=msgspec.json.encode(value).decode()))
        case DeleteSetting(name=name):
            session.execute(delete(SettingRow).where(SettingRow.key == SETTING_PREFIX + name))
        case SaveMoveAsked(is_asked=True):
            session.merge(SettingRow(key=MOVE_ASKED, value="true"))
        case SaveMoveAsked():
            session.execute(delete(SettingRow).where(SettingRow.key == MOVE_ASKED))
        case SaveMoving(moving=moving):
            session.execute(delete(SettingRow).where(SettingRow.key == MOVING))
            if moving is not None:
                session.add(SettingRow(key=MOVING, value=msgspec.json.encode(moving).decode()))


async def is_move_asked(session: AsyncSession) -> bool:
    """Whether a move that an operator asked for isn't over."""
    return await session.get(SettingRow, MOVE_ASKED) is not None


async def load_moving(session: AsyncSession) -> tuple[Moving | None, str]:
    """What was being moved when the coordinator before this one stopped, and why that can't be read if it can't."""
    row = await session.get(SettingRow, MOVING)
    try:
        return (None if row is None else msgspec.json.decode(row.value, type=Moving)), ""
    except msgspec.DecodeError as exc:
        return None, str(exc)


async def load_pins(session: AsyncSession) -> dict[WorkerId, Pin]:
    """All pins, by worker."""
    rows = await session.scalars(select(PinRow).order_by(PinRow.worker_id))
    return {WorkerId(row.worker_id): _pin(row) for row in rows}


async def load_settings(session: AsyncSession) -> dict[str, SettingValue]:
    """Settings that were changed, by name.

    Raises:
        StorageError: one can't be read.
    """
    rows = await session.scalars(select(SettingRow).where(SettingRow.key.startswith(SETTING_PREFIX)))
    found: dict[str, SettingValue] = {}
    for row in rows:
        try:
            found[row.key.removeprefix(SETTING_PREFIX)] = msgspec.json.decode(row.value, type=str | float | bool)
        except msgspec.DecodeError as exc:
            raise StorageError(f"the stored setting {row.key} is damaged: delete its row in `settings`") from exc
    return found


def _pin_row(worker_id: WorkerId, pin: Pin) -> PinRow:
    return PinRow(
        worker_id=worker_id,
        model=pin.model,
        start=pin.blocks.start,
        end=pin.blocks.end,
        by=pin.by,
        reason=pin.reason,
        takes_from=pin.takes_from,
        taken_start=None if pin.taken is None else pin.taken.start,
        taken_end=None if pin.taken is None else pin.taken.end,
        is_forced=pin.is_forced,
    )


def _pin(row: PinRow) -> Pin:
    is_move = row.taken_start is not None and row.taken_end is not None
    return Pin(
        model=ModelName(row.model),
        blocks=BlockRange(row.start, row.end),
        by=row.by,
        reason=row.reason,
        takes_from=None if row.takes_from is None else WorkerId(row.takes_from),
        taken=BlockRange(row.taken_start or 0, row.taken_end or 0) if is_move else None,
        is_forced=row.is_forced,
    )
