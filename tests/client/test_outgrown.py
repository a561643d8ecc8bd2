"""Answers whose text is to be run anew in their middle, as some models are run where a text becomes long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from protocol.messages import SamplingParams
from tests.support.generating import ANSWER, PROMPT, assert_whole, generated
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster

N_FIRST = 5
OUTGROWN = Script(answer=ANSWER[:N_FIRST], finish="length", is_outgrown=True)


def n_prompts(cluster: ScriptedCluster) -> list[int]:
    """Of each session, what its head was told."""
    return [seen.opening.n_prompt for seen in cluster.seen.values() if seen.opening is not None]


async def test_the_answer_goes_on_by_a_session_whose_prompt_is_all_of_the_text(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [OUTGROWN]
        cluster.script = Script(answer=ANSWER[N_FIRST:], finish="length")
        run = await generated(cluster)
        assert_whole(run, cluster, failovers=0)
        assert n_prompts(cluster) == [len(PROMPT), len(PROMPT) + N_FIRST]
        first, second = cluster.route_requests
        assert (second.exclude, second.failure) == ((), None)
        assert second.continues in cluster.seen
        assert (first.continues, first.n_prompt_tokens) == (None, len(PROMPT))
        assert run.notices == ["the model computes longer texts otherwise: all 7 tokens so far are run anew"]


async def test_a_route_that_fails_after_that_is_gone_on_from_as_it_was_rotated(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [OUTGROWN, Script(answer=ANSWER[N_FIRST:8], drops_connection=True)]
        cluster.script = Script(answer=ANSWER[8:], finish="length")
        run = await generated(cluster)
        assert_whole(run, cluster, failovers=1)
        assert n_prompts(cluster) == [len(PROMPT), len(PROMPT) + N_FIRST, len(PROMPT) + N_FIRST]


async def test_a_route_that_fails_before_says_where_the_answer_begins(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [Script(answer=ANSWER[:3], drops_connection=True)]
        cluster.script = Script(answer=ANSWER[3:], finish="length")
        assert_whole(await generated(cluster), cluster, failovers=1)
        assert n_prompts(cluster) == [len(PROMPT), len(PROMPT)]


async def test_no_text_is_run_anew_twice(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = OUTGROWN
        run = await generated(cluster)
        assert (run.result.token_ids, run.result.finish_reason) == (ANSWER[:N_FIRST] * 2, "length")
        assert len(cluster.route_requests) == 2


async def test_a_last_token_is_the_last(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = OUTGROWN
        run = await generated(cluster, sampling=SamplingParams(max_tokens=N_FIRST))
        assert (run.result.token_ids, run.result.finish_reason) == (ANSWER[:N_FIRST], "length")


async def test_a_tail_that_goes_on_after_that_is_told_to_stop(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [replace(OUTGROWN, finish=None)]
        cluster.script = Script(answer=ANSWER[N_FIRST:], finish="length")
        assert_whole(await generated(cluster), cluster, failovers=0)
        assert set(next(iter(cluster.seen.values())).closed.values()) == {"cancelled"}
