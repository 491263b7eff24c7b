"""The workload for both the server and the baseline."""

from __future__ import annotations

ADAPTERS = tuple(f"adapter-{i}" for i in range(8))
PROMPT_TOKENS = OUTPUT_TOKENS = 64
