"""The number of ranks for `--shards auto`, and the GPUs as CUDA's driver reports them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_model

from motet.core.settings import Settings
from motet.engine import auto_shards
from motet.engine.auto_shards import ModelSize, choose_shards, read_model_size, resolve_shards
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.distributed.shard_counts import SplitSizes
from motet.engine.lora.pool import page_bytes
from motet.engine.models.architectures import read_config
from motet.engine.models.linear_specs import module_shapes

GB = 1 << 30
SMOLLM2_135M = ModelSize(SplitSizes(9, 3, 1536), int(0.25 * GB), 49_152 * 576, 576, 64, 30)
QWEN2_5_3B = ModelSize(SplitSizes(16, 2, 11008), 6 * GB, 151_936 * 2048, 2048, 128, 36)
LLAMA_8B = ModelSize(SplitSizes(32, 8, 14336), 15 * GB, 2 * 128_256 * 4096, 4096, 128, 32)
LLAMA_70B = ModelSize(SplitSizes(64, 8, 28672), 131 * GB, 2 * 128_256 * 8192, 8192, 128, 80)


@pytest.mark.parametrize(
    ("model", "gpus", "settings", "shards"),
    [
        (SMOLLM2_135M, [80] * 8, {}, 1),
        (LLAMA_8B, [80] * 8, {}, 1),
        (LLAMA_8B, [24] * 2, {}, 1),
        (LLAMA_8B, [24] * 2, {"adapter_slots": 64}, 2),  # 20 of 24 GB leave a cache, but less than a fifth
        (LLAMA_8B, [24] * 2, {"adapter_slots": 64, "adapter_memory": "1GiB"}, 1),
        (LLAMA_8B, [24] * 2, {"memory_fraction": 0.8}, 2),
        (LLAMA_8B, [80, 16], {}, 2),  # the smallest GPU decides
        (LLAMA_70B, [80] * 8, {}, 4),
        (LLAMA_70B, [80] * 8, {"quantize": "fp8"}, 2),
        (LLAMA_70B, [80] * 8, {"quantize": "none"}, 4),
        (LLAMA_8B, [12] * 2, {"quantize": "int4"}, 1),
        (LLAMA_70B, [80] * 3, {}, 2),  # no number fits: the largest that can split the model
        (LLAMA_70B, [141] * 4, {}, 2),
        (QWEN2_5_3B, [3] * 4, {"adapter_slots": 4}, 4),  # two key-value heads on four ranks
        (SMOLLM2_135M, [0.25] * 4, {"adapter_slots": 1}, 3),
    ],
)
def test_fewest_gpus_with_room(model: ModelSize, gpus: list[float], settings: dict[str, Any], shards: int) -> None:
    assert choose_shards(model, [int(size * GB) for size in gpus], Settings(**settings)) == shards


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Qwen2 with two key-value heads."""
    return write_model("qwen2", tmp_path / "model", num_key_value_heads=2)


def test_the_size_is_that_of_the_files_and_of_the_pools(model: Path) -> None:
    size, config = read_model_size(model), read_config(model)
    assert size.split == SplitSizes(config.num_heads, config.num_kv_heads, config.intermediate_size)
    weights = (model / "model.safetensors").stat().st_size
    assert size.stored_weights == weights // 2, "the files are float32, and CUDA serves 16 bits"
    assert size.weights("auto") == size.stored_weights == pytest.approx(size.weights("none"), rel=0.1)
    assert size.weights("fp8") < 0.7 * size.weights("none")
    for shards in size.split.possible():
        pages = page_bytes(module_shapes(config, ShardGroup(0, shards)), 2)
        assert size.adapter_bytes(shards) == config.num_layers * pages


def test_an_index_names_the_files(model: Path) -> None:
    whole = read_model_size(model).stored_weights
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert read_model_size(model).stored_weights == 2 * whole
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert read_model_size(model).stored_weights == whole


def test_what_decides(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_shards, "_torch_has_cuda", lambda: True)
    monkeypatch.setattr(auto_shards, "visible_gpus", lambda: [400_000] * 8)
    slots = {"adapter_slots": 1}
    assert resolve_shards(Settings(**slots), model) == 4
    assert resolve_shards(Settings(shards=3, **slots), model) == 3
    assert resolve_shards(Settings(device="cpu", **slots), model) == 1
    (model / "config.json").write_text("{}")
    assert resolve_shards(Settings(**slots), model) == 1
    monkeypatch.setattr(auto_shards, "visible_gpus", list)
    assert resolve_shards(Settings(**slots), model) == 1


DRIVER = """
#include <stddef.h>
#include <stdlib.h>
int cuInit(unsigned flags) { return flags != 0; }
int cuDeviceGetCount(int *count) { *count = atoi(getenv("FAKE_GPUS")); return *count == 0 ? 100 : 0; }
int cuDeviceGet(int *device, int number) { *device = 7 + number; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)device << 33; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="the stand-in for the driver is compiled with cc")
def test_the_driver_names_the_gpus(tmp_path: Path) -> None:
    """With a stand-in for libcuda.so.1 that has its functions; 100 is CUDA_ERROR_NO_DEVICE."""
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)

    def gpus(count: int) -> list[int]:
        env = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "FAKE_GPUS": str(count)}
        command = [sys.executable, "-m", "motet.engine.auto_shards"]
        answer: list[int] = json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
        return answer

    assert gpus(2) == [7 << 33, 8 << 33]
    assert gpus(0) == []
