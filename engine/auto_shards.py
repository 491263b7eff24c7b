"""Chooses the number of ranks for `--shards auto`: the fewest GPUs that have room for the model. Imports no torch.

python -m motet.engine.auto_shards      prints the bytes of each GPU that CUDA programs see, as a JSON list
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loguru import logger

from motet.core.settings import Settings
from motet.engine.distributed.shard_counts import SplitSizes
from motet.engine.schedule.adapter_slots import PAGE_ROWS

CACHE_SHARE = 0.2
"""The part of `--memory-fraction` that weights and adapters should leave to the key-value cache and the steps."""

QUERY_SECONDS = 60.0
"""The first CUDA program after a boot may have to wait for the driver."""

_DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""The driver's device file, on Linux and in WSL."""

_ITEM_BYTES = 2
"""Of a number on CUDA: float16 or bfloat16."""

_WEIGHT_BYTES = {"none": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.6}
"""Of a linear layer's weight with its part of the scales, by --quantize."""


@dataclass(frozen=True)
class ModelSize:
    """What a model needs on CUDA: how it can be split, the bytes of its weights, and of one adapter on every rank.

    `stored_weights` is the size of the weights in 16 bits, or as the checkpoint has quantised them; `vocabulary` counts
    the numbers of embedding and head.
    """

    split: SplitSizes
    stored_weights: int
    vocabulary: int
    hidden_size: int
    head_dim: int
    num_layers: int

    def weights(self, quantize: str) -> float:
        """Bytes of the weights of all ranks with `--quantize`."""
        if quantize == "auto":
            return self.stored_weights
        split = self.split
        attention = 2 * (split.heads + split.kv_heads) * self.head_dim
        linear = self.num_layers * self.hidden_size * (attention + 3 * split.intermediate_size)
        return linear * _WEIGHT_BYTES[quantize] + self.vocabulary * _ITEM_BYTES

    def adapter_bytes(self, shards: int) -> int:
        """Bytes on each rank of an adapter of rank PAGE_ROWS on every linear layer."""
        split = self.split
        # A of five column-parallel modules and B of two row-parallel ones are whole on every rank.
        whole = 7 * self.hidden_size
        heads = 2 * split.heads * self.head_dim + 2 * max(split.kv_heads, shards) * self.head_dim
        return self.num_layers * PAGE_ROWS * _ITEM_BYTES * (whole + (heads + 3 * split.intermediate_size) // shards)


def resolve_shards(settings: Settings, directory: Path) -> int:
    """The number of ranks for `settings` and the model in `directory`."""
    if settings.shards != "auto":
        return settings.shards
    if settings.device == "cpu" or not _torch_has_cuda():
        return 1
    gpus = visible_gpus()
    if len(gpus) < 2:
        return 1
    try:
        model = read_model_size(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("--shards auto: the model's size cannot be read ({!r}), so one GPU is used", error)
        return 1
    shards = choose_shards(model, gpus, settings)
    logger.info("--shards auto: the model uses {} of {} GPUs", shards, len(gpus))
    return shards


def choose_shards(model: ModelSize, gpus: list[int], settings: Settings) -> int:
    """The smallest possible number of ranks that fits on `gpus` (bytes of each); else the largest possible number."""
    possible = [n for n in model.split.possible() if n <= len(gpus)]
    weights = model.weights(settings.quantize)
    limit = min(gpus) * settings.memory_fraction * (1 - CACHE_SHARE)
    adapter_memory = settings.size("adapter_memory")

    def fits(shards: int) -> bool:
        adapters = settings.adapter_slots * model.adapter_bytes(shards) if adapter_memory is None else adapter_memory
        return weights / shards + adapters <= limit

    return next((n for n in possible if fits(n)), possible[-1])


def read_model_size(directory: Path) -> ModelSize:
    """The size of the model in `directory`. Raises OSError, ValueError, KeyError or TypeError if it cannot be read."""
    config: dict[str, Any] = json.loads((directory / "config.json").read_bytes())
    heads = config["num_attention_heads"]
    wide = (config.get("dtype") or config.get("torch_dtype")) == "float32"
    return ModelSize(
        split=SplitSizes(heads, config["num_key_value_heads"] or heads, config["intermediate_size"]),
        stored_weights=_weight_bytes(directory) // (2 if wide else 1),
        vocabulary=config["vocab_size"] * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2),
        hidden_size=config["hidden_size"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        num_layers=config["num_hidden_layers"],
    )


def _weight_bytes(directory: Path) -> int:
    """Bytes of the model's files."""
    index, files = directory / "model.safetensors.index.json", set(directory.glob("*.safetensors"))
    if index.is_file():
        files = {directory / name for name in json.loads(index.read_bytes())["weight_map"].values()}
    return sum(file.stat().st_size for file in files)


def _torch_has_cuda() -> bool:
    """Whether the installed PyTorch may be built for CUDA: the version of a build for the CPU ends with `+cpu`."""
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def visible_gpus() -> list[int]:
    """Bytes of each GPU that CUDA programs started here see; empty if there are none."""
    if not any(file.exists() for file in _DRIVER_FILES):
        return []
    # In a process of its own: a driver that crashes or hangs must not take the supervisor with it.
    command = [sys.executable, "-m", "motet.engine.auto_shards"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=QUERY_SECONDS, check=True)
        gpus: list[int] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logger.warning("--shards auto: the GPUs cannot be counted ({!r}), so one is used", error)
        return []
    return gpus


def _query_driver() -> list[int]:
    """The same, from CUDA's driver library in this process."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, device, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    gpus = []
    for number in range(count.value):
        if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceTotalMem_v2(ctypes.byref(size), device):
            return []
        gpus.append(size.value)
    return gpus


if __name__ == "__main__":
    print(json.dumps(_query_driver()))
