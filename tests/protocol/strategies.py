"""Hypothesis strategies for the protocol's values, built from the types themselves where the types say enough."""

from __future__ import annotations

from hypothesis import strategies as st

from protocol.errors import ErrorBody
from protocol.ids import BlockRange
from protocol.manifest import FORMAT_VERSION, Manifest, ModelFile
from protocol.messages import (
    STEP_CREDIT,
    AttachTail,
    CloseSession,
    Credit,
    FeedToken,
    OpenSession,
    SamplingParams,
    SessionEnded,
    SessionOpened,
    Step,
    Token,
)
from protocol.prompt_cost import PromptCost

ids = st.text(min_size=1, max_size=40)
positions = st.integers(0, 2**31 - 1)
costs = st.floats(0, 1e6)
token_ids = st.integers(0, 2**31 - 1)
block_ranges = st.tuples(st.integers(0, 5000), st.integers(1, 5000)).map(lambda p: BlockRange(p[0], p[0] + p[1]))
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
file_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)

sampling = st.builds(
    SamplingParams,
    temperature=st.just(0.0) | st.floats(0.001, 100),
    top_p=st.floats(0.001, 1),
    top_k=st.integers(0, 2**31 - 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    seed=st.integers(0, 2**63 - 1),
    stop_token_ids=st.lists(token_ids, max_size=8).map(tuple),
    max_tokens=st.integers(1, 2**31 - 1),
)

data_messages = st.one_of(
    st.builds(
        OpenSession,
        session_id=ids,
        tickets=st.lists(st.text(max_size=50), max_size=4).map(tuple),
        deadline_s=st.floats(0, 1e6),
    ),
    st.builds(AttachTail, session_id=ids, ticket=ids, sampling=sampling),
    st.builds(
        Step,
        session_id=ids,
        position=positions,
        n_tokens=st.integers(1, 2**31 - 1),
        dtype=st.sampled_from(["int32", "float32", "bfloat16", "float16"]),
        is_last=st.booleans(),
    ),
    st.builds(FeedToken, session_id=ids, position=positions, token_id=token_ids),
    st.builds(CloseSession, session_id=ids, reason=st.sampled_from(["finished", "cancelled", "failed", "lost"])),
    st.builds(
        SessionOpened,
        session_id=ids,
        prompt_costs=st.lists(st.builds(PromptCost, base=costs, per_token=costs, per_pair=costs), max_size=3).map(
            tuple
        ),
    ),
    st.builds(Credit, session_id=ids, n_steps=st.integers(1, STEP_CREDIT)),
    st.builds(
        SessionEnded,
        session_id=ids,
        worker_id=ids,
        error=st.builds(ErrorBody, code=ids, message=st.text(max_size=50), retry_after_s=st.none()),
    ),
    st.builds(
        Token,
        session_id=ids,
        index=positions,
        token_id=token_ids,
        finish_reason=st.sampled_from([None, "stop", "length"]),
    ),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Well-formed manifests; a tied embedding is named in `before` and `after`."""
    n_blocks = draw(st.integers(1, 6))

    sizes: dict[str, int] = {}

    def file(name: str) -> ModelFile:
        sha256 = draw(hashes)
        size_bytes = sizes.setdefault(sha256, draw(st.integers(0, 2**20)))
        return ModelFile(name=name, sha256=sha256, size_bytes=size_bytes, n_parameters=1)

    embedding, norm = file("embedding.safetensors"), file("norm.safetensors")
    is_tied = draw(st.booleans())
    return Manifest(
        format_version=FORMAT_VERSION,
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=draw(st.integers(1, 2**20)),
        vocab_size=draw(st.integers(1, 2**20)),
        context_length=draw(st.integers(1, 2**20)),
        kv_elements_per_token=draw(st.integers(1, 2**20)),
        weights_dtype="float32",
        is_chat=draw(st.booleans()),
        blocks=tuple(file(f"block-{i:05d}.safetensors") for i in range(n_blocks)),
        before=(embedding,),
        after=(norm, embedding) if is_tied else (norm,),
        auxiliary=(file("config.json"),),
    )
