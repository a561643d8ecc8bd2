"""The soak itself: streams whose answers are known, and faults at random times, until the time is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping

from benchmarks.churn_faults import COORDINATOR, KINDS, Fault, FaultKind, next_fault, pause_s
from benchmarks.churn_figures import Figures, StallRecord, n_wrong
from benchmarks.churn_questions import Conversation, Question, answered
from benchmarks.relay import Relay
from benchmarks.replicated import MODEL, ReplicatedCluster
from benchmarks.streams import WatchedStream
from client.api import Client

DEADLINE_S = 180.0
"""Of a generation: longer than anything that is broken stays so."""
DELAY_S = 0.3
SHORTEST_EFFECT_S = 3.0
"""A stream that stops within this of a fault's beginning is taken to have stopped because of it."""
PROGRESS_S = 10.0


class Soak:
    """One run. The cluster has to be whole at the beginning; it needn't be at the end."""

    def __init__(
        self,
        cluster: ReplicatedCluster,
        relays: Mapping[str, Relay],
        rng: random.Random,
        say: Callable[[str], None],
        *,
        model: str = MODEL,
        kinds: Collection[FaultKind] = KINDS,
    ) -> None:
        """`kinds`: what may happen."""
        self._model = model
        self._kinds = kinds
        self._cluster = cluster
        self._relays = relays
        self._rng = rng
        self._say = say
        self._holders: dict[str, tuple[str, ...]] = {}
        for name in relays:
            stage = name.rpartition("-")[0]
            self._holders[stage] = (*self._holders.get(stage, ()), name)
        self._well = {*relays, COORDINATOR}
        self._coordinator_is_there = asyncio.Event()
        self._coordinator_is_there.set()
        self._n_starting = 0
        self._streams: set[WatchedStream] = set()
        self._stalls = StallRecord()

    async def run(self, figures: Figures, *, seconds: float, n_streams: int) -> None:
        """Load and faults for so many seconds, then everything mended and the last generations to their end."""
        now_s = asyncio.get_running_loop().time
        async with self._cluster.client() as forgetful, self._cluster.client(prefix_cache=True) as client:
            conversations = await answered(forgetful, self._model, figures.seed, timeout_s=DEADLINE_S)
            self._say(f"{sum(map(len, conversations))} answers are known; {seconds:.0f} s of churn begin")
            until_s = now_s() + seconds
            async with asyncio.TaskGroup() as tasks:
                for number in range(n_streams):
                    asking = self._ask(client, conversations, figures, tasks, until_s)
                    tasks.create_task(asking, name=f"stream {number}")
                tasks.create_task(self._break_things(until_s), name="faults")
                while now_s() < until_s:
                    await asyncio.sleep(min(PROGRESS_S, max(0.0, until_s - now_s())))
                    self._say(
                        f"{until_s - now_s():4.0f} s left: {figures.n_generations} generations, {figures.n_tokens} "
                        f"tokens, {figures.n_wrong_tokens} wrong, {figures.n_lost_generations} lost"
                    )
        figures.stalls = self._stalls.summary()

    # -------------------------------------------------------------- load

    async def _ask(
        self,
        client: Client,
        conversations: list[Conversation],
        figures: Figures,
        tasks: asyncio.TaskGroup,
        until_s: float,
    ) -> None:
        """One conversation after the other."""
        while asyncio.get_running_loop().time() < until_s:
            for question in self._rng.choice(conversations):
                asked = client.stream(self._model, question.prompt, on_notice=self._notice, **question.options)
                stream = WatchedStream(asked, tasks)
                self._streams.add(stream)
                await stream.ended()
                self._streams.discard(stream)
                self._judge(stream, question, figures)

    def _notice(self, notice: str) -> None:
        self._say(f"    a stream: {notice[:160]}")

    def _judge(self, stream: WatchedStream, question: Question, figures: Figures) -> None:
        figures.n_generations += 1
        figures.n_tokens += len(stream.token_ids)
        figures.n_failovers += stream.result.failovers
        if stream.error is not None:
            figures.n_lost_generations += 1
            figures.lost.append(f"{question} after {len(stream.token_ids)} tokens: {stream.error}")
            self._say(f"LOST: {figures.lost[-1]}")
            return
        wrong = n_wrong(stream.token_ids, question.answer)
        if wrong:
            figures.n_wrong_tokens += wrong
            figures.wrong.append(
                f"{question}: {wrong} of {len(question.answer)} tokens are wrong, the first at "
                f"{_first_difference(stream.token_ids, question.answer)}; failovers before each: {stream.failovers}"
            )
            self._say(f"WRONG: {figures.wrong[-1]}")

    # -------------------------------------------------------------- faults

    async def _break_things(self, until_s: float) -> None:
        """One fault after the other, each mended in its own time."""
        now_s = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as mending:
            while True:
                await asyncio.sleep(pause_s(self._rng))
                if now_s() >= until_s:
                    return
                fault = next_fault(self._rng, self._holders, self._breakable(), self._busy(), self._kinds)
                if fault is not None:
                    self._well.difference_update(fault.names)
                    mending.create_task(self._break_and_mend(fault), name=f"{fault.kind} {fault.names}")

    def _breakable(self) -> frozenset[str]:
        # a worker that starts needs the coordinator: without one it ends, and says so
        return frozenset(self._well - {COORDINATOR} if self._n_starting else self._well)

    def _busy(self) -> frozenset[str]:
        return frozenset(name for stream in self._streams for name in self._cluster.names(stream.worker_ids))

    async def _break_and_mend(self, fault: Fault) -> None:
        now_s = asyncio.get_running_loop().time
        met = [stream for stream in self._streams if self._meets(fault, stream)]
        self._say(
            f"  {fault.kind} of {', '.join(fault.names)} for {fault.lasts_s:.1f} s; {len(met)} streams meet it"
        )
        began_s = now_s()
        await self._break_for_a_while(fault)
        if fault.names == (COORDINATOR,):
            self._coordinator_is_there.set()
        else:
            await self._coordinator_is_there.wait()
            await self._cluster.until_ready(fault.names)
        self._well.update(fault.names)
        effect_until_s = began_s + max(SHORTEST_EFFECT_S, fault.lasts_s)
        for stream in met:
            await stream.moved_on(effect_until_s)
        self._stalls.add(fault.kind, [stream.longest_gap_s(began_s, effect_until_s) for stream in met])

    async def _break_for_a_while(self, fault: Fault) -> None:
        cluster, name = self._cluster, fault.names[0]
        match fault.kind:
            case "kill" | "kill_both":
                cluster.kill(*fault.names)
                await asyncio.sleep(fault.lasts_s)
                await self._coordinator_is_there.wait()
                await self._started(fault.names)
            case "ban":
                await cluster.ban(name)
                await asyncio.sleep(fault.lasts_s)
                await self._coordinator_is_there.wait()
                await cluster.pardon(name)
                await self._started(fault.names)
            case "pause":
                cluster.pause(name)
                await asyncio.sleep(fault.lasts_s)
                cluster.resume(name)
            case "cut":
                self._relays[name].cut()
            case "half_open":
                self._relays[name].hold()
                await asyncio.sleep(fault.lasts_s)
                self._relays[name].release()
            case "delay":
                self._relays[name].delay_s = DELAY_S
                await asyncio.sleep(fault.lasts_s)
                self._relays[name].delay_s = 0.0
            case "kill_coordinator" | "restart_coordinator":
                self._coordinator_is_there.clear()
                if fault.kind == "kill_coordinator":
                    cluster.kill(COORDINATOR)
                else:
                    await asyncio.to_thread(cluster.local.stop, COORDINATOR)
                await asyncio.sleep(fault.lasts_s)
                await asyncio.to_thread(cluster.local.restart_coordinator)

    async def _started(self, names: tuple[str, ...]) -> None:
        self._n_starting += 1
        for name in names:
            self._cluster.start(name)
        await self._cluster.until_ready(names)
        self._n_starting -= 1

    def _meets(self, fault: Fault, stream: WatchedStream) -> bool:
        if fault.names == (COORDINATOR,):
            return True
        return not set(fault.names).isdisjoint(self._cluster.names(stream.worker_ids))


def _first_difference(found: list[int], expected: tuple[int, ...]) -> int:
    pairs = enumerate(zip(found, expected, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(found), len(expected)))
