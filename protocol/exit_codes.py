"""What the three programs tell a shell by their exit code."""

from __future__ import annotations

EXIT_OK, EXIT_INTERNAL = 0, 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_AUTH = 4
EXIT_VERSION = 5
EXIT_CLOCK = 6
EXIT_UNAVAILABLE = 7
EXIT_STORAGE = 8
EXIT_PORT = 9
EXIT_DEADLINE = 10
EXIT_QUOTA = 11
EXIT_CANCELLED = 130
