"""Whether a stage's head looks closely only at the tokens that can be the likeliest, as its worker says it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """What came of the trial (`worker.screening_trial`)."""

    is_on: bool = False
    off_because: str = ""
    """Why it doesn't where that was tried; empty if it does, or nothing is to be gained."""


NO_SCREENING = Screening()
