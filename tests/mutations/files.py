"""Classes 20 to 22: paths, files that lie, programs in models."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_PATHS, _LIES = "test_20_paths_and_addresses.py", "test_21_files_that_lie.py"
_SIGNED, _PROGRAMS = "test_21_signed_models.py", "test_22_templates_and_tokenizers.py"

FILES = (
    Mutation(
        attack=20,
        what="links stay in the model's folder",
        file="coordinator/packing/safetensors_source.py",
        before="    if not resolved.is_relative_to(link_root.resolve()):\n",
        after="    if not resolved.exists():\n",
        tests=(
            f"{_PATHS}::test_an_index_cannot_point_outside_its_folder",
            f"{_PATHS}::test_a_linked_config_shows_nothing_from_outside",
        ),
    ),
    Mutation(
        attack=20,
        what="plain names in a manifest",
        file="protocol/manifest.py",
        before="        if _FILE_NAME.fullmatch(self.name) is None:\n",
        after="        if not self.name:\n",
        tests=(f"{_PATHS}::test_a_manifest_names_no_file_outside_its_folder",),
    ),
    Mutation(
        attack=20,
        what="a model's name is no path",
        file="coordinator/catalogue.py",
        before="        model_name = checked_model_name(name)\n",
        after="        model_name = ModelName(name)\n",
        tests=(f"{_PATHS}::test_a_models_name_is_no_path",),
    ),
    Mutation(
        attack=20,
        what="credentials follow no redirect",
        file="protocol/pinned_http.py",
        before="                allow_redirects=False,\n",
        after="                allow_redirects=True,\n",
        tests=(f"{_PATHS}::test_credentials_do_not_follow_redirects",),
    ),
    Mutation(
        attack=21,
        what="tensors lie side by side",
        file="coordinator/packing/safetensors_format.py",
        before="    _check_covering(found, data_start, file_bytes, label=label)\n",
        after="",
        tests=(f"{_LIES}::test_a_safetensors_header_that_lies_is_refused_and_leaves_nothing",),
    ),
    Mutation(
        attack=21,
        what="a GGUF header's tensors lie inside the file",
        file="protocol/model_files/gguf_header.py",
        before="            if offset % alignment or start + n_bytes > self._size:\n",
        after="            if offset % alignment:\n",
        tests=("tests/coordinator/test_packing_gguf.py::test_a_gguf_that_lies_is_refused",),
    ),
    Mutation(
        attack=21,
        what="downloads are hashed",
        file="worker/downloads.py",
        before="            if part.sha256() != file.sha256:\n                await",
        after="            if part.sha256() == file.name:\n                await",
        tests=(f"{_LIES}::test_a_peer_that_sends_other_bytes_gets_nothing_into_the_cache",),
    ),
    Mutation(
        attack=21,
        what="a file that was touched is hashed again",
        file="worker/files.py",
        before="""            if self._is_unchanged(sha256):
                return path
        self._recheck(sha256)
        return path
""",
        after="            return path\n",
        tests=(f"{_LIES}::test_a_file_swapped_after_its_check_is_checked_again",),
    ),
    Mutation(
        attack=21,
        what="the author of a model is one who is trusted",
        file="coordinator/policy/signing.py",
        before="    if statement.key in state.authors:\n",
        after="    if statement.key:\n",
        tests=(
            f"{_SIGNED}::test_only_what_a_trusted_author_signed_is_added",
            f"{_SIGNED}::test_no_generation_begins_once_the_author_is_trusted_no_longer",
        ),
    ),
    Mutation(
        attack=21,
        what="a model's signature is verified",
        file="protocol/model_signature.py",
        before="        public_key(statement.key).verify(signature.sig, _to_sign(PAYLOAD_TYPE, read.payload))\n",
        after="        public_key(statement.key)\n",
        tests=(f"{_SIGNED}::test_only_what_a_trusted_author_signed_is_added",),
    ),
    Mutation(
        attack=21,
        what="a signature is of one revision",
        file="protocol/model_signature.py",
        before="    if statement.revision != revision:\n",
        after="    if not statement.revision:\n",
        tests=(f"{_SIGNED}::test_only_what_a_trusted_author_signed_is_added",),
    ),
    Mutation(
        attack=21,
        what="a worker's own list of authors",
        file="protocol/model_signature.py",
        before="    if statement.key not in trusted:\n",
        after="    if not trusted:\n",
        tests=(f"{_SIGNED}::test_a_worker_believes_authors_and_not_the_coordinator",),
    ),
    Mutation(
        attack=22,
        what="templates run in the sandbox",
        file="client/template_sandbox.py",
        before="    made = ImmutableSandboxedEnvironment(\n",
        after="    made = jinja2.Environment(\n",
        tests=(f"{_PROGRAMS}::test_a_template_reaches_nothing_but_the_messages",),
    ),
    Mutation(
        attack=22,
        what="templates get no environment",
        file="client/chat_template.py",
        before="        env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},\n",
        after="        env=dict(os.environ),\n",
        tests=(f"{_PROGRAMS}::test_a_template_s_process_knows_no_key",),
    ),
    Mutation(
        attack=22,
        what="a template has little memory",
        file="client/template_sandbox.py",
        before="        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))\n",
        after="        pass\n",
        tests=(f"{_PROGRAMS}::test_a_template_s_process_knows_no_key",),
    ),
    Mutation(
        attack=22,
        what="a library's panic is the file's fault",
        file="client/token_ids.py",
        before='if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":',
        after="if not isinstance(exc, Exception):",
        tests=(f"{_PROGRAMS}::test_a_regular_expression_that_backtracks_is_the_file_s_fault",),
    ),
)
