"""Samples of what travels, and how they are recorded: one file each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.codec import encode_json, encode_message
from protocol.frames import encode_frame
from protocol.tickets import sign_claims

KEY = b"a key that signs nothing but the samples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples by name and by where they travel."""

    frames: dict[str, tuple[Any, bytes]]
    to_coordinator: dict[str, Any]
    to_worker: dict[str, Any]
    claims: dict[str, Any]
    bodies: dict[str, Any]

    def __or__(self, newer: Samples) -> Samples:
        """These and those that a newer version added."""
        return Samples(
            frames=self.frames | newer.frames,
            to_coordinator=self.to_coordinator | newer.to_coordinator,
            to_worker=self.to_worker | newer.to_worker,
            claims=self.claims | newer.claims,
            bodies=self.bodies | newer.bodies,
        )

    def encoded(self) -> dict[str, bytes]:
        """Every sample by file name, as this side sends it."""
        frames = {f"frame-{name}.bin": encode_frame(*sample) for name, sample in self.frames.items()}
        messages = self.to_coordinator | self.to_worker
        control = {f"control-{name}.bin": encode_message(message) for name, message in messages.items()}
        tokens = {f"token-{name}.bin": sign_claims(claims, [KEY]).encode() for name, claims in self.claims.items()}
        bodies = {f"body-{name}.json": encode_json(body) for name, body in self.bodies.items()}
        return frames | control | tokens | bodies

    def write(self, folder: Path) -> None:
        """Record every sample as a file."""
        for file_name, data in self.encoded().items():
            (folder / file_name).write_bytes(data)
