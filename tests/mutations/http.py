"""Classes 10 to 13: browsers, limits and numbers, slow and huge requests, injection."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_BROWSERS, _NUMBERS = "test_10_browsers.py", "test_11_limits_and_numbers.py"
_SIGNED_IN = "test_10_signed_in_browsers.py"
_SLOW, _INJECTION = "test_12_slow_and_huge.py", "test_13_injection.py"

HTTP = (
    Mutation(
        attack=10,
        what="a coordinator's own names only",
        file="coordinator/middleware.py",
        before="        check_host(host, request.app[KNOWN_NAMES])\n",
        after="        str(host)\n",
        tests=(f"{_BROWSERS}::test_a_page_whose_name_was_pointed_at_the_coordinator_gets_nothing",),
    ),
    Mutation(
        attack=10,
        what="a worker's own names only",
        file="protocol/guarded_application.py",
        before="            check_host(host, names or frozenset(), who=who, option=option)\n",
        after="            str(host)\n",
        tests=(f"{_BROWSERS}::test_a_worker_answers_to_its_own_names_only",),
    ),
    Mutation(
        attack=10,
        what="JSON only, which a page can't send without asking",
        file="coordinator/middleware.py",
        before='    if request.content_type not in ("application/json", "application/octet-stream"):\n',
        after="    if not request.content_type:\n",
        tests=(f"{_BROWSERS}::test_what_a_page_can_send_without_asking_changes_nothing",),
    ),
    Mutation(
        attack=10,
        what="no CORS header",
        file="protocol/guarded_site.py",
        before='    "X-Content-Type-Options": "nosniff",\n}',
        after='    "X-Content-Type-Options": "nosniff",\n    "Access-Control-Allow-Origin": "*",\n}',
        tests=(f"{_BROWSERS}::test_no_origin_is_allowed_anything",),
    ),
    Mutation(
        attack=10,
        what="loopback unless told otherwise",
        file="coordinator/config.py",
        before='environ.get("BRIGADE_LISTEN") or "127.0.0.1", default',
        after='environ.get("BRIGADE_LISTEN") or "0.0.0.0", default',
        tests=(f"{_BROWSERS}::test_it_listens_on_loopback_unless_told_otherwise_and_then_says_so",),
    ),
    Mutation(
        attack=10,
        what="security headers on every answer",
        file="coordinator/application.py",
        before="    app.on_response_prepare.append(add_security_headers)\n",
        after="",
        tests=(f"{_BROWSERS}::test_every_answer_has_the_security_headers",),
    ),
    Mutation(
        attack=10,
        what="a signed-in browser changes things for our own page only: where it comes from",
        file="coordinator/dashboard_door.py",
        before="        check_origin(request)\n",
        after="",
        tests=(f"{_SIGNED_IN}::test_another_sites_page_changes_nothing_with_the_operators_cookie",),
    ),
    Mutation(
        attack=10,
        what="other ports of the coordinator's host are other sites",
        file="coordinator/dashboard_door.py",
        before="    _check_from_here(request)\n",
        after="",
        tests=(f"{_SIGNED_IN}::test_another_sites_page_changes_nothing_with_the_operators_cookie",),
    ),
    Mutation(
        attack=10,
        what="a token that only our page has, of this very session",
        file="coordinator/dashboard_sessions.py",
        before="        return token.session_id == claims.session_id\n",
        after="        return bool(token)\n",
        tests=(f"{_SIGNED_IN}::test_the_token_must_be_this_sessions_own",),
    ),
    Mutation(
        attack=10,
        what="a session of the secret that was shown",
        file="coordinator/credentials.py",
        before="            if any(hmac.compare_digest(mark, secret_mark(each)) for each in good):\n",
        after="            if good:\n",
        tests=(f"{_SIGNED_IN}::test_no_token_of_another_kind_is_a_session_and_no_session_is_another_token",),
    ),
    Mutation(
        attack=10,
        what="the page is framed by nobody",
        file="coordinator/dashboard_assets.py",
        before="; frame-ancestors 'none'\"\n",
        after='"\n',
        tests=(f"{_SIGNED_IN}::test_no_answer_lets_another_site_read_or_frame_it",),
    ),
    Mutation(
        attack=11,
        what="the socket's own address counts",
        file="coordinator/worker_api.py",
        before='    return str(name[0]) if name else ""\n',
        after='    return request.headers.get("X-Forwarded-For", str(name[0]) if name else "")\n',
        tests=(f"{_NUMBERS}::test_headers_dont_make_another_address_of_a_caller",),
    ),
    Mutation(
        attack=11,
        what="a network of IPv6 is one caller",
        file="protocol/host_names.py",
        before="        return str(ipaddress.IPv6Network((literal, 64), strict=False))\n",
        after="        return str(literal)\n",
        tests=(f"{_NUMBERS}::test_a_machine_with_many_addresses_is_one_caller",),
    ),
    Mutation(
        attack=11,
        what="how many generations of a key may run",
        file="coordinator/policy/quota.py",
        before="    if limits.max_concurrent is not None and n_running >= limits.max_concurrent:\n",
        after="    if limits.max_concurrent is not None and n_running > 10**6:\n",
        tests=(f"{_NUMBERS}::test_of_those_who_race_for_the_last_unit_one_gets_it",),
    ),
    Mutation(
        attack=11,
        what="limits within their ranges",
        file="protocol/key_limits.py",
        before="        if isinstance(value, int | float) and not least <= value <= most:\n",
        after="        if isinstance(value, int | float) and value > most:\n",
        tests=(f"{_NUMBERS}::test_numbers_that_nobody_means_are_refused_everywhere",),
    ),
    Mutation(
        attack=11,
        what="no less than nothing is used",
        file="coordinator/policy/quota.py",
        before="    n_completion = min(max(n_completion_tokens, 0), wanted.max_tokens)\n",
        after="""    if not has_failed:
        return n_completion_tokens + n_prompt_tokens
    n_completion = min(max(n_completion_tokens, 0), wanted.max_tokens)
""",
        tests=(f"{_NUMBERS}::test_what_is_given_back_is_given_back_once",),
    ),
    Mutation(
        attack=12,
        what="a deadline for TLS handshakes",
        file="protocol/guarded_site.py",
        before="            ssl_handshake_timeout=HANDSHAKE_S if self._ssl_context is not None else None,\n",
        after="",
        tests=(f"{_SLOW}::test_slow_handshakes_are_cut_off",),
    ),
    Mutation(
        attack=12,
        what="a deadline for bodies",
        file="coordinator/middleware.py",
        before="        async with asyncio.timeout(BODY_TIMEOUT_S):\n",
        after="        async with asyncio.timeout(None):\n",
        tests=(f"{_SLOW}::test_slow_bodies_are_cut_off",),
    ),
    Mutation(
        attack=12,
        what="the length that a body is said to have",
        file="coordinator/middleware.py",
        before="    if (request.content_length or 0) > MAX_BODY_BYTES:\n",
        after="    if (request.content_length or 0) < 0:\n",
        tests=(f"{_SLOW}::test_huge_and_compressed_bodies_are_refused_unread",),
    ),
    Mutation(
        attack=12,
        what="the largest body of a request",
        file="coordinator/application.py",
        before="web.Application(client_max_size=MAX_BODY_BYTES,",
        after="web.Application(client_max_size=2**40,",
        tests=(f"{_SLOW}::test_huge_and_compressed_bodies_are_refused_unread",),
    ),
    Mutation(
        attack=12,
        what="so many connections of one address",
        file="protocol/guarded_site.py",
        before="        if self._counts[self._address] > self._max_connections:\n",
        after="        if self._counts[self._address] > 10**9:\n",
        tests=(f"{_SLOW}::test_an_address_has_so_many_connections_and_others_have_theirs",),
    ),
    Mutation(
        attack=12,
        what="a deadline for readers of files",
        file="protocol/file_answers.py",
        before="        async with asyncio.timeout(chunk_s):\n",
        after="        async with asyncio.timeout(None):\n",
        tests=(f"{_SLOW}::test_a_worker_that_never_reads_a_file_is_cut_off",),
    ),
    Mutation(
        attack=12,
        what="so many connections of clients",
        file="worker/server.py",
        before="        if n_open >= limit:\n",
        after="        if n_open >= limit + 10**9:\n",
        tests=(f"{_SLOW}::test_sockets_that_say_nothing_or_crowd_are_refused",),
    ),
    Mutation(
        attack=12,
        what="a deadline for the first message of a control socket",
        file="coordinator/control_socket.py",
        before="            async with asyncio.timeout(ANNOUNCE_TIMEOUT_S):\n",
        after="            async with asyncio.timeout(None):\n",
        tests=(f"{_SLOW}::test_a_control_socket_that_says_nothing_is_closed",),
    ),
    Mutation(
        attack=13,
        what="requests have no fields but their own",
        file="protocol/rest.py",
        before="class RequestBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True,",
        after="class RequestBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=False,",
        tests=(
            f"{_INJECTION}::test_nothing_can_be_set_that_a_request_doesnt_have",
            f"{_INJECTION}::test_a_request_with_more_fields_changes_nothing",
        ),
    ),
    Mutation(
        attack=13,
        what="what strangers wrote is made harmless in the log",
        file="protocol/logs.py",
        before="            _make_harmless,\n",
        after="",
        tests=(f"{_INJECTION}::test_a_log_line_is_one_line_and_obeyed_by_no_terminal",),
    ),
    Mutation(
        attack=13,
        what="what workers say is made harmless in tables",
        file="coordinator/cli_output.py",
        before='    return "".join(character if character.isprintable() else " " for character in text)\n',
        after="    return text\n",
        tests=(f"{_INJECTION}::test_what_a_worker_says_of_itself_is_shown_as_text",),
    ),
    Mutation(
        attack=13,
        what="a defect is answered without its words",
        file="coordinator/middleware.py",
        before="""    except Exception:
        log.exception("request_failed", method=request.method, path=request.path[:200])
        return error_answer(InternalError("something went wrong in the coordinator; its log has the details"))
""",
        after="""    except Exception as exc:
        return error_answer(InternalError(repr(exc)))
""",
        tests=(f"{_INJECTION}::test_a_defect_is_answered_without_a_word_of_ours",),
    ),
)
