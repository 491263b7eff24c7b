"""Response headers that LoRAX's clients read: who answered, token counts, and each stage's time in milliseconds."""

from __future__ import annotations

from urllib.parse import quote

from motet.api.adapters.messages import ServedAdapter
from motet.api.metrics.timing import Timing
from motet.api.schema.requests import AdapterChoice
from motet.core.models import ModelInfo


def labels(model: ModelInfo, request: AdapterChoice, adapter: ServedAdapter | None) -> dict[str, str]:
    """The headers that say who answers."""
    told = {"x-compute-type": model.device, "x-model-id": quote(model.name, safe="/:")}
    if adapter is not None:
        merged = request.merged_adapters
        ids = ",".join(merged.ids) if merged else adapter.ref.id
        told |= {"x-adapter-id": quote(ids, safe="/:@,"), "x-adapter-source": adapter.ref.source}
    return told


def timing_headers(timing: Timing, prompt_tokens: int, characters: int) -> dict[str, str]:
    """The headers of a whole answer of `characters` to a prompt of `prompt_tokens`."""
    made, headers = timing.tokens, {}
    for stage, value in timing.milliseconds().items():
        headers[f"x-{stage}" if stage.startswith("time") else f"x-{stage}-time"] = str(round(value))
    counts = {"prompt": prompt_tokens, "generated": made, "skipped": 0, "total": prompt_tokens + made}
    headers |= {f"x-{name}-tokens": str(count) for name, count in counts.items()}
    return headers | {"x-compute-characters": str(characters)}
