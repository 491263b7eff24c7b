"""Into how many ranks a model can be split. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SHARDS = 64


@dataclass(frozen=True)
class SplitSizes:
    """The sizes of a decoder layer that the ranks split."""

    heads: int
    kv_heads: int
    intermediate_size: int

    def obstacle(self, shards: int) -> str | None:
        """Why `shards` ranks cannot split the model; None if they can.

        If there are more ranks than key-value heads, several ranks have the same one.
        """
        if self.heads % shards:
            return f"does not divide the model's {self.heads} attention heads"
        if self.intermediate_size % shards:
            return f"does not divide the model's {self.intermediate_size} intermediate size"
        if self.kv_heads % shards and shards % self.kv_heads:
            return f"is neither a divisor nor a multiple of the model's {self.kv_heads} key-value heads"
        return None

    def possible(self) -> list[int]:
        """All numbers of ranks that can split the model, ascending."""
        return [n for n in range(1, min(self.heads, MOST_SHARDS) + 1) if self.obstacle(n) is None]
