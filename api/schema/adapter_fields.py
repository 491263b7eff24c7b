"""The fields by which every request names its model and its adapters."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from motet.api.schema.request_fields import described
from motet.core.messages import MAX_PARTS


class MergedAdapters(msgspec.Struct, frozen=True):
    """Several adapters merged into one: the weighted sum of their deltas, exactly."""

    ids: Annotated[list[str], Meta(min_length=1, max_length=MAX_PARTS)]
    weights: Annotated[list[float], described("One per id; if absent, all are 1.")] = []
    merge_strategy: Annotated[str | None, described("Only `linear`.")] = None
    density: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, described("Has no effect on `linear`.")] = None
    majority_sign_method: Annotated[Literal["total", "frequency"] | None, described("Has no effect on `linear`.")] = (
        None
    )


class AdapterChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that every request has: the model, its adapters, truncation and priority."""

    model: Annotated[
        str,
        Meta(
            max_length=1024,
            description='"" or the base model\'s name for the base, else an adapter: an alias, '
            "`source:id@revision`, or an id of the default source.",
            examples=["", "demo:pirate", "hub:org/name@main"],
        ),
    ]
    adapter_id: Annotated[
        Annotated[str, Meta(max_length=1024)] | None,
        described("The adapter, if `model` names the base.", "demo:pirate"),
    ] = None
    merged_adapters: Annotated[MergedAdapters | None, described("Several adapters, if `model` names the base.")] = None
    adapter_source: Annotated[
        str | None, described("The source of the adapters, if their names do not include one.", "hub", "local", "demo")
    ] = None
    api_token: Annotated[
        str | None, described("Token for the adapter source (also: header x-adapter-token). Never logged.")
    ] = None
    truncate_prompt_tokens: Annotated[
        Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None,
        described("Keep only this many tokens at the end of the prompt; -1: as many as fit."),
    ] = None
    priority: Annotated[
        Annotated[int, Meta(ge=-128, le=127)] | None, described("Lower goes first; below 0 needs an admin key.")
    ] = None

    def __repr__(self) -> str:
        """Only the model: prompts and tokens must not reach logs."""
        return f"{type(self).__name__}(model={self.model!r}, ...)"
