"""Counts what an adapter's install asks of the device, on fake CUDA: `python -m support.install_counts DIRECTORY`.

Prints a JSON object for Llama-3.1-8B's shapes, rank 16 on all seven modules: the operations in the step loop (clear
and point) and in the installing thread (copy).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from support import fake_cuda
from support.triton_lora import LLAMA_8B
from torch._subclasses.fake_tensor import FakeTensorMode

from motet.engine.lora.pool import LoraPool, ModuleShape, PoolSize
from motet.engine.schedule.plan import InstallAdapter, Placement

LAYERS, RANK = 32, 16
LINEARS = {
    name: tuple(ModuleShape(part, inputs, width) for part, width in zip(name.split(", "), widths, strict=True))
    for name, (inputs, widths) in LLAMA_8B.items()
}
SHAPES = [shape for shapes in LINEARS.values() for shape in shapes]


def main() -> None:
    """Count one install into an empty pool."""
    fake_cuda.register_device_guard(Path(sys.argv[1]))
    counts = fake_cuda.DeviceCounts()
    places = [Placement(layer, shape.name, (layer,), RANK, 0.5) for layer in range(LAYERS) for shape in SHAPES]
    install = InstallAdapter(3, "", (), tuple(places))
    tensors = {
        f"{layer}.{shape.name}.{side}": torch.zeros(RANK, width, dtype=torch.bfloat16)
        for layer in range(LAYERS)
        for shape in SHAPES
        for side, width in (("A", shape.inputs), ("B", shape.outputs))
    }
    fake_cuda.install_stand_ins(counts)
    found = {}
    with FakeTensorMode(allow_non_fake_inputs=True), counts:
        pool = LoraPool(LINEARS, PoolSize(LAYERS, 8, LAYERS, RANK, 2048), torch.device("cuda", 0), torch.bfloat16)
        steps = {
            "clear": lambda: pool.clear(install.slot),
            "copy": lambda: pool.copy(install, tensors),
            "point": lambda: pool.point(install),
        }
        for name, step in steps.items():
            counts.clear()
            step()
            kinds = ("launches", "uploads", "waits")
            found[name] = {kind: sum(getattr(counts, kind).values()) for kind in kinds}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
