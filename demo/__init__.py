"""The demo of the README, and the cluster of real processes that it, tests and benchmarks use."""
