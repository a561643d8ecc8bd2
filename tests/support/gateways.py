"""A gateway before a tiny cluster with a tiny chat model: everything real, the text random.

async with gateway_cluster(folder) as served:
    answer = await served.post("/v1/chat/completions", {"model": "tiny", "messages": [...]})
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from client.config import ClientConfig
from client.gateway.app import RunningGateway, running
from client.gateway.config import GatewayConfig
from coordinator.file_store import FileStore
from coordinator.packing.pack import pack_model
from protocol.api_key import api_key_from_text
from tests.support.coordinators import key_of
from tests.support.tiny_models import TINY_CONFIGS, save_tiny_model
from tests.support.tiny_tokenizer import tiny_files
from tests.support.whole_cluster import Packed, WholeCluster, whole_cluster

DEADLINE_S = 30.0
CONTEXT = 512
ENDS = {"0": -100, "1": -100, "2": -100, "3": -100}
"""A bias with which no answer ends before `max_tokens`."""


def packed_tiny_chat(folder: Path, *, context: int = CONTEXT) -> Packed:
    """A tiny random llama that has the tiny tokenizer and its chat template."""
    config = TINY_CONFIGS["llama"]()
    config.vocab_size, config.max_position_embeddings = 270, context
    source = folder / "tiny-chat"
    save_tiny_model(config, source)
    for name, data in tiny_files().items():
        if name != "config.json":
            (source / name).write_bytes(data)
    store = FileStore(folder / "tiny-chat-packed")
    return Packed(store=store, model=pack_model(str(source), store, lambda *_: None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came back, read to its end."""

    status: int
    headers: Any
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of a stream's events but for `[DONE]`, which has to be the last if it is there."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        assert b"[DONE]" not in lines[:-1]
        return [json.loads(line) for line in lines if line != b"[DONE]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedGateway:
    """What `gateway_cluster` gives."""

    cluster: WholeCluster
    gateway: RunningGateway
    http: aiohttp.ClientSession

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Answered:
        """One request; `body` is JSON unless it is bytes."""
        headers = {"Content-Type": "application/json"} | dict(options.pop("headers", {}))
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            asyncio.timeout(DEADLINE_S),
            self.http.request(
                method,
                self.gateway.url + path,
                data=None if body is None else io.BytesIO(data),
                headers=headers,
                **options,
            ) as response,
        ):
            return Answered(status=response.status, headers=response.headers, body=await response.read())

    async def post(self, path: str, body: Any, **options: Any) -> Answered:
        return await self.ask("POST", path, body, **options)

    def sessions_on_workers(self) -> int:
        """How many sessions the workers have just now."""
        return sum(member.worker.data_plane.n_sessions for member in self.cluster.members.values())


def gateway_config(cluster: WholeCluster, **changes: Any) -> GatewayConfig:
    """For a gateway before this cluster, with the cluster's first client key."""
    own = ClientConfig(
        url=cluster.coordinator.url,
        api_key=api_key_from_text(key_of(cluster.coordinator, "client")),
        cache=cluster.folder / "gateway",
        connect_timeout_s=2.0,
    )
    return GatewayConfig(**({"cluster": own, "listen_port": 0, "stop_s": 5.0} | changes))


@asynccontextmanager
async def served_gateway(cluster: WholeCluster, **changes: Any) -> AsyncIterator[ServedGateway]:
    """A gateway before a cluster that runs."""
    async with running(gateway_config(cluster, **changes)) as gateway, aiohttp.ClientSession() as http:
        yield ServedGateway(cluster=cluster, gateway=gateway, http=http)


@asynccontextmanager
async def gateway_cluster(folder: Path, *, context: int = CONTEXT, **changes: Any) -> AsyncIterator[ServedGateway]:
    """Two workers with the model `tiny`, and a gateway; `changes` are of its config."""
    packed = await asyncio.to_thread(packed_tiny_chat, folder, context=context)
    async with whole_cluster(folder) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("a", "0:2", files=packed)
        await cluster.join("b", "2:4", files=packed)
        await cluster.until_ready()
        async with served_gateway(cluster, **changes) as served:
            yield served
