"""Classes 1 to 9: who is let in."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_RELAY, _ROLES, _REPLAY = "test_01_reflection_and_relay.py", "test_02_role_confusion.py", "test_03_replay.py"
_WEAK, _SECRETS, _PROMPTS = (
    "test_04_weak_secrets.py", "test_05_secrets_in_the_open.py", "test_05_prompts_in_the_open.py",
)  # fmt: skip
_MAC, _KINDS = "test_06_what_the_mac_covers.py", "test_07_token_kinds.py"
_COMPARING, _DOWNGRADE = "test_08_comparing_secrets.py", "test_09_downgrade.py"

GETTING_IN = (
    Mutation(
        attack=1,
        what="the TLS fingerprint under the MAC",
        file="protocol/handshake.py",
        before="            self.tls_fingerprint,\n",
        after="",
        tests=(f"{_RELAY}::test_a_relay_with_its_own_certificate_gets_neither_side",),
    ),
    Mutation(
        attack=1,
        what="the role under the MAC",
        file="protocol/handshake.py",
        before="            role.encode(),\n",
        after="",
        tests=(
            f"{_RELAY}::test_a_workers_own_proof_thrown_back_at_it_is_no_coordinators",
            f"{_RELAY}::test_the_coordinators_role_lets_nobody_in",
        ),
    ),
    Mutation(
        attack=1,
        what="ids, nonces and body under the MAC",
        file="protocol/handshake.py",
        before="""            self.coordinator_id.encode(),
            self.worker_id.encode(),
            self.client_nonce.encode(),
            self.server_nonce.encode(),
            self.tls_fingerprint,
            hashlib.sha256(self.body).digest(),
""",
        after="            self.tls_fingerprint,\n",
        tests=(f"{_RELAY}::test_a_proof_of_a_parallel_session_is_of_no_use",),
    ),
    Mutation(
        attack=2,
        what="the kinds that may use a route",
        file="coordinator/credentials.py",
        before="if caller.kind not in _ALLOWED[access]:",
        after="if caller.kind not in _ALLOWED[access] | frozenset({'worker', 'client', 'admin'}):",
        tests=(f"{_ROLES}::test_no_kind_of_credential_passes_for_another",),
    ),
    Mutation(
        attack=2,
        what="the stored kind of a key",
        file="coordinator/credentials.py",
        before=" and stored.kind == shown.kind",
        after="",
        tests=(f"{_ROLES}::test_a_client_key_renamed_admin_is_no_admin_key",),
    ),
    Mutation(
        attack=2,
        what="the caller that a ticket is for",
        file="worker/opening.py",
        before="if ticket.previous != peer:",
        after="if ticket.previous != peer and False:",
        tests=(f"{_ROLES}::test_a_workers_certificate_is_no_clients_ticket",),
    ),
    Mutation(
        attack=2,
        what="the worker's name in its certificate",
        file="protocol/tls.py",
        before="    if certificate is not None:\n",
        after="    context.check_hostname = False\n    if certificate is not None:\n",
        tests=(f"{_ROLES}::test_a_worker_cannot_pose_as_another_worker",),
    ),
    Mutation(
        attack=3,
        what="a challenge is good once",
        file="coordinator/joining.py",
        before="self._open.pop(server_nonce, None)",
        after="self._open.get(server_nonce)",
        tests=(
            f"{_REPLAY}::test_a_recorded_join_is_good_once",
            f"{_REPLAY}::test_of_two_copies_sent_at_once_one_gets_in",
        ),
    ),
    Mutation(
        attack=3,
        what="a challenge ends",
        file="coordinator/joining.py",
        before=" and now_s < challenge.expires_at_s else None",
        after=" else None",
        tests=(f"{_REPLAY}::test_a_join_kept_back_too_long_is_worth_nothing",),
    ),
    Mutation(
        attack=3,
        what="the limit of attempts by address",
        file="coordinator/joining.py",
        before="        if not result.is_granted:\n",
        after="        if not result.is_granted and False:\n",
        tests=(f"{_REPLAY}::test_filling_the_nonce_store_throws_nobody_out_who_is_joining",),
    ),
    Mutation(
        attack=3,
        what="the worker's clock is compared",
        file="coordinator/joining.py",
        before="        _check_clock(request.time_s, now_s)\n",
        after="",
        tests=(f"{_REPLAY}::test_a_clock_that_is_wrong_either_way_is_refused",),
    ),
    Mutation(
        attack=4,
        what="the strength of a secret",
        file="protocol/handshake.py",
        before="if entropy_bits(secret) < MIN_SECRET_ENTROPY_BITS:",
        after="if entropy_bits(secret) < 0:",
        tests=(
            f"{_WEAK}::test_a_state_folder_whose_secret_was_weakened_keeps_it_shut",
            f"{_WEAK}::test_both_programs_refuse_to_start_with_it",
        ),
    ),
    Mutation(
        attack=5,
        what="files with secrets are for their owner alone",
        file="protocol/disk.py",
        before="os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)",
        after="os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)",
        tests=(
            "tests/protocol/test_disk.py::test_a_file_is_written_whole_for_its_owner_alone_or_the_old_one_stays",
        ),
    ),
    Mutation(
        attack=5,
        what="tracebacks without the values of variables",
        file="coordinator/cli.py",
        before="    pretty_exceptions_enable=False,\n",
        after="    pretty_exceptions_show_locals=True,\n",
        tests=(f"{_SECRETS}::test_a_defect_s_traceback_shows_no_values",),
    ),
    Mutation(
        attack=5,
        what="keys are stored hashed",
        file="protocol/api_key.py",
        before="    return hashlib.sha256(secret.encode()).hexdigest()",
        after="    return secret",
        tests=(f"{_SECRETS}::test_not_in_the_database",),
    ),
    Mutation(
        attack=5,
        what="what was sent is not in the reason that is logged",
        file="protocol/codec.py",
        before='_QUOTED_VALUE.sub(r"\\1", str(exc))',
        after="str(exc)",
        tests=(f"{_PROMPTS}::test_not_when_a_worker_is_sent_nonsense",),
    ),
    Mutation(
        attack=6,
        what="the body under the MAC",
        file="protocol/handshake.py",
        before="            hashlib.sha256(self.body).digest(),\n",
        after="",
        tests=(
            f"{_MAC}::test_every_byte_of_the_body_counts",
            f"{_MAC}::test_a_worker_takes_no_grant_that_was_altered",
        ),
    ),
    Mutation(
        attack=6,
        what="no body is unpacked before it is checked",
        file="coordinator/middleware.py",
        before="    if hdrs.CONTENT_ENCODING in request.headers:",
        after="    if hdrs.CONTENT_ENCODING in ():",
        tests=(f"{_MAC}::test_compressed_bodies_and_several_proofs_are_refused",),
    ),
    Mutation(
        attack=7,
        what="a salt of its own for each kind of token",
        file="protocol/tickets.py",
        before='f"brigade.{kind.__struct_config__.tag}.v1".encode()',
        after='b"brigade.v1"',
        tests=(f"{_KINDS}::test_another_kinds_salt_signs_no_session_token",),
    ),
    Mutation(
        attack=7,
        what="tokens end",
        file="protocol/tickets.py",
        before="    if now_s >= claims.expires_at_s:",
        after="    if now_s >= claims.expires_at_s + 1e12:",
        tests=(f"{_KINDS}::test_a_session_token_expires",),
    ),
    Mutation(
        attack=7,
        what="an end that never comes is none",
        file="worker/opening.py",
        before=" or not math.isfinite(ticket.expires_at_s)",
        after="",
        tests=(f"{_KINDS}::test_a_ticket_without_an_end_opens_nothing",),
    ),
    Mutation(
        attack=7,
        what="a revoked key is refused",
        file="coordinator/credentials.py",
        before=" or stored is None or stored.revoked_at is not None:",
        after=" or stored is None:",
        tests=(f"{_KINDS}::test_a_revoked_key_is_refused_everywhere",),
    ),
    Mutation(
        attack=7,
        what="a key of its own for each worker's tickets",
        file="protocol/tickets.py",
        before='info = b"ticket key for " + worker_id.encode()',
        after='info = b"ticket key for any worker"',
        tests=("tests/protocol/test_tickets.py::test_a_worker_s_ticket_key_tells_nothing_of_another_s",),
    ),
    Mutation(
        attack=8,
        what="secrets are compared in constant time",
        file="protocol/handshake.py",
        before='hmac.compare_digest(join_proof(key, transcript, role).encode(), proof.encode("utf-8", "replace"))',
        after="join_proof(key, transcript, role) == proof",
        tests=(f"{_COMPARING}::test_no_secret_is_compared_by_equality",),
    ),
    Mutation(
        attack=8,
        what="unknown, wrong and revoked keys get one answer",
        file="coordinator/credentials.py",
        before="        if not self._matches(shown, stored) or",
        after="""        if stored is None:
            raise UnauthenticatedError("there is no such key")
        if not self._matches(shown, stored) or""",
        tests=(f"{_COMPARING}::test_a_stranger_cannot_tell_which_keys_exist",),
    ),
    Mutation(
        attack=9,
        what="the version under the MAC",
        file="protocol/handshake.py",
        before="            self.version.encode(),\n",
        after="",
        tests=(f"{_DOWNGRADE}::test_the_version_cannot_be_talked_down",),
    ),
    Mutation(
        attack=9,
        what="servers speak TLS 1.3 only",
        file="protocol/tls.py",
        before="""    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    if ca_pem""",
        after="""    context.load_cert_chain(certificate, key)
    if ca_pem""",
        tests=(f"{_DOWNGRADE}::test_no_port_takes_older_tls",),
    ),
    Mutation(
        attack=9,
        what="who comes for the first time speaks TLS 1.3 only",
        file="protocol/tls.py",
        before="    context.minimum_version = ssl.TLSVersion.TLSv1_3\n    context.check_hostname = False\n",
        after="    context.check_hostname = False\n",
        tests=(f"{_DOWNGRADE}::test_nobody_talks_to_a_server_of_older_tls",),
    ),
)
