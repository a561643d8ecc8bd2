"""What serves later steps and is done while the engine has nothing else to do: trials, recordings, tidying up."""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from worker.batch_run import is_device_broken
from worker.compiled import Recordings
from worker.heap import give_back_free_memory
from worker.measures import Measures
from worker.prompt_trial import PromptTrial
from worker.stage import Stage
from worker.steps import LoadedSpan, SpanKey

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class SpareTime:
    """What is still to be done. Lives on the engine's thread."""

    trials: dict[SpanKey, PromptTrial] = field(default_factory=dict)
    """Of stages where prompts begin, and of which nobody knows yet what launching a step takes."""
    recordings: dict[SpanKey, Recordings] = field(default_factory=dict)
    """Of stages whose steps may take less time from them."""

    def stage_loaded(self, stage: Stage, loaded: LoadedSpan, context_length: int) -> None:
        """Find out about this stage when there is time."""
        if stage.is_encoder:
            return
        if stage.is_first:
            self.trials[loaded.key] = PromptTrial(stage, context_length)
        if stage.device.type == "cpu":
            self.recordings[loaded.key] = Recordings(stage, is_one_due=not loaded.is_compiled)

    def forget(self, key: SpanKey) -> None:
        """The stage is gone."""
        self.trials.pop(key, None)
        self.recordings.pop(key, None)

    def do_some(self, measures: Measures) -> bool:
        """Do a piece of it, at most a second or two; whether there is more.

        Steps are tried where prompts have come: before, they would take memory and time that nobody may need, and
        nobody would know how much. Likewise steps of several sessions are recorded where such have come.
        """
        known = measures.prompt_costs
        due = (key for key, trial in self.trials.items() if key in known and trial.is_due(known[key]))
        if (key := next(due, None)) is not None:
            self._try_step(key, measures)
            return True
        for key, recordings in self.recordings.items():
            if recordings.make_one(measures.decoded_together.get(key, ())):
                return True
        give_back_free_memory()
        return False

    def _try_step(self, key: SpanKey, measures: Measures) -> None:
        trial = self.trials[key]
        try:
            if trial.run_one():
                return
        except Exception as exc:  # of the library's own code, or for want of memory: prompts are cut without
            if is_device_broken(exc):
                raise
            log.warning("prompt_trial_failed", blocks=str(key.blocks), error=type(exc).__name__)
        del self.trials[key]
        measures.prompt_costs[key] = trial.added_to(measures.prompt_costs[key])
