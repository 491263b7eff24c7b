"""Linear layers, sharded for tensor parallelism. Here the LoRA delta is added to the base model's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from motet.engine.checkpoint import Checkpoint
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.kernels.quantized_weight import MatrixProduct, Quantization, StoredWeight, linear_weight
from motet.engine.layers.forward_context import ForwardContext
from motet.engine.lora.apply import apply_lora
from motet.engine.lora.pool import FusedLora, LoraPool, ModuleShape


@dataclass(frozen=True)
class Part:
    """One module of a fused linear layer: its name in checkpoints and its full output size.

    Where the outputs are key-value heads, `kv_heads` is their number: if there are fewer heads than ranks, several
    ranks have the same one.
    """

    name: str
    outputs: int
    kv_heads: int = 0


@dataclass(frozen=True)
class LinearSpec:
    """A fused linear layer: modules of `parent` that read the same input, computed as one matrix product.

    `column` splits the outputs over the ranks, `row` splits the inputs and sums the results.
    """

    parent: Literal["self_attn", "mlp"]
    parts: tuple[Part, ...]
    inputs: int
    split: Literal["column", "row"]
    bias: bool = False

    def outputs(self, name: str, group: ShardGroup) -> slice:
        """The outputs of the part called `name` that this rank computes."""
        part = next(p for p in self.parts if p.name == name)
        return group.slice(part.outputs, part.kv_heads) if self.split == "column" else slice(0, part.outputs)

    def columns(self, group: ShardGroup) -> slice:
        """The inputs that this rank reads."""
        return group.slice(self.inputs) if self.split == "row" else slice(0, self.inputs)

    def shapes(self, group: ShardGroup) -> tuple[ModuleShape, ...]:
        """The modules, with the sizes of this rank's shard."""
        outputs, columns = {p.name: self.outputs(p.name, group) for p in self.parts}, self.columns(group)
        return tuple(
            ModuleShape(name, columns.stop - columns.start, rows.stop - rows.start) for name, rows in outputs.items()
        )


class ParallelLinear:
    """y = x W.T (+ LoRA) (+ bias), with W's shard of this rank."""

    def __init__(self, spec: LinearSpec, group: ShardGroup, quantization: Quantization = "none") -> None:
        self.spec = spec
        self.group = group
        self._quantization = quantization
        self.lora: FusedLora | None = None
        self._weight: MatrixProduct
        self._bias: Tensor | None = None

    def load(self, checkpoint: Checkpoint, prefix: str) -> None:
        """Read this rank's rows (column split) or columns (row split) of every part; `prefix` names the layer."""
        weights: list[StoredWeight] = []
        biases: list[Tensor] = []
        for part in self.spec.parts:
            name, shape = f"{prefix}.{self.spec.parent}.{part.name}", (part.outputs, self.spec.inputs)
            if self.spec.split == "column":
                rows = self.spec.outputs(part.name, self.group)
                weights.append(checkpoint.read_weight(name, shape, rows=rows))
            else:
                rows = slice(None)
                weights.append(checkpoint.read_weight(name, shape, columns=self.spec.columns(self.group)))
            if self.spec.bias:
                biases.append(checkpoint.read(f"{name}.bias", (part.outputs,), rows=rows))
        self._weight = linear_weight(StoredWeight.concatenated(weights), self._quantization)
        self._bias = torch.cat(biases) if biases else None

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x [T, in] to [T, out], on this rank's shard."""
        y = self._weight(x)
        if self.lora is not None and context.lora is not None:
            apply_lora(x, y, self.lora, context.lora)
        if self.spec.split == "row":
            self.group.all_reduce(y)
        if self._bias is not None:
            y += self._bias
        return y


def attach_lora(layers: Sequence[Mapping[str, ParallelLinear]], pool: LoraPool) -> None:
    """Give every linear layer of a model its adapter pools; `layers` has each decoder layer's, by name."""
    for linears, pools in zip(layers, pool.layers, strict=True):
        for name, linear in linears.items():
            linear.lora = pools[name]
