"""The coordinator's decisions, pure and deterministic."""
