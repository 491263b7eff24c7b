"""The messages between processes: msgspec structs, sent as msgpack over ZeroMQ.

    API worker ──ToEngine──> rank 0 ──FromEngine──> API worker
    API worker ──PrepareAdapter──> loader ──PreparedAdapter | LoaderFailure──> API worker
    supervisor ──EngineState──> API worker

The messages between ranks are in engine/schedule/plan.py.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from motet.core.adapter_tokens import AdapterTokens
from motet.core.errors import ErrorInfo
from motet.core.model_source import ModelInfo
from motet.core.output_format import GrammarSpec
from motet.core.sampling_params import SamplingParams

FinishReason: TypeAlias = Literal["stop", "length"]

MAX_PARTS = 16
"""Adapters that one request may merge."""


class LoraEntry(msgspec.Struct, frozen=True, array_like=True):
    """One LoRA pair of an adapter: decoder layer, module (`q_proj`, …), LoRA rank and scale."""

    layer: int
    module: str
    lora_rank: int
    scale: float


class PreparedAdapter(msgspec.Struct, frozen=True, tag=True):
    """An adapter that is parsed, checked and split into one file per rank.

    `fingerprint` is a digest of config, weights and base model; `files[rank]` are safetensors in the engine's dtype.
    `tokens` is where the adapter's tokenizer differs from the base model's; `name` is `source:id`, for the log;
    `digests` are those of the files (core/digests.py); `warnings` are logged: problems that do not prevent serving.
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
    """An adapter's directory, and the factor for its delta."""

    directory: str
    weight: float = 1.0


class PrepareAdapter(msgspec.Struct, frozen=True, tag=True):
    """Prepare the weighted sum of `parts`: one adapter, or several merged into one.

    The answer repeats `id`, which the sender chooses.
    """

    id: str
    parts: tuple[AdapterPart, ...]


class CheckConfig(msgspec.Struct, frozen=True, tag=True):
    """Check whether the config of the adapter in `directory` can be served. The loader reads no other file."""

    id: str
    directory: str


class ConfigAccepted(msgspec.Struct, frozen=True, tag=True):
    """The answer to CheckConfig for a config that can be served."""

    id: str


ToLoader: TypeAlias = PrepareAdapter | CheckConfig


class LoaderFailure(msgspec.Struct, frozen=True, tag=True):
    """The loader refused an adapter."""

    id: str
    error: ErrorInfo


FromLoader: TypeAlias = PreparedAdapter | ConfigAccepted | LoaderFailure


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A client's first message. Sent again, it checks whether the engine is still the same."""


class AddRequest(msgspec.Struct, frozen=True, tag=True):
    """Start a sequence. `id` is globally unique; `adapter` is the fingerprint of a registered adapter.

    All sequences of a request have the same `group`, OWNER:REQUEST; CancelGroup names it. `prefix_of` is the id of a
    sequence that was added before, with the same prompt and adapter; this one shares the prompt's keys and values with
    it. `model` is the model's name in the request; AdapterUse reports it. A lower `priority` goes first. With
    `pooling`, nothing is generated: the answer is Embedding, the last or the mean of the prompt's hidden states after
    the final norm.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    adapter: str | None = None
    grammar: GrammarSpec | None = None
    group: str = ""
    prefix_of: str | None = None
    priority: int = 0
    pooling: Literal["last", "mean"] | None = None
    model: str = ""

    @property
    def owner(self) -> str:
        """The name of the caller's API key, which is the start of `group`; empty without API keys."""
        return self.group.partition(":")[0]

    def belongs_to(self, group: str) -> bool:
        """Whether `group` is this sequence's group, or the part of its id before the last "-"."""
        return group in (self.group, self.id.rpartition("-")[0])


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    """End a sequence now: its text is complete, or its client is gone. Unknown ids are ignored."""

    id: str


class CancelGroup(msgspec.Struct, frozen=True, tag=True):
    """End all sequences of a group, also those of other clients. Their clients get SequenceFailure.

    The answer is GroupCancelled.
    """

    group: str


class RegisterAdapter(msgspec.Struct, frozen=True, tag=True):
    """Register a prepared adapter, so that AddRequest can name it. Idempotent."""

    adapter: PreparedAdapter


class GetStats(msgspec.Struct, frozen=True, tag=True):
    """Ask for EngineStats."""


class GetAdapterUse(msgspec.Struct, frozen=True, tag=True):
    """Ask for AdapterUse."""


ToEngine: TypeAlias = Hello | AddRequest | AbortRequest | CancelGroup | RegisterAdapter | GetStats | GetAdapterUse


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine's answer to Hello. If `engine_id` has changed, all earlier sequences are gone."""

    engine_id: str
    model: ModelInfo


class PromptLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token of the prompt, its logprob (None for the first one), and the likeliest (id, logprob) at its position."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One sampled token of a sequence.

    `logprob` and `top` ((id, logprob), best first) are the model's, before any warping; they are set only if the
    request has `logprobs`. The last event has `finish`, and `stop_id` if `token` is an id that ends the text. The first
    event has `queue_seconds`, the time from the sequence's arrival to its first step, and `prompt_logprobs` if the
    request has them.
    """

    id: str
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None
    stop_id: int | None = None
    queue_seconds: float = 0.0
    prompt_logprobs: tuple[PromptLogprob, ...] = ()


class Embedding(msgspec.Struct, frozen=True, tag=True):
    """The answer to an AddRequest with `pooling`: the fp32 vector."""

    id: str
    vector: tuple[float, ...]


class GroupCancelled(msgspec.Struct, frozen=True, tag=True):
    """The answer to CancelGroup: the number of sequences that were ended."""

    group: str
    sequences: int


class TokenEvents(msgspec.Struct, frozen=True, tag=True):
    """The events of one step for one client."""

    events: tuple[TokenEvent, ...]


class SequenceFailure(msgspec.Struct, frozen=True, tag=True):
    """One sequence ended with an error; the other sequences of the batch continue."""

    id: str
    error: ErrorInfo


class EngineStats(msgspec.Struct, frozen=True, tag=True):
    """The engine's counters and gauges; `blocks_free == blocks_total` when nothing runs."""

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
"""Upper bounds, in seconds, of the buckets of AdapterUse.installs; one more bucket has no bound."""


class AdapterUse(msgspec.Struct, frozen=True, tag=True):
    """Adapters by the names in their requests: those on the device, and those of waiting sequences.

    `installs` counts installations by duration (INSTALL_BUCKETS); `install_seconds` is the sum of the durations.
    """

    resident: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    installs: tuple[int, ...] = (0,) * (len(INSTALL_BUCKETS) + 1)
    install_seconds: float = 0.0


FromEngine: TypeAlias = Ready | TokenEvents | Embedding | GroupCancelled | SequenceFailure | EngineStats | AdapterUse


class EngineState(msgspec.Struct, frozen=True, tag=True):
    """The engine's state, as the supervisor publishes it; `reason` says why it is not `up`."""

    state: Literal["starting", "up", "down"]
    reason: str = ""
