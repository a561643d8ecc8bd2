"""The control plane: who is let in, who holds what, who may use how much."""
