"""Norm and activation: Numba kernels on the CPU, Triton kernels on CUDA."""

from __future__ import annotations

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
        if x.device.type == "cpu":
            from motet.engine.kernels import cpu

            out = x.new_empty(x.shape)
            cpu.rms_norm(x.numpy(), self.weight.numpy(), self._eps, out.numpy())
            return out
        from motet.engine.kernels import gpu

        return gpu.rms_norm(x, self.weight, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual += x in place; returns the sum normalised."""
        if x.device.type == "cpu":
            from motet.engine.kernels import cpu

            out = x.new_empty(x.shape)
            cpu.add_rms_norm(x.numpy(), residual.numpy(), self.weight.numpy(), self._eps, out.numpy())
            return out
        from motet.engine.kernels import gpu

        return gpu.add_rms_norm(x, residual, self.weight, self._eps)

    def heads(self, qkv: Tensor, first: int, heads: int) -> None:
        """Normalise `heads` heads in place, starting at column `first` of qkv [T, n]."""
        if qkv.device.type == "cpu":
            from motet.engine.kernels import cpu

            cpu.head_norm(qkv.numpy(), first, heads, self.weight.numpy(), self._eps)
            return
        from motet.engine.kernels import gpu

        gpu.head_norm(qkv, first, heads, self.weight, self._eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [T, 2n]; [T, n]."""
    if gate_up.device.type == "cpu":
        from motet.engine.kernels import cpu

        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        cpu.silu_mul(gate_up.numpy(), out.numpy())
        return out
    from motet.engine.kernels import gpu

    return gpu.silu_mul(gate_up)
