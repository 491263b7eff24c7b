"""The tokens whose logits a request changes, by penalties and biases: a table on the device, updated there.

The device knows the sampled ids before the host does, so it counts them itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from motet.core.sampling_params import SamplingParams
from motet.engine.kernels import cpu_sampling
from motet.engine.kernels.cpu_sampling import NOT_SEEN
from motet.engine.schedule.sequence import Sequence
from motet.engine.staging import upload

FIRST_ROWS, FIRST_WIDTH = 8, 256
"""Requests and entries per request of a new table; both are doubled when they do not suffice."""


def is_penalised(params: SamplingParams) -> bool:
    """Whether the output changes the logits."""
    return params.repetition_penalty != 1 or bool(params.presence_penalty) or bool(params.frequency_penalty)


@dataclass(frozen=True)
class AdjustedRows:
    """M rows of a step with penalties or a bias; the first `num_penalised` have penalties.

    rows [M] int32 are rows of logits, places [M] int32 rows of the table, penalties [M, 3] fp32 repetition, presence
    and frequency.
    """

    rows: Tensor
    places: Tensor
    penalties: Tensor
    num_penalised: int


class TokenTable:
    """A row for each request with penalties or a bias, in the form that cpu_sampling.py describes."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size, self._device = vocab_size, device
        self._places: dict[str, int] = {}
        self._free: list[int] = []
        self._most_entries: dict[str, int] = {}  # the host does not know which sampled tokens were new
        self._allocate(0, 0)

    def places(self, rows: list[Sequence]) -> list[int]:
        """The table's rows for the sequences `rows`, with room for the tokens that they sample next."""
        for sequence in rows:
            if sequence.id not in self._places:
                self._add(sequence)
            if is_penalised(sequence.request.params):
                most = self._most_entries[sequence.id]
                self._most_entries[sequence.id] = min(most + 1, self._vocab_size)
        self._reserve(0, max(self._most_entries[sequence.id] for sequence in rows))
        return [self._places[sequence.id] for sequence in rows]

    def adjust(self, logits: Tensor, adjusted: AdjustedRows) -> None:
        """Penalise and bias logits [N, V] (fp32, contiguous) in place."""
        arguments = (logits, adjusted.rows, adjusted.places, adjusted.penalties)
        if logits.device.type == "cpu":
            cpu_sampling.adjust_rows(*(tensor.numpy() for tensor in arguments), *self._arrays)
            return
        from motet.engine.kernels import sampling_triton

        sampling_triton.adjust_rows(*arguments, self._table)

    def count(self, sampled: Tensor, adjusted: AdjustedRows) -> None:
        """Count the ids that the rows with penalties sampled, of sampled [N] (int32)."""
        n = adjusted.num_penalised
        if sampled.device.type == "cpu":
            rows, places = adjusted.rows.numpy()[:n], adjusted.places.numpy()[:n]
            cpu_sampling.count_rows(sampled.numpy(), rows, places, *self._arrays)
            return
        from motet.engine.kernels import sampling_triton

        sampling_triton.count_rows(sampled, adjusted.rows[:n], adjusted.places[:n], self._table)

    def forget(self, id: str) -> None:
        """Free the row of a request that has ended, if it has one."""
        place = self._places.pop(id, None)
        if place is None:
            return
        del self._most_entries[id]
        self._free.append(place)
        if not self._places:  # one long prompt may have made it large
            self._free.clear()
            self._allocate(0, 0)

    def _add(self, sequence: Sequence) -> None:
        """Give a request a row with the tokens so far that its penalties count, and those that have a bias."""
        assert sequence.sampled_index == len(sequence.output), "the row is made before the request has unread tokens"
        params = sequence.request.params
        output = np.array(sequence.output if is_penalised(params) else (), np.int64)
        # Only the repetition penalty changes the tokens of the prompt.
        prompt = np.array(sequence.request.prompt if params.repetition_penalty != 1 else (), np.int64)
        biased = np.array(list(params.logit_bias), np.int64)
        ids = np.unique(np.concatenate([prompt, output, biased]))
        counts = np.full(len(ids), NOT_SEEN, np.float32)
        counts[np.searchsorted(ids, np.concatenate([prompt, output]))] = 0
        np.add.at(counts, np.searchsorted(ids, output), 1)
        biases = np.zeros(len(ids), np.float32)
        biases[np.searchsorted(ids, biased)] = list(params.logit_bias.values())

        place = self._free.pop() if self._free else len(self._places)
        self._places[sequence.id], self._most_entries[sequence.id] = place, len(ids)
        self._reserve(place + 1, len(ids))
        entries = np.stack([ids.astype(np.int32), counts.view(np.int32), biases.view(np.int32)])
        self._entries[:, place, : len(ids)].copy_(upload(entries, self._device))
        self._table[3][place] = len(ids)

    def _reserve(self, rows: int, width: int) -> None:
        """Double the table's sizes until it has at least this many rows and entries per row."""
        old, old_sizes = self._entries, self._table[3]
        old_rows, old_width = old.shape[1:]
        if rows > old_rows or width > old_width:
            self._allocate(_doubled(old_rows, FIRST_ROWS, rows), _doubled(old_width, FIRST_WIDTH, width))
            self._entries[:, :old_rows, :old_width].copy_(old)
            self._table[3][:old_rows].copy_(old_sizes)

    def _allocate(self, rows: int, width: int) -> None:
        """Make a new, empty table."""
        self._entries = torch.zeros(3, rows, width, dtype=torch.int32, device=self._device)
        sizes = torch.zeros(rows, dtype=torch.int32, device=self._device)
        ids, counts, biases = self._entries.unbind()
        self._table = (ids, counts.view(torch.float32), biases.view(torch.float32), sizes)
        self._arrays = tuple(tensor.numpy() for tensor in self._table) if self._device.type == "cpu" else ()


def _doubled(size: int, first: int, needed: int) -> int:
    """`size`, but at least `first`, doubled until it is at least `needed`."""
    size = max(size, first)
    while size < needed:
        size *= 2
    return size
