"""Traces CUDA steps of every family on fake tensors: `python -m support.cuda_trace DIRECTORY`.

Kernels and attention calls compute nothing; what is checked is what they would be given, and what a recorded step does.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support import fake_cuda, flash_attn_stand_in
from support.local_engine import random_runner
from support.tiny_models import FAMILIES, write_even_llama, write_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.jit import JITFunction

from motet.core.settings import Settings
from motet.engine.decode_graphs import Recording
from motet.engine.engine_config import EngineConfig
from motet.engine.layers.attention import FlashAttention, VarlenAttention, flash_attention
from motet.engine.model_runner import ModelRunner
from motet.engine.schedule.plan import LoraChunk, SequencePlan, StepPlan

MIXED = StepPlan(
    "",
    1,
    (
        SequencePlan((5,), 300, (0, 3), True),
        SequencePlan((-1,), 0, (1,), True),
        SequencePlan((1, 2, 3), 255, (2, 4), True, (2, 3)),
        SequencePlan((1, 2), 0, (5,), False, pooling=True),
    ),
    (LoraChunk(1, 1, 1), LoraChunk(0, 2, 3)),
)


def traced(
    signature: inspect.Signature, names: tuple[str, str, str], integers: tuple[str, ...]
) -> Callable[..., Tensor]:
    """A function of flash-attn that checks its arguments; `names` are those of queries, keys and values."""

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        given = flash_attn_stand_in.arguments(signature, args, kwargs)
        query, keys, values = (getattr(given, name) for name in names)
        flash_attn_stand_in.check_tensors(query, (keys, values), {name: getattr(given, name) for name in integers})
        assert query.device.type == "cuda"
        assert query.dtype == torch.bfloat16
        return torch.empty_like(query)

    return attend


def launch(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """Stands in for a launch: every tensor is on the device, and the elements of its rows are contiguous."""
    assert all(0 < size < 65536 for size in grid[1:]), f"{function.fn.__name__}: grid {grid}"
    assert 0 < grid[0] < 2**31
    for tensor in (a for a in args if isinstance(a, Tensor)):
        assert tensor.device.type == "cuda", f"{function.fn.__name__} gets a tensor of the host"
        assert not tensor.numel() or tensor.stride(-1) == 1, function.fn.__name__


def check_recording(runner: ModelRunner, counts: fake_cuda.DeviceCounts) -> None:
    """What a graph would record reads nothing on the host, copies nothing and waits for nothing."""

    def record(work: Callable[[], Tensor | None]) -> Recording:
        counts.clear()
        output = work()
        assert not counts.uploads
        assert not counts.downloads
        assert not counts.waits
        return Recording(lambda: None, output)

    runner.record_graphs([1, 4], record, lambda done, of: None)
    decode = StepPlan("", 2, MIXED.sequences[:1], ())
    logits = runner.execute(runner.stage(decode)).logits
    assert logits is not None
    assert logits.shape == (1, runner.config.vocab_size)


def check_model(directory: Path, backend: type, counts: fake_cuda.DeviceCounts, quantize: str = "none") -> None:
    """A mixed step, and recorded decode steps."""
    settings = Settings(
        device="cuda", adapter_slots=2, max_sequences=8, max_batch_tokens=64, kv_memory="64MiB", quantize=quantize
    )
    runner = random_runner(EngineConfig.from_settings(settings, directory), torch.device("cuda", 0))
    assert isinstance(runner.attention, backend)
    output = runner.execute(runner.stage(MIXED))
    assert output.logits is not None
    assert output.logits.shape == (3, runner.config.vocab_size)
    assert (output.logits.dtype, output.logits.device.type) == (torch.float32, "cuda")
    assert output.hidden_states.shape == (2, runner.config.hidden_size)
    check_recording(runner, counts)


def main() -> None:
    """Every family through flash-attn, and one through torch's varlen_attn."""
    root = Path(sys.argv[1])
    fake_cuda.register_device_guard(root)
    directories = [write_model(family, root / family) for family in FAMILIES]
    even = write_even_llama(root / "even")
    counts = fake_cuda.DeviceCounts()
    fake_cuda.install_stand_ins(counts)
    JITFunction.run = launch
    functions = types.SimpleNamespace(
        flash_attn_varlen_func=traced(
            flash_attn_stand_in.VARLEN_FUNC, ("q", "k", "v"), ("cu_seqlens_q", "cu_seqlens_k", "block_table")
        ),
        flash_attn_with_kvcache=traced(
            flash_attn_stand_in.WITH_KVCACHE, ("q", "k_cache", "v_cache"), ("cache_seqlens", "block_table")
        ),
    )
    with FakeTensorMode(allow_non_fake_inputs=True), counts:
        for module, backend, chosen in (
            (functions, FlashAttention, directories),
            (None, VarlenAttention, directories[:3]),  # None: the import fails
        ):
            sys.modules["flash_attn"] = module  # type: ignore[assignment]
            flash_attention.cache_clear()
            for directory in chosen:
                check_model(directory, backend, counts)
                print(directory.name, backend.__name__, "traced")
        for quantize in ("fp8", "int8", "int4"):
            check_model(even, backend, counts, quantize)
            print(quantize, "traced")


if __name__ == "__main__":
    main()
