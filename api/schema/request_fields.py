"""Types and limits that the fields of several requests share, and how a field is described in GET /openapi.json."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 512
MAX_STOP_TOKEN_IDS = 128
Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Bias: TypeAlias = Annotated[float, Meta(ge=-100, le=100)]
ServiceTier: TypeAlias = Literal["auto", "default", "flex", "scale", "priority"]
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity: TypeAlias = Literal["low", "medium", "high"]
Text64: TypeAlias = Annotated[str, Meta(max_length=64)]
Text512: TypeAlias = Annotated[str, Meta(max_length=512)]
StopString: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]


def described(text: str, *examples: object) -> Meta:
    """A field's description and examples in GET /openapi.json."""
    return Meta(description=text, examples=list(examples) or None)
