"""Norm and activation: the CPU kernels on the CPU, PyTorch elsewhere."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from motet.engine.checkpoint import Checkpoint


class RMSNorm:
    """x / rms(x) * weight over the last dimension, computed in fp32 (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        self._size, self._eps = size, eps
        self.weight: Tensor

    def load(self, checkpoint: Checkpoint, prefix: str) -> None:
        """Read the weight [size]."""
        self.weight = checkpoint.read(f"{prefix}.weight", (self._size,))

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, size], normalised."""
        out = x.new_empty(x.shape)
        if x.device.type == "cpu":
            from motet.engine.kernels.cpu import rms_norm

            rms_norm(x.numpy(), self.weight.numpy(), self._eps, out.numpy())
            return out
        return self._plain(x)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual += x in place; returns the sum normalised."""
        if x.device.type == "cpu":
            from motet.engine.kernels.cpu import add_rms_norm

            out = x.new_empty(x.shape)
            add_rms_norm(x.numpy(), residual.numpy(), self.weight.numpy(), self._eps, out.numpy())
            return out
        residual += x
        return self._plain(residual)

    def heads(self, qkv: Tensor, first: int, heads: int) -> None:
        """Normalise `heads` heads in place, starting at column `first` of qkv [T, n]."""
        if qkv.device.type == "cpu":
            from motet.engine.kernels.cpu import head_norm

            head_norm(qkv.numpy(), first, heads, self.weight.numpy(), self._eps)
            return
        part = qkv[:, first : first + heads * self._size].unflatten(1, (heads, self._size))
        part.copy_(self._plain(part))

    def _plain(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * (wide.pow(2).mean(-1, keepdim=True) + self._eps).rsqrt()
        return self.weight * wide.to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [T, 2n]; [T, n]."""
    n = gate_up.shape[1] // 2
    if gate_up.device.type == "cpu":
        from motet.engine.kernels import cpu

        out = gate_up.new_empty(gate_up.shape[0], n)
        cpu.silu_mul(gate_up.numpy(), out.numpy())
        return out
    return F.silu(gate_up[:, :n]) * gate_up[:, n:]
