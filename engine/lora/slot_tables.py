"""What each adapter slot has for every LoRA pair of the model: LoRA rank, scale and pages, in one tensor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from motet.engine.schedule.plan import Placement

HEADER = 2
"""Words of an entry before its pages: the LoRA rank (0: absent) and the scale's bits."""


class SlotTables:
    """`device` [slots, entries, words] int32: an entry has its LoRA rank, the bits of its fp32 scale, and its pages.

    A change is written to the host's copy, `host`, in NumPy. On CUDA `send` copies a slot's part to the device, in one
    piece and in the order of the current stream; on the CPU, both are the same memory.

    A copy that has not run yet may carry a later change of its slot. That is harmless, since a slot changes only while
    no running sequence uses it: steps that read a slot are launched after the last change has been sent.
    """

    def __init__(self, slots: int, entries: int, max_pages: int, device: torch.device) -> None:
        shape = (slots, entries, HEADER + max_pages)
        self._pinned = torch.zeros(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        is_cpu = device.type == "cpu"
        self.device = self._pinned if is_cpu else torch.zeros(shape, dtype=torch.int32, device=device)
        self.host: npt.NDArray[np.int32] = self._pinned.numpy()
        self._scales = self.host.view(np.float32)

    def set(self, slot: int, entry: int, placement: Placement) -> None:
        """Make an entry of the slot refer to the placement's pages. Raises ValueError if they are too many."""
        self.host[slot, entry, HEADER : HEADER + len(placement.pages)] = placement.pages
        self._scales[slot, entry, 1] = placement.scale
        self.host[slot, entry, 0] = placement.lora_rank

    def clear(self, slot: int) -> None:
        """Empty the slot's entries."""
        self.host[slot, :, 0] = 0

    def send(self, slot: int) -> None:
        """Let the device see the slot's changes."""
        if self.device is not self._pinned:
            self.device[slot].copy_(self._pinned[slot], non_blocking=True)


def ranks_of(tables: Tensor) -> Tensor:
    """The LoRA ranks [slots, entries] int32 in `tables` [slots, entries, words]: a view, as are the next two."""
    return tables[:, :, 0]


def scales_of(tables: Tensor) -> Tensor:
    """The scales [slots, entries] fp32."""
    return tables.view(torch.float32)[:, :, 1]


def pages_of(tables: Tensor) -> Tensor:
    """The pages [slots, entries, n] int32."""
    return tables[:, :, HEADER:]
