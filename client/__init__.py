"""The thin client: token ids in, token ids out, no torch."""
