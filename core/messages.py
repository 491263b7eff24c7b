"""The messages between processes: msgspec structs, sent as msgpack over ZeroMQ.

    API worker ──ToEngine──> rank 0 ──FromEngine──> API worker
    API worker ──PrepareAdapter──> loader ──PreparedAdapter | LoaderFailure──> API worker
    supervisor ──EngineState──> API worker

Plans between ranks are the engine's own affair (engine/plan.py).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from motet.core.errors import ErrorInfo
from motet.core.formats import GrammarSpec
from motet.core.models import ModelInfo
from motet.core.sampling import SamplingParams

FinishReason: TypeAlias = Literal["stop", "length"]


class LoraEntry(msgspec.Struct, frozen=True, array_like=True):
    """Where one LoRA pair of an adapter sits: decoder layer, module (`q_proj`, …), its rank and its scale."""

    layer: int
    module: str
    rank: int
    scale: float


class PreparedAdapter(msgspec.Struct, frozen=True, tag=True):
    """An adapter that is parsed, checked and cut into one file a rank.

    `fingerprint` is over config, weights and base; `files[rank]` are safetensors in the engine's dtype.
    """

    id: str
    fingerprint: str
    files: tuple[str, ...]
    entries: tuple[LoraEntry, ...]
    bytes: int
    eos_token_ids: tuple[int, ...] = ()


class PrepareAdapter(msgspec.Struct, frozen=True, tag=True):
    """Ask the loader to prepare the adapter in `directory`; `id` is the caller's, echoed in the answer."""

    id: str
    directory: str


class LoaderFailure(msgspec.Struct, frozen=True, tag=True):
    """The loader refused an adapter."""

    id: str
    error: ErrorInfo


FromLoader: TypeAlias = PreparedAdapter | LoaderFailure


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A client's first message, and its question whether the engine is still the one that it knows."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Start a sequence. `id` is globally unique; `adapter` is the fingerprint of a registered adapter."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    adapter: str | None = None
    grammar: GrammarSpec | None = None


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End a sequence now: its text is complete, or nobody reads it any more. Unknown ids are ignored."""

    id: str


class RegisterAdapter(msgspec.Struct, frozen=True, tag=True):
    """Make a prepared adapter known, so that Submit may name it. Idempotent."""

    adapter: PreparedAdapter


class AskStats(msgspec.Struct, frozen=True, tag=True):
    """Ask for EngineStats."""


ToEngine: TypeAlias = Hello | Submit | Stop | RegisterAdapter | AskStats


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine's answer to Hello. Another `epoch` than before means that all earlier sequences are gone."""

    epoch: str
    model: ModelInfo


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One sampled token of a sequence.

    `logprob` and `top` ((id, logprob), best first) are the model's own, before any warping; they are there
    only when the request asked. `finish` is set on the last event; `stop_id` is the token id that ended
    the text, which is then `token` itself.
    """

    id: str
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None
    stop_id: int | None = None


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """The events of one step for one client."""

    events: tuple[TokenEvent, ...]


class SequenceFailure(msgspec.Struct, frozen=True, tag=True):
    """One sequence ended with an error; its batch-mates go on."""

    id: str
    error: ErrorInfo


class EngineStats(msgspec.Struct, frozen=True, tag=True):
    """Counters of the engine at one moment; `blocks_free == blocks_total` when nothing runs."""

    running: int
    waiting: int
    blocks_free: int
    blocks_total: int
    adapters_resident: int
    adapters_pinned: int
    steps: int
    preemptions: int


FromEngine: TypeAlias = Ready | Tokens | SequenceFailure | EngineStats


class EngineState(msgspec.Struct, frozen=True, tag=True):
    """The supervisor's word on the engine: `starting`, `up` or `down`, with the reason when it is down."""

    state: Literal["starting", "up", "down"]
    reason: str = ""
