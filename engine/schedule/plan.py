"""What rank 0 tells the other ranks: step plans and adapter placements, as plain data.

A plan names rows, blocks and slots; it knows no requests and no token values beyond the literal ids it feeds.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class SequencePlan(msgspec.Struct, frozen=True, array_like=True):
    """One sequence's share of a step.

    `tokens` are fed at positions `start`, `start + 1`, …; a negative entry -1-j stands for the id that row j
    of the previous step sampled. `blocks` is the block table over everything up to the last token. `sample`
    asks for a next token after the last one. `score` are the prompt's ids that follow the first len(score) of
    `tokens`, for a prompt whose logprobs are wanted; `pool` asks for every token's last hidden state.
    """

    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    sample: bool
    score: tuple[int, ...] = ()
    pool: bool = False


class LoraChunk(msgspec.Struct, frozen=True, array_like=True):
    """Rows [start, start + length) of the step's flat token list belong to `slot`. Base rows are in no chunk."""

    slot: int
    start: int
    length: int


class StepPlan(msgspec.Struct, frozen=True, tag=True):
    """One forward pass. Single-token sequences come first, so that attention can treat them as one group."""

    engine_id: str
    step: int
    sequences: tuple[SequencePlan, ...]
    lora: tuple[LoraChunk, ...]


class Placement(msgspec.Struct, frozen=True, array_like=True):
    """Where one LoRA pair lives: pool pages of `module`, for decoder layer `layer`."""

    layer: int
    module: str
    pages: tuple[int, ...]
    rank: int
    scale: float


class InstallAdapter(msgspec.Struct, frozen=True, tag=True):
    """Copy `files[rank]` into the pages and point `slot` at them; every rank answers with Installed.

    `digests` are what the files must have, if there are any.
    """

    slot: int
    fingerprint: str
    files: tuple[str, ...]
    placements: tuple[Placement, ...]
    digests: tuple[str, ...] = ()


class Installed(msgspec.Struct, frozen=True, tag=True):
    """A rank's answer to InstallAdapter; `error` is empty when the slot can be used on that rank."""

    rank: int
    slot: int
    fingerprint: str
    error: str = ""


class ClearSlot(msgspec.Struct, frozen=True, tag=True):
    """The slot is empty from now on; its pages may be written again."""

    slot: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the loop and exit."""


ToRank: TypeAlias = StepPlan | InstallAdapter | ClearSlot | Shutdown
