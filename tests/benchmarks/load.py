"""The load that the server and the baseline both get."""

from __future__ import annotations

ADAPTERS = tuple(f"adapter-{i}" for i in range(8))
PROMPT_TOKENS = OUTPUT_TOKENS = 64
