"""The messages between rank 0 and the other ranks: step plans and adapter installations.

A plan names rows, blocks and slots. It has no requests, and no token ids but those that the step feeds.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class SequencePlan(msgspec.Struct, frozen=True, array_like=True):
    """One sequence's share of a step.

    `tokens` are fed at positions `start`, `start + 1`, …; a negative entry -1-j stands for the id that row j of the
    previous step sampled. `block_table` has the blocks of all tokens up to the last one. With `sample`, the last row
    samples the next token. `prompt_logprob_ids[i]` is the prompt's id that follows `tokens[i]`, if the request has
    prompt logprobs; with `pooling`, the step returns the last hidden state of every token.
    """

    tokens: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    sample: bool
    prompt_logprob_ids: tuple[int, ...] = ()
    pooling: bool = False


class LoraChunk(msgspec.Struct, frozen=True, array_like=True):
    """Rows [start, start + length) of the step use the adapter in `slot`. Rows of the base model are in no chunk."""

    slot: int
    start: int
    length: int


class StepPlan(msgspec.Struct, frozen=True, tag=True):
    """One forward pass. Single-token sequences come first, so that attention can process them as one group."""

    engine_id: str
    step: int
    sequences: tuple[SequencePlan, ...]
    lora: tuple[LoraChunk, ...]


class Placement(msgspec.Struct, frozen=True, array_like=True):
    """The pages of one LoRA pair in the pool of `module`, for decoder layer `layer`."""

    layer: int
    module: str
    pages: tuple[int, ...]
    lora_rank: int
    scale: float


class InstallAdapter(msgspec.Struct, frozen=True, tag=True):
    """Copy `files[rank]` into the pages and point `slot` at them; every rank answers with InstallResult.

    `digests`, unless empty, are the expected digests of `files`.
    """

    slot: int
    fingerprint: str
    files: tuple[str, ...]
    placements: tuple[Placement, ...]
    digests: tuple[str, ...] = ()


class InstallResult(msgspec.Struct, frozen=True, tag=True):
    """A rank's answer to InstallAdapter; `error` is empty if the slot is ready on that rank."""

    tp_rank: int
    slot: int
    fingerprint: str
    error: str = ""


class ClearSlot(msgspec.Struct, frozen=True, tag=True):
    """Empty the slot; its pages are free."""

    slot: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the step loop and exit."""


ToRank: TypeAlias = StepPlan | InstallAdapter | ClearSlot | Shutdown
