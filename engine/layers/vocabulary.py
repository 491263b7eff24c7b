"""The token embedding and the language-model head, both split over the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.engine.checkpoint import Checkpoint
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.kernels.matmul import Weight


class VocabularyShard:
    """This rank's rows of the vocabulary. All ranks have shares of one size, the last one padded with zeros."""

    def __init__(self, vocab_size: int, hidden_size: int, group: ShardGroup) -> None:
        self._group = group
        self._shape = (vocab_size, hidden_size)
        self._share = -(-vocab_size // group.tp_size)
        self._first = group.tp_rank * self._share

    def read(self, checkpoint: Checkpoint, name: str) -> Tensor:
        """Rows [share, hidden] of a [vocab, hidden] tensor, zeros beyond its end."""
        last = min(self._first + self._share, self._shape[0])
        rows = checkpoint.read(name, self._shape, rows=slice(self._first, last))
        return F.pad(rows, (0, 0, 0, self._share - len(rows)))

    def embed(self, table: Tensor, ids: Tensor) -> Tensor:
        """The embeddings [T, hidden] of ids [T]: zero for other ranks' ids, then summed over all ranks."""
        if self._group.tp_size == 1:
            return F.embedding(ids, table)
        local = ids - self._first
        in_shard = (local >= 0) & (local < self._share)
        rows = F.embedding(torch.where(in_shard, local, 0), table)
        return self._group.all_reduce(rows * in_shard[:, None])

    def logits(self, head: Weight, hidden: Tensor, out: Tensor | None = None) -> Tensor | None:
        """fp32 logits [N, vocab] on rank 0, in `out` if it is given; None on the others."""
        logits = self._group.gather_columns(head(hidden))
        if logits is None:
            return None
        logits = logits[:, : self._shape[0]]
        return logits.float() if out is None else out.copy_(logits)
