"""A whole CUDA step traced on fake tensors: shapes, dtypes and devices agree, without a GPU.

Fake `cuda` tensors compute nothing; what needs the device (flash-attn, Triton's kernels) is stood in for by functions
of the same shapes. It runs in a process of its own, since it registers a do-nothing device guard for CUDA.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

TRACE = """
import sys, types, warnings
from pathlib import Path
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.cpp_extension import load_inline

warnings.simplefilter("ignore")
load_inline("noop_guard", '''
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>);
''', functions=[])

from support.tiny_models import FAMILIES, write_model
from motet.engine.layers.forward_context import forward_context
from motet.engine.layers.attention import CacheShape, FlashAttention
from motet.engine.layers.linear import attach_lora
from motet.engine.lora.pool import LoraPool, PoolSize
from motet.engine.checkpoint import Checkpoint
from motet.engine.models.architectures import read_config
from motet.engine.models.decoder import Decoder
from motet.engine.models.linear_specs import module_shapes
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.schedule.plan import LoraChunk, SequencePlan, StepPlan

directories = [write_model(family, Path(sys.argv[1]) / family) for family in FAMILIES]
configs = [read_config(directory) for directory in directories]

def flash(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
    assert (max_seqlen_q, max_seqlen_k) == (3, 301)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16 and q.is_contiguous()
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 == options["block_table"].dtype
    assert k.shape[1] % 256 == 0
    assert len(cu_seqlens_q) == len(cu_seqlens_k) == len(options["block_table"]) + 1
    return torch.empty_like(q)

sys.modules["flash_attn"] = types.SimpleNamespace(flash_attn_varlen_func=flash)
def tiles(x, y, factors, tables, tiles, page_rows):
    assert page_rows == 16
    assert {t.device.type for t in (x, y, *tiles, *factors[0], *factors[1], *tables)} == {"cuda"}
    assert x.dtype == y.dtype == factors[0][0].dtype and x.stride(1) == y.stride(1) == 1
sys.modules["motet.engine.kernels.lora_triton"] = types.SimpleNamespace(lora_tiles=tiles, TILE_ROWS=16)

cuda, number = torch.device("cuda", 0), torch.bfloat16
class Shapes(Checkpoint):
    # safetensors cannot be read under FakeTensorMode
    def __init__(self):
        pass
    def read(self, name, shape, rows=slice(None), columns=None):
        whole = torch.empty(shape, dtype=number, device=cuda)
        return whole[rows] if columns is None else whole[rows, columns]
    def finish(self, ignorable):
        pass
plan = StepPlan("", 1, (
    SequencePlan((5,), 300, (0, 3), True), SequencePlan((6,), 0, (1,), True),
    SequencePlan((1, 2, 3), 255, (2, 4), True),
), (LoraChunk(1, 1, 1), LoraChunk(0, 2, 3)))
for directory, config in zip(directories, configs):
    group = ShardGroup()
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder = Decoder(config, group, cuda)
        decoder.load(Shapes())
        size = PoolSize(config.num_layers, 2, 8, 64)
        pool = LoraPool(module_shapes(config, group), size, cuda, number)
        attach_lora([layer.linears for layer in decoder.layers], pool)
        attention = FlashAttention(CacheShape(config.num_layers, 8, 256, 12, 6, config.head_dim), number)
        ids = torch.zeros(5, dtype=torch.long, device=cuda)
        hidden = decoder.forward(ids, forward_context(plan, 256, cuda), attention)
        logits = decoder.logits(hidden.sample)
    assert logits.shape == (3, config.vocab_size) and logits.dtype == torch.float32 and logits.device == cuda
    print(directory.name, "traced")
"""


@pytest.mark.slow  # compiling against torch's headers takes half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device guard is compiled with g++")
def test_a_step_traces_on_fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("trace")
    env = {**os.environ, "PYTHONPATH": "tests", "TORCH_EXTENSIONS_DIR": str(place / "extensions")}
    command = [sys.executable, "-c", TRACE, str(place)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
