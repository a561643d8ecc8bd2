"""Everything that Prometheus reads of the three programs, after an answer through all of them."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from protocol.api_key import new_api_key
from protocol.guarded_site import MAX_HANDSHAKES
from tests.support.coordinators import bearer, http_session, key_of
from tests.support.gateways import ENDS, ServedGateway, packed_tiny_chat, served_gateway
from tests.support.pki import TestAuthority
from tests.support.waiting import eventually_answered
from tests.support.whole_cluster import whole_cluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ANYWHERE = ("127.0.0.1", 0)
DASHBOARD = Path(__file__).parents[2] / "grafana" / "brigade.json"
NAME = re.compile(r"\b(?:brigade|gen_ai|process)_\w+\b")
LABELS = {"le", "state", "level", "model", "outcome", "limit", "reason", "kind", "type", "quantile", "peer"}
LABELS |= {"endpoint", "status", "program", "version", "error_type"}
LABELS |= {"gen_ai_operation_name", "gen_ai_request_model", "gen_ai_token_type"}
"""All that there are: none of them grows with what users do."""
N_TOKENS = 5
WORDS = "abacus"


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one program exposes."""

    text: str
    names: frozenset[str]
    samples: list[tuple[str, dict[str, str], float]]

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels."""
        return sum(value for found, has, value in self.samples if found == name and labels.items() <= has.items())


def parsed(text: str) -> Read:
    families = list(text_string_to_metric_families(text))
    samples = [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]
    names = {name for family in families for name in _names(family.name, family.type)}
    return Read(text=text, names=frozenset(names), samples=samples)


def _names(family: str, kind: str) -> Iterator[str]:
    """As queries call it, also while there is no sample yet."""
    yield f"{family}_total" if kind == "counter" else family
    if kind == "histogram":
        yield from (f"{family}_{part}" for part in ("bucket", "sum", "count"))


async def read(url: str | None) -> Read:
    assert url is not None
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        assert answer.status == 200
        return parsed(await answer.text())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedGateway]:
    """Two workers and a gateway, all with their metrics on a port, after one answer that was reported."""
    folder = tmp_path_factory.mktemp("metrics")
    packed = packed_tiny_chat(folder)
    async with whole_cluster(folder, metrics_listen=ANYWHERE) as cluster:
        await cluster.add_model("tiny", packed)
        for name, blocks in (("a", "0:2"), ("b", "2:4")):
            await cluster.join(name, blocks, files=packed, metrics_listen=ANYWHERE)
        await cluster.until_ready()
        async with served_gateway(cluster, metrics_listen=ANYWHERE) as it:
            messages = [{"role": "user", "content": WORDS}]
            body = {"model": "tiny", "messages": messages, "max_tokens": N_TOKENS, "logit_bias": ENDS}
            assert (await it.post("/v1/chat/completions", body)).status == 200

            async def is_reported() -> bool:
                found = await read(cluster.coordinator.metrics_url)
                return found.value("brigade_generations_total", outcome="length") == 1

            await eventually_answered(is_reported)
            yield it


async def three(served: ServedGateway) -> dict[str, Read]:
    coordinator, worker = served.cluster.coordinator, served.cluster.members["b"].worker
    urls = {
        "coordinator": coordinator.metrics_url,
        "worker": worker.metrics_url,
        "gateway": served.gateway.metrics_url,
    }
    return {name: await read(url) for name, url in urls.items()}


async def test_an_answer_is_counted_by_each_of_the_three(served: ServedGateway) -> None:
    found = await three(served)
    coordinator, worker, gateway = found["coordinator"], found["worker"], found["gateway"]
    assert coordinator.value("brigade_tokens_total", model="tiny", type="output") == N_TOKENS
    assert coordinator.value("brigade_route_seconds_count", outcome="granted") == 1
    assert coordinator.value("brigade_workers", state="ready") == 2
    assert coordinator.value("brigade_model_blocks_covered", model="tiny") == 4
    assert coordinator.value("brigade_database_transaction_seconds_count", kind="writing") >= 1
    of_model = {"gen_ai_request_model": "tiny"}
    for name in ("request_duration", "time_to_first_token", "time_per_output_token"):
        assert coordinator.value(f"gen_ai_server_{name}_seconds_count", **of_model) == 1, name
    whole_s = coordinator.value("gen_ai_server_request_duration_seconds_sum")
    tokens_s = coordinator.value("gen_ai_server_time_per_output_token_seconds_sum") * (N_TOKENS - 1)
    assert 0.0 < coordinator.value("gen_ai_server_time_to_first_token_seconds_sum") + tokens_s <= whole_s
    n_positions = gateway.value("gen_ai_client_token_usage_sum", gen_ai_token_type="input") + N_TOKENS - 1
    assert worker.value("brigade_engine_tokens_total") >= n_positions
    assert worker.value("brigade_engine_step_seconds_count") == worker.value("brigade_engine_batch_size_count") > 0
    assert worker.value("brigade_kv_budget_bytes") > worker.value("brigade_kv_used_bytes")
    assert worker.value("brigade_blocks", model="tiny", state="ready") == 2
    assert worker.value("brigade_hop_seconds", quantile="0.5") > 0.0
    assert gateway.value("gen_ai_client_token_usage_sum", gen_ai_token_type="output", **of_model) == N_TOKENS
    for name in ("duration", "time_to_first_chunk", "time_per_output_chunk"):
        assert gateway.value(f"gen_ai_client_operation_{name}_seconds_count", gen_ai_operation_name="chat") == 1
    assert gateway.value("brigade_gateway_requests_total", endpoint="/v1/chat/completions", status="200") == 1


async def test_who_has_too_many_handshakes_under_way_is_counted_by_each_that_speaks_tls(
    served: ServedGateway, tmp_path: Path
) -> None:
    files = TestAuthority().worker(tmp_path, "gateway.example")
    tls = {"tls_cert": files.certificate, "tls_key": files.key, "max_connections": 4}
    cluster = served.cluster
    worker = cluster.members["b"].worker
    async with served_gateway(cluster, metrics_listen=ANYWHERE, **tls) as encrypted:
        gateway = encrypted.gateway
        for it, most in ((cluster.coordinator, MAX_HANDSHAKES), (worker, MAX_HANDSHAKES), (gateway, 2)):
            with ExitStack() as crowd:
                for _ in range(most + 2):
                    crowd.enter_context(socket.create_connection(("127.0.0.1", it.port)))
                await eventually_answered(partial(are_refused, it.metrics_url))


async def are_refused(metrics_url: str | None) -> bool:
    return (await read(metrics_url)).value("brigade_connections_refused_total", reason="handshakes") >= 2


async def test_labels_are_few_and_nothing_of_a_user_is_exposed(served: ServedGateway) -> None:
    cluster = served.cluster
    async with http_session(cluster.coordinator, key_of(cluster.coordinator, "admin")) as http:
        shown = await http.ask("GET", "/admin/v1/generations")
    (generation,) = json.loads(shown.body)["generations"]
    await served.ask("GET", "/v1/models/a-name-that-somebody-made-up")
    await served.ask("GET", "/a-path-that-somebody-made-up")
    for program, found in (await three(served)).items():
        assert {label for _, labels, _ in found.samples for label in labels} <= LABELS, program
        for secret in (WORDS, "made-up", generation["session_id"], generation["key_id"], "brigade-client"):
            assert secret not in found.text, program


async def test_grafana_asks_for_nothing_that_is_not_there(served: ServedGateway) -> None:
    there = frozenset[str]().union(*(found.names for found in (await three(served)).values()))
    asked = {name for query in queries(json.loads(DASHBOARD.read_text())) for name in NAME.findall(query)}
    labels = {"gen_ai_operation_name", "gen_ai_request_model", "gen_ai_token_type"}
    assert len(asked) > 20
    assert asked - labels <= there


def queries(part: Any) -> Iterator[str]:
    """Every PromQL text of a dashboard, those of its variables too."""
    if isinstance(part, dict):
        yield from (value for name, value in part.items() if name in ("expr", "query") and isinstance(value, str))
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from queries(inner)


async def test_on_the_programs_own_ports_metrics_are_for_operators(served: ServedGateway) -> None:
    coordinator = served.cluster.coordinator
    client, admin = (bearer(key_of(coordinator, kind)) for kind in ("client", "admin"))
    accepted = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with http_session(coordinator) as http:
        statuses = [(await http.ask("GET", "/metrics", headers=who)).status for who in ({}, client)]
        assert statuses == [401, 403]
        own = await http.ask("GET", "/metrics", headers=admin | accepted)
    assert (await served.ask("GET", "/metrics")).status == 403, "the gateway's own key is a client's"
    assert (await served.ask("GET", "/metrics", headers=client)).status == 403
    invented = bearer(new_api_key("admin", coordinator.authority.ca_fingerprint).text())
    assert (await served.ask("GET", "/metrics", headers=invented)).status == 401
    gateways = await served.ask("GET", "/metrics", headers=admin | accepted)
    for answer, name in ((own, "brigade_workers"), (gateways, "gen_ai_client_token_usage")):
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert name in {family.name for family in openmetrics_families(answer.body.decode())}
