"""What all three programs speak, and nothing else."""
