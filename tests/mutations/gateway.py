"""Classes 2, 5, 10 and 12 at the gateway, at the pages of metrics, and in files of settings."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_APP, _CALLERS = "tests/client/gateway/test_app.py", "tests/client/gateway/test_callers.py"
_CLIENTS, _STREAMS = "tests/client/gateway/test_clients.py", "tests/client/gateway/test_streams.py"
_METRICS, _SITE = "tests/system/test_metrics.py", "tests/protocol/test_metrics_site.py"
_FILE, _ROOM = "tests/protocol/test_config_file.py", "tests/client/gateway/test_body_room.py"

GATEWAY = (
    Mutation(
        attack=2,
        what="a key that is none of the cluster's isn't answered with the gateway's own",
        file="client/gateway/callers.py",
        before="        config.own_key_for_strange,\n",
        after="        config.own_key_for_none,\n",
        tests=(f"{_APP}::test_whose_key_answers",),
    ),
    Mutation(
        attack=2,
        what="the gateway's own key is for this machine's programs",
        file="client/gateway/config.py",
        before="        return self.cluster.api_key if self.share_key or is_loopback(self.listen_host) else None\n",
        after="        return self.cluster.api_key\n",
        tests=(f"{_APP}::test_a_shared_key_answers_placeholders_and_an_unshared_one_nobody_from_elsewhere",),
    ),
    Mutation(
        attack=2,
        what="what a proxy passes on isn't of this machine",
        file="client/gateway/callers.py",
        before="    if not text and not config.share_key and (",
        after="    if text and not config.share_key and (",
        tests=(f"{_CALLERS}::test_what_a_proxy_passes_on_isnt_of_this_machine",),
    ),
    Mutation(
        attack=2,
        what="a key of another cluster is refused",
        file="client/gateway/callers.py",
        before="    if key.ca_fingerprint != config.cluster.api_key.ca_fingerprint:\n",
        after="    if not key.ca_fingerprint:\n",
        tests=(f"{_CALLERS}::test_a_key_of_the_cluster_counts_and_one_of_another_is_refused_here",),
    ),
    Mutation(
        attack=2,
        what="the gateway's metrics are for operators",
        file="client/gateway/metrics_page.py",
        before='    if key.kind != "admin":\n',
        after="    if not key.kind:\n",
        tests=(f"{_METRICS}::test_on_the_programs_own_ports_metrics_are_for_operators",),
    ),
    Mutation(
        attack=2,
        what="the coordinator is asked whether an operator's key is one",
        file="client/gateway/metrics_page.py",
        before="    async with request.app[CLIENTS].lent(key) as client:\n        await client.models()\n",
        after="    str(request.app[CLIENTS])\n",
        tests=(f"{_METRICS}::test_on_the_programs_own_ports_metrics_are_for_operators",),
    ),
    Mutation(
        attack=2,
        what="the coordinator's metrics are for operators",
        file="coordinator/metrics_api.py",
        before='    add_route(app, "admin", "GET", METRICS_PATH,',
        after='    add_route(app, "client", "GET", METRICS_PATH,',
        tests=(f"{_METRICS}::test_on_the_programs_own_ports_metrics_are_for_operators",),
    ),
    Mutation(
        attack=5,
        what="a key that was sent is not repeated",
        file="client/gateway/callers.py",
        before="the API key that was sent ({len(text)} characters)",
        after="the API key that was sent ({text})",
        tests=(f"{_APP}::test_whose_key_answers",),
    ),
    Mutation(
        attack=5,
        what="a file with secrets is its owner's alone",
        file="protocol/config_file.py",
        before="    if not mode & 0o077:\n",
        after="    if not mode & 0o7000:\n",
        tests=(f"{_FILE}::test_a_secret_that_others_may_read_is_refused_and_not_repeated",),
    ),
    Mutation(
        attack=10,
        what="a gateway's own names only",
        file="client/gateway/middleware.py",
        before='        check_host(host, request.app[NAMES], who="gateway", option="--name")\n',
        after="        str(host)\n",
        tests=(f"{_APP}::test_pages_of_other_origins_are_refused_unless_allowed",),
    ),
    Mutation(
        attack=10,
        what="pages of other origins don't use a gateway",
        file="client/gateway/middleware.py",
        before='    if origin not in allowed and "*" not in allowed:\n',
        after="    if not origin:\n",
        tests=(f"{_APP}::test_pages_of_other_origins_are_refused_unless_allowed",),
    ),
    Mutation(
        attack=10,
        what="JSON only, which a page can't send a gateway without asking",
        file="client/gateway/bodies.py",
        before="    if types is not None and request.content_type not in types:\n",
        after="    if types is not None and not request.content_type:\n",
        tests=(f"{_APP}::test_pages_of_other_origins_are_refused_unless_allowed",),
    ),
    Mutation(
        attack=10,
        what="on loopback metrics are no other name's",
        file="protocol/metrics_site.py",
        before="    names = own_names((host,), ()) if is_loopback(host) else None\n",
        after="    names = own_names((host,), ()) if is_loopback(host) and not port + 1 else None\n",
        tests=(f"{_SITE}::test_metrics_are_read_on_loopback_by_no_other_name_and_nothing_else_is",),
    ),
    Mutation(
        attack=10,
        what="who lets others read metrics is warned",
        file="protocol/metrics_address.py",
        before="    if is_loopback(address[0]):\n",
        after="    if address[0]:\n",
        tests=(f"{_SITE}::test_people_are_warned_where_others_reach_it",),
    ),
    Mutation(
        attack=12,
        what="nothing of a body is read for whoever has no key",
        file="client/gateway/middleware.py",
        before="    async with asking_client(request):\n        with",
        after="    if asking_client:\n        with",
        tests=(f"{_APP}::test_nothing_is_read_of_whoever_has_no_key",),
    ),
    Mutation(
        attack=12,
        what="how much of the bodies of one key is kept",
        file="client/gateway/body_room.py",
        before="            if n_others + n_bytes > most:\n",
        after="            if n_others + n_bytes > 2**40 + most:\n",
        tests=(f"{_ROOM}::test_bodies_find_room_or_are_refused_before_they_are_read",),
    ),
    Mutation(
        attack=12,
        what="how many keys that nobody knows are asked about at once",
        file="client/gateway/clients.py",
        before="        if n_opening >= MAX_OPENING:\n",
        after="        if n_opening >= 10**9:\n",
        tests=(f"{_CLIENTS}::test_keys_that_nobody_knows_yet_are_asked_about_a_few_at_a_time",),
    ),
    Mutation(
        attack=12,
        what="a deadline for readers of answers",
        file="client/gateway/streams.py",
        before="            async with asyncio.timeout(stalled_s):\n",
        after="            async with asyncio.timeout(None):\n",
        tests=(f"{_STREAMS}::test_who_doesnt_read_a_whole_answer_is_given_up",),
    ),
    Mutation(
        attack=20,
        what="no file of settings counts because it lies in the working folder",
        file="protocol/config_file.py",
        before='    own = platformdirs.user_config_path("brigade") / FILE_NAME\n',
        after="    own = Path(FILE_NAME)\n",
        tests=(
            f"{_FILE}::test_the_file_is_the_given_one_then_the_variables_then_the_users_and_never_just_the_folders",
        ),
    ),
)
