"""How long a request's stages took, as the response headers that LoRAX's clients read: whole milliseconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from motet.api.adapters.messages import ServedAdapter
from motet.api.schemas import AdapterChoice
from motet.core.models import ModelInfo
from motet.engine.client.text_stream import TextDelta

if TYPE_CHECKING:
    from motet.api.generation import Generation


@dataclass
class Timing:
    """The times (of time.perf_counter, in seconds) at which a request came, was found good, and had its tokens."""

    began: float
    checked: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    def take(self, delta: TextDelta) -> None:
        """Note a piece of the answer as it comes."""
        self.last = time.perf_counter()
        if self.first is None:
            self.first = self.last
        self.tokens += len(delta.tokens)
        if delta.tokens and delta.tokens[0].waited > self.waited:
            self.waited = delta.tokens[0].waited

    def milliseconds(self) -> dict[str, float]:
        """Stage to time, for an answer that is complete."""
        now = time.perf_counter()
        total, validation = now - self.began, self.checked - self.began
        first = self.last if self.first is None else self.first
        inference = max(total - validation - self.waited, 0.0)
        seconds = {
            "compute": total,
            "total": total,
            "validation": validation,
            "queue": self.waited,
            "inference": inference,
            "time-per-token": inference / max(self.tokens, 1),
            "time-to-first-token": first - self.began,
            "time-per-output-token": (self.last - first) / max(self.tokens - 1, 1),
        }
        return {stage: 1000 * value for stage, value in seconds.items()}


def labels(model: ModelInfo, request: AdapterChoice, adapter: ServedAdapter | None) -> dict[str, str]:
    """The headers that say who answers."""
    told = {"x-compute-type": model.device, "x-model-id": quote(model.name, safe="/:")}
    if adapter is not None:
        merged = request.merged_adapters
        ids = ",".join(merged.ids) if merged else adapter.ref.id
        told |= {"x-adapter-id": quote(ids, safe="/:@,"), "x-adapter-source": adapter.ref.source}
    return told


def timing_headers(generation: Generation, characters: int) -> dict[str, str]:
    """The headers of a whole answer of `characters`."""
    prompt, made = generation.prompt_tokens, generation.timing.tokens
    headers = dict(generation.labels)
    for stage, value in generation.timing.milliseconds().items():
        headers[f"x-{stage}" if stage.startswith("time") else f"x-{stage}-time"] = str(round(value))
    counts = {"prompt": prompt, "generated": made, "skipped": 0, "total": prompt + made}
    headers |= {f"x-{name}-tokens": str(count) for name, count in counts.items()}
    return headers | {"x-compute-characters": str(characters)}
