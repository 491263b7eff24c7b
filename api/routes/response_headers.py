"""Response headers that LoRAX's clients read: who answered, token counts, and each stage's time in milliseconds."""

from __future__ import annotations

from urllib.parse import quote

from motet.api.generating.checked_request import CheckedRequest
from motet.api.generating.generation import Generation


def model_headers(checked: CheckedRequest) -> dict[str, str]:
    """The headers that name the model and the adapter."""
    headers = {"x-compute-type": checked.model.device, "x-model-id": quote(checked.model.name, safe="/:")}
    if checked.adapter is not None:
        merged = checked.request.merged_adapters
        ids = ",".join(merged.ids) if merged else checked.adapter.ref.id
        headers |= {"x-adapter-id": quote(ids, safe="/:@,"), "x-adapter-source": checked.adapter.ref.source}
    return headers


def answer_headers(generation: Generation, characters: int) -> dict[str, str]:
    """The headers of a whole answer; `characters` is what x-compute-characters says."""
    headers = model_headers(generation.checked)
    for stage, value in generation.timing.milliseconds().items():
        headers[f"x-{stage}" if stage.startswith("time") else f"x-{stage}-time"] = str(round(value))
    prompt, generated = generation.prompt_tokens, generation.timing.tokens
    counts = {"prompt": prompt, "generated": generated, "skipped": 0, "total": prompt + generated}
    headers |= {f"x-{name}-tokens": str(count) for name, count in counts.items()}
    return headers | {"x-compute-characters": str(characters)}
