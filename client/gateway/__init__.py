"""The gateway: a cluster behind the interfaces that other programs already speak."""
