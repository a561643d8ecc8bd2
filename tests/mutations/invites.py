"""Class 3, invites, and class 26 on the local network: by which other ways workers are let in."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_INVITES, _LAN = "test_03_invites.py", "test_26_announcements.py"

INVITES = (
    Mutation(
        attack=3,
        what="an invite is for so many workers",
        file="coordinator/invite_store.py",
        before="        if len(self.workers) >= self.n_uses:\n            return f",
        after="        if False:\n            return f",
        tests=(f"{_INVITES}::test_an_invite_that_got_into_other_hands_lets_nobody_in_a_second_time",),
    ),
    Mutation(
        attack=3,
        what="an invite ends",
        file="coordinator/invite_store.py",
        before="        if now >= self.expires_at:\n",
        after="        if False:\n",
        tests=(f"{_INVITES}::test_an_old_invite_that_is_found_lets_nobody_in",),
    ),
    Mutation(
        attack=3,
        what="a revoked invite is refused",
        file="coordinator/invite_store.py",
        before="""        if self.revoked_at is not None:
            return f"was revoked""",
        after="""        if False:
            return f"was revoked""",
        tests=(f"{_INVITES}::test_a_revoked_invite_keeps_out_those_too_who_came_by_it",),
    ),
    Mutation(
        attack=3,
        what="an invite's key is its own",
        file="coordinator/authority.py",
        before='info = b"invite key for " + invite_id.encode()',
        after='info = b"invite key"',
        tests=(f"{_INVITES}::test_one_invite_tells_nothing_of_another_and_a_stranger_nothing_of_any",),
    ),
    Mutation(
        attack=3,
        what="the CA that an invite pins",
        file="protocol/invites.py",
        before="    if not hmac.compare_digest(_fingerprint(ca_pem), invite.ca_fingerprint):",
        after="    if False:",
        tests=(f"{_INVITES}::test_who_holds_the_same_invite_cannot_pose_as_the_coordinator",),
    ),
    Mutation(
        attack=3,
        what="who grants by an invite is certified as coordinator",
        file="protocol/invites.py",
        before="    if not _is_coordinators(certificate, ca_pem):",
        after="    if False:",
        tests=(f"{_INVITES}::test_who_holds_the_same_invite_cannot_grant_what_the_coordinator_granted_before",),
    ),
    Mutation(
        attack=3,
        what="a certificate request is for one exchange",
        file="coordinator/authority.py",
        before="        if challenge is not None and _challenge_of(request) != challenge.encode():",
        after="        if False:",
        tests=(f"{_INVITES}::test_who_has_an_invite_and_saw_anothers_request_cannot_join_in_the_others_name",),
    ),
    Mutation(
        attack=3,
        what="an invite is used up by who has the key of the worker that it names",
        file="coordinator/joining.py",
        before="""        answer = encode_json(await self._grant(request, token, now_s))
        invite_id = request.invite_id
""",
        after="""        if request.invite_id is not None:
            await self._use_invite(request.invite_id, request.worker_id, now_s)
        answer = encode_json(await self._grant(request, token, now_s))
        invite_id = None
""",
        tests=(f"{_INVITES}::test_who_uses_an_invite_up_must_have_the_key_of_the_worker_that_it_names",),
    ),
    Mutation(
        attack=26,
        what="who is announced proves the secret too",
        file="worker/discovery.py",
        before="credentials = await granted(enrolled)",
        after="return FoundCoordinator(urls=urls, credentials=None)",
        tests=(f"{_LAN}::test_a_false_announcement_is_refused_learns_nothing_and_the_next_is_tried",),
    ),
)
