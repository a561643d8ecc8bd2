"""What operators ask about settings: what is in force and where it comes from, and changing it while all runs.

What was given at the start goes before what is changed here, and this before the defaults: so a coordinator that is
started again with an option obeys the option.
"""

from __future__ import annotations

from aiohttp import web

from coordinator.credentials import KeyCaller
from coordinator.keys import CALLER, CLUSTER, CONFIG
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.policy.events import SettingsChanged
from coordinator.policy.settings import SETTINGS, Setting, setting_named, shown, with_values
from coordinator.route_docs import Resource, RouteDoc
from protocol.errors import ConflictError, OverloadedError
from protocol.settings_rest import ChangeSettingsRequest, SettingInfo, SettingList, SettingValue


def add_settings_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(
        app,
        "admin",
        "GET",
        "/admin/v1/settings",
        settings,
        RouteDoc("List the settings that can be changed.", answer=SettingList, resource=_RESOURCE),
    )
    add_route(
        app,
        "admin",
        "PATCH",
        "/admin/v1/settings",
        change_settings,
        RouteDoc(
            "Change settings, all that are named or none; null gives one up.",
            body=ChangeSettingsRequest,
            answer=SettingList,
            errors=(ConflictError, OverloadedError),
            resource=_RESOURCE,
        ),
    )


async def settings(request: web.Request) -> web.Response:
    """-> `SettingList`."""
    return json_answer(_list(request))


async def change_settings(request: web.Request) -> web.Response:
    """`ChangeSettingsRequest` -> `SettingList`, as they are from now on."""
    wanted = (await read_json(request, ChangeSettingsRequest)).settings
    cluster, config, caller = request.app[CLUSTER], request.app[CONFIG], request[CALLER]
    assert isinstance(caller, KeyCaller)  # the route's access says so
    base, stored, in_force = config.policy_settings(), {}, {}
    for name, value in wanted.items():
        setting = setting_named(name)
        if value is not None and name in config.given:
            raise ConflictError(
                f"{name} is {shown(getattr(base, name))} by {config.given[name]}, which goes before what is "
                f"changed here: start the coordinator without {config.given[name]} to change it while it runs"
            )
        stored[name] = None if value is None else setting.checked(value)
        in_force[name] = getattr(base, name) if value is None else setting.checked(value)
    with_values(cluster.state.settings, in_force)
    await cluster.handle(SettingsChanged(stored=stored, in_force=in_force, by=caller.key_id))
    return json_answer(_list(request))


async def _view(request: web.Request) -> SettingList:
    return _list(request)


def _name(_request: web.Request) -> str:
    return "settings"


_RESOURCE = Resource(name=_name, view=_view)


def _list(request: web.Request) -> SettingList:
    return SettingList(settings=tuple(_info(request, setting) for setting in SETTINGS.values()))


def _info(request: web.Request, setting: Setting) -> SettingInfo:
    state, config, name = request.app[CLUSTER].state, request.app[CONFIG], setting.name
    value: SettingValue = getattr(state.settings, name)
    default: SettingValue = getattr(config.policy_settings(), name)
    stored = state.stored_settings.get(name)
    if name in config.given:
        where = f"from {config.given[name]}: start the coordinator without it to change it here"
        return SettingInfo(
            name=name,
            meaning=setting.meaning,
            value=value,
            source="given",
            where=where if stored is None else f"{where}, to {shown(stored)} then, which was changed here",
            default=default,
            allowed=setting.allowed_words(),
            stored=stored,
        )
    where = "the default" if stored is None else "changed here; `coord settings reset` ends that"
    if stored not in (None, value):
        where = f"the default: {shown(stored)}, to which it was changed here, can't be used; change or reset it"
    return SettingInfo(
        name=name,
        meaning=setting.meaning,
        value=value,
        source="stored" if stored == value else "default",
        where=where,
        default=default,
        allowed=setting.allowed_words(),
        stored=stored,
    )
