"""Merges adapters into one: the exact weighted sum of their deltas, by concatenating ranks.

    sum of w_i s_i B_i A_i   =   s [B_1 f_1 | B_2 f_2 | …] [A_1; A_2; …]      with f_i = w_i s_i / s

`s` is the w_i s_i of the largest magnitude: that adapter's B is unchanged and all others shrink, so nothing
overflows, and rounding errors in 16 bits are small relative to the sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motet.core.errors import AdapterRefused
from motet.core.messages import LoraEntry
from motet.engine.adapters.lora_tensors import LoraPair
from motet.engine.adapters.peft_config import MAX_NUMBER
from motet.engine.layers.linear import LinearSpec


@dataclass(frozen=True)
class _Term:
    """One adapter's share of a module: a [rank, inputs] and b [outputs, rank] in fp32, and the factor of b a."""

    a: Tensor
    b: Tensor
    factor: float


class AdapterMerger:
    """Adds adapters one by one, so that only one complete adapter has to be in memory."""

    def __init__(self, max_rank: int) -> None:
        self._max_rank = max_rank
        self._specs: dict[tuple[int, str], LinearSpec] = {}
        self._terms: dict[tuple[int, str], list[_Term]] = {}

    def add(self, pairs: list[LoraPair], weight: float) -> None:
        """Add `weight` times the adapter that has `pairs`.

        Raises AdapterRefused if the sum of a module's ranks exceeds the limit, or if a factor is out of bounds.
        """
        for pair in pairs:
            place = (pair.entry.layer, pair.entry.module)
            factor = weight * pair.entry.scale
            if not abs(factor) <= MAX_NUMBER:
                raise AdapterRefused(
                    f"layer {place[0]}, {place[1]}: the weight {weight:g} times the adapter's scale "
                    f"{pair.entry.scale:g} is out of bounds",
                    param="merged_adapters",
                )
            self._specs[place] = pair.spec
            terms = self._terms.setdefault(place, [])
            terms.append(_Term(pair.a.float(), pair.b.float(), factor))
            self._check_rank(place, [len(term.a) for term in terms])

    def pairs(self) -> list[LoraPair]:
        """The merged adapter's pairs, in the model's order; removes the added ones."""
        return [self._pair(place, self._terms.pop(place)) for place in sorted(self._terms)]

    def _pair(self, place: tuple[int, str], terms: list[_Term]) -> LoraPair:
        scale = max((term.factor for term in terms), key=abs)
        a = torch.cat([term.a for term in terms])
        b = torch.cat([term.b * (term.factor / scale if scale else 0.0) for term in terms], dim=1)
        return LoraPair(LoraEntry(*place, lora_rank=len(a), scale=scale), self._specs[place], a, b)

    def _check_rank(self, place: tuple[int, str], ranks: list[int]) -> None:
        if sum(ranks) > self._max_rank:
            raise AdapterRefused(
                f"layer {place[0]}, {place[1]}: the merged ranks {' + '.join(map(str, ranks))} add up to {sum(ranks)}, "
                f"and the maximum is {self._max_rank} (--max-adapter-rank)",
                param="merged_adapters",
            )
