"""Runs ranges of transformer blocks and streams activations to the next worker."""
