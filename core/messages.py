"""The messages between processes: msgspec structs, sent as msgpack over ZeroMQ.

    API worker ──ToEngine──> rank 0 ──FromEngine──> API worker
    API worker ──PrepareAdapter──> loader ──PreparedAdapter | LoaderFailure──> API worker
    supervisor ──EngineState──> API worker

Plans between ranks are the engine's own affair (engine/schedule/plan.py).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from motet.core.adapter_tokens import AdapterTokens
from motet.core.errors import ErrorInfo
from motet.core.models import ModelInfo
from motet.core.output_formats import GrammarSpec
from motet.core.sampling_params import SamplingParams

FinishReason: TypeAlias = Literal["stop", "length"]

MAX_PARTS = 16
"""Adapters that one request may have merged."""


class LoraEntry(msgspec.Struct, frozen=True, array_like=True):
    """Where one LoRA pair of an adapter sits: decoder layer, module (`q_proj`, …), its rank and its scale."""

    layer: int
    module: str
    rank: int
    scale: float


class PreparedAdapter(msgspec.Struct, frozen=True, tag=True):
    """An adapter that is parsed, checked and cut into one file a rank.

    `fingerprint` is over config, weights and base; `files[rank]` are safetensors in the engine's dtype. `tokens` is
    where the adapter's tokenizer differs from the base's; `name` is `source:id`, for log lines; `digests`
    are the files' (core/digests.py); `warnings` are for the log, too: what may be wrong although it can be served.
    """

    id: str
    fingerprint: str
    files: tuple[str, ...]
    entries: tuple[LoraEntry, ...]
    bytes: int
    eos_token_ids: tuple[int, ...] = ()
    name: str = ""
    tokens: AdapterTokens = AdapterTokens()
    digests: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class AdapterPart(msgspec.Struct, frozen=True, array_like=True):
    """An adapter's directory, and what its delta is multiplied by."""

    directory: str
    weight: float = 1.0


class PrepareAdapter(msgspec.Struct, frozen=True, tag=True):
    """Ask the loader to prepare the sum of `parts`: one adapter as it is, or several merged into one.

    `id` is the caller's, echoed in the answer.
    """

    id: str
    parts: tuple[AdapterPart, ...]


class CheckConfig(msgspec.Struct, frozen=True, tag=True):
    """Ask the loader whether the config of the adapter in `directory` can be served; nothing else is read."""

    id: str
    directory: str


class ConfigAccepted(msgspec.Struct, frozen=True, tag=True):
    """The answer to CheckConfig where nothing is wrong."""

    id: str


ToLoader: TypeAlias = PrepareAdapter | CheckConfig


class LoaderFailure(msgspec.Struct, frozen=True, tag=True):
    """The loader refused an adapter."""

    id: str
    error: ErrorInfo


FromLoader: TypeAlias = PreparedAdapter | ConfigAccepted | LoaderFailure


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A client's first message, and its question whether the engine is still the one that it knows."""


class AddRequest(msgspec.Struct, frozen=True, tag=True):
    """Start a sequence. `id` is globally unique; `adapter` is the fingerprint of a registered adapter.

    `group`, OWNER:REQUEST, is what the sequences of a request have in common; Cancel names it. `prefix_of` is the id
    of a sequence submitted before with the same prompt and adapter, whose keys and values of the prompt this one
    shares. `model` is what the request called the model; gateways see it in AdapterUse. Lower `priority` goes
    first. With `pool`, nothing is generated: the answer is Embedded, the prompt's last hidden states (after the
    final norm), the last one or their mean.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    adapter: str | None = None
    grammar: GrammarSpec | None = None
    group: str = ""
    prefix_of: str | None = None
    priority: int = 0
    pool: Literal["last", "mean"] | None = None
    model: str = ""

    @property
    def owner(self) -> str:
        """The name of the key that asked, with which `group` begins; empty where there are no keys."""
        return self.group.partition(":")[0]

    def belongs_to(self, group: str) -> bool:
        """Whether `group` is this sequence's, or the part of its id before the last "-", which its mates share."""
        return group in (self.group, self.id.rpartition("-")[0])


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    """End a sequence now: its text is complete, or nobody reads it any more. Unknown ids are ignored."""

    id: str


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """End every sequence of a group, whoever submitted it; their owners get SequenceFailure, the asker Cancelled."""

    group: str


class RegisterAdapter(msgspec.Struct, frozen=True, tag=True):
    """Make a prepared adapter known, so that AddRequest may name it. Idempotent."""

    adapter: PreparedAdapter


class GetStats(msgspec.Struct, frozen=True, tag=True):
    """Ask for EngineStats."""


class GetAdapterUse(msgspec.Struct, frozen=True, tag=True):
    """Ask for AdapterUse."""


ToEngine: TypeAlias = Hello | AddRequest | AbortRequest | Cancel | RegisterAdapter | GetStats | GetAdapterUse


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine's answer to Hello. Another `engine_id` than before means that all earlier sequences are gone."""

    engine_id: str
    model: ModelInfo


class PromptLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token of the prompt, the model's logprob for it (None for the first), and the likeliest (id, logprob) there."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One sampled token of a sequence.

    `logprob` and `top` ((id, logprob), best first) are the model's own, before any warping; they are there
    only when the request asked. `finish` is set on the last event; `stop_id` is the token id that ended
    the text, which is then `token` itself. On the first event alone, `waited` is the seconds that the sequence
    waited before its first step, and `prompt` has the prompt's scores if the request asked for them.
    """

    id: str
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None
    stop_id: int | None = None
    waited: float = 0.0
    prompt: tuple[PromptLogprob, ...] = ()


class Embedded(msgspec.Struct, frozen=True, tag=True):
    """The answer to a AddRequest with `pool`: the vector, in fp32."""

    id: str
    vector: tuple[float, ...]


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """The answer to Cancel: how many sequences were ended."""

    group: str
    sequences: int


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
    prompt_tokens: int = 0
    generated_tokens: int = 0
    block_size: int = 0
    adapter_slots: int = 0
    adapter_bytes: int = 0
    adapter_evictions: int = 0


INSTALL_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds, in seconds, of the buckets in which AdapterUse counts installations; a last one has no bound."""


class AdapterUse(msgspec.Struct, frozen=True, tag=True):
    """Adapters by the names that requests gave them: those on the device, and those of waiting sequences.

    `installs` counts installations by duration (INSTALL_BUCKETS), which took `install_seconds` together.
    """

    resident: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    installs: tuple[int, ...] = (0,) * (len(INSTALL_BUCKETS) + 1)
    install_seconds: float = 0.0


FromEngine: TypeAlias = Ready | Tokens | Embedded | Cancelled | SequenceFailure | EngineStats | AdapterUse


class EngineState(msgspec.Struct, frozen=True, tag=True):
    """The supervisor's word on the engine: `starting`, `up` or `down`, with the reason when it is down."""

    state: Literal["starting", "up", "down"]
    reason: str = ""
