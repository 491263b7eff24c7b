"""Chooses a rank's device and compute dtype, and says why its GPU cannot be used."""

from __future__ import annotations

import functools
import warnings

import torch
from loguru import logger

from motet.core.errors import StartupError
from motet.core.startup_failures import remedy
from motet.engine.engine_config import EngineConfig
from motet.engine.models.architectures import ModelConfig

MIN_CAPABILITY = (8, 0)
"""The lowest compute capability that attention on CUDA and products of bfloat16 support."""


def resolve_device(engine_config: EngineConfig, rank: int) -> torch.device:
    """The rank's device; `auto` is CUDA if it is usable. Raises StartupError if CUDA is required and not usable."""
    kind = engine_config.device
    if kind == "cpu" or (kind == "auto" and not _auto_is_cuda()):
        return torch.device("cpu")
    if problem := _no_cuda() or _unusable(rank):
        raise StartupError(f"--device {kind}: {problem}", param="device")
    return torch.device("cuda", rank)


def resolve_dtype(engine_config: EngineConfig, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The compute dtype. Raises StartupError if the device does not support --dtype."""
    if device.type == "cpu":
        if engine_config.dtype not in ("auto", "float32"):
            raise StartupError(
                f"--dtype {engine_config.dtype}: the CPU supports float32 only; leave --dtype at auto",
                param="dtype",
            )
        return torch.float32
    if engine_config.dtype == "float32":
        raise StartupError(
            "--dtype float32: attention on CUDA supports bfloat16 and float16 only; set one of them", param="dtype"
        )
    if engine_config.dtype == "auto":
        return config.dtype if config.dtype == torch.float16 else torch.bfloat16
    return torch.bfloat16 if engine_config.dtype == "bfloat16" else torch.float16


def _auto_is_cuda() -> bool:
    """Whether the first GPU can be used, which decides for all ranks. Logs why not if there is one."""
    if torch.version.cuda is None:
        return False
    available, warning = _cuda_state()
    problem = (_no_cuda() if warning else None) if not available else _unusable(0)
    if problem:
        logger.warning("using the CPU although there is a GPU: {}", problem)
    return available and problem is None


@functools.cache
def _cuda_state() -> tuple[bool, str]:
    """Whether CUDA is available, and PyTorch's warning if a driver is installed that cannot be used."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    return available, " ".join(str(warning.message).partition(" (Triggered internally")[0] for warning in caught)


def _no_cuda() -> str | None:
    """Why no GPU can be used, with the remedy; None if one can."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA; run `make install-cuda`, or leave --device at auto"
    available, warning = _cuda_state()
    if available:
        return None
    reason = " ".join(warning.split()) or "Found no NVIDIA driver, or CUDA_VISIBLE_DEVICES hides all GPUs"
    return f"PyTorch finds no GPU ({reason}); {remedy(RuntimeError(reason))}"


def _unusable(rank: int) -> str | None:
    """Why the rank cannot use its GPU, with the remedy; None if it can."""
    count = torch.cuda.device_count()
    if count <= rank:
        return (
            f"rank {rank} needs a GPU of its own, and PyTorch finds {count}; lower --shards to {count}, or check "
            "CUDA_VISIBLE_DEVICES"
        )
    capability = torch.cuda.get_device_capability(rank)
    if capability < MIN_CAPABILITY:
        name, (major, minor) = torch.cuda.get_device_name(rank), capability
        return f"GPU {rank} ({name}) has compute capability {major}.{minor}, and 8.0 is needed; use --device cpu"
    return None
