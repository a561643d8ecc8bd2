"""Settings over HTTP: in force at once, over restarts, below what was given at the start; bad ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.policy.effects import SaveSetting
from protocol.rest import ErrorAnswer
from protocol.settings_rest import ChangeSettingsRequest, SettingInfo, SettingList, SettingValue
from tests.support.coordinators import Http, http_session, key_of, running_coordinator

PATH = "/admin/v1/settings"


async def changed(admin: Http, **values: SettingValue | None) -> SettingList:
    answer = await admin.ask("PATCH", PATH, ChangeSettingsRequest(settings=values))
    assert answer.status == 200, answer.body
    return answer.read(SettingList)


def named(found: SettingList, name: str) -> SettingInfo:
    return next(info for info in found.settings if info.name == name)


async def test_a_change_is_in_force_at_once_over_restarts_and_until_it_is_reset(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
            before = named((await admin.ask("GET", PATH)).read(SettingList), "replan_margin")
            assert (before.value, before.source) == (1.2, "default")
            found = named(await changed(admin, replan_margin=1.5, placement="one-stream"), "replan_margin")
        assert (found.value, found.source, found.default) == (1.5, "stored", 1.2)
        assert coordinator.cluster.state.settings.replan_margin == 1.5
    async with running_coordinator(tmp_path) as coordinator:
        assert coordinator.cluster.state.settings.placement == "one-stream"
        assert coordinator.cluster.state.settings.settle_s == 0.0, "what the start said of others"
        async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
            await changed(admin, replan_margin=None)
        assert coordinator.cluster.state.settings.replan_margin == 1.2
        lines = [line.details for line in await coordinator.repository.audit_lines() if "replan" in line.details]
    assert any("replan_margin 1.5 -> 1.2" in line for line in lines)


async def test_what_was_given_at_the_start_goes_before_what_is_stored(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        await changed(admin, placement="one-stream")
    given = {"placement": "--placement"}
    async with running_coordinator(tmp_path, placement="many-streams", given=given) as coordinator:
        assert coordinator.cluster.state.settings.placement == "many-streams"
        async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
            info = named((await admin.ask("GET", PATH)).read(SettingList), "placement")
            assert (info.source, info.stored) == ("given", "one-stream")
            assert "--placement" in info.where
            answer = await admin.ask("PATCH", PATH, ChangeSettingsRequest(settings={"placement": "spread"}))
            assert answer.status == 409
            assert "many-streams by --placement" in answer.read(ErrorAnswer).error.message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"placement": "fastest"}, "one-stream"),
        ({"replan_margin": 0.5}, "1.01 to 100"),
        ({"replan_margin": "much"}, "1.01 to 100"),
        ({"auto_quantize": 1}, "on or off"),
        ({"listen": "x"}, "there are placement"),
        ({"suspect_after_s": 60.0}, "first raise lost_after_s to 60 at least, or lower suspect_after_s to 15"),
        ({}, "at least one"),
    ],
)
async def test_what_cant_be_is_refused_with_what_can(tmp_path: Path, values: dict, said: str) -> None:  # type: ignore[type-arg]
    async with running_coordinator(tmp_path, is_patient=False) as coordinator:
        before = coordinator.cluster.state.settings
        async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
            body = {"settings": {**values, **({"replan": "off"} if values else {})}}
            answer = await admin.ask("PATCH", PATH, json=body)
        assert answer.status == 400
        assert said in answer.read(ErrorAnswer).error.message
        assert coordinator.cluster.state.settings == before, "all or none"


async def test_of_two_who_change_one_thing_the_second_hears_of_the_first(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        etag = (await admin.ask("GET", PATH)).headers["ETag"]
        wanted = ChangeSettingsRequest(settings={"replan": "off"})
        first = await admin.ask("PATCH", PATH, wanted, headers={"If-Match": etag})
        second = await admin.ask("PATCH", PATH, wanted, headers={"If-Match": etag})
    assert (first.status, second.status) == (200, 412)


async def test_what_was_stored_and_cant_be_used_any_more_is_not_shown_as_in_force(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await coordinator.repository.apply([SaveSetting(name="replan", value="sometimes")])
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        info = named((await admin.ask("GET", PATH)).read(SettingList), "replan")
        assert (info.value, info.source, info.stored) == ("auto", "default", "sometimes")
        assert "sometimes, to which it was changed here, can't be used" in info.where
