"""The memory plan: defaults from the machine's memory, and settings that do not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from support.tiny_models import family_config

from motet.core.errors import StartupError
from motet.core.settings import Settings
from motet.engine import engine_config as spec
from motet.engine import memory
from motet.engine.device import resolve_device, resolve_dtype
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.engine_config import EngineConfig
from motet.engine.memory import CardUse, MemoryPlan, batch_tokens
from motet.engine.models.architectures import from_transformers
from motet.engine.worker import WorkerSpec

MIB = 1 << 20
TOKEN = 4 * 2 * 6 * 8 * 4
"""Bytes of a token in the tiny model's cache: 4 layers, keys and values, 6 heads of size 8, fp32."""


def plan(machine: int, monkeypatch: pytest.MonkeyPatch, shards: int = 1, **settings: object) -> MemoryPlan:
    """The plan for the tiny Llama on a machine with that much memory."""
    monkeypatch.setattr(memory, "memory_bytes", lambda: machine)
    config = family_config("llama")
    config.architectures = ["LlamaForCausalLM"]
    engine = EngineConfig.from_settings(Settings(shards=shards, **settings), Path("tiny"))  # type: ignore[arg-type]
    device = torch.device("cpu")
    return MemoryPlan(engine, from_transformers(config), ShardGroup(0, shards), torch.float32, device)


def test_defaults_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = plan(8 * MIB, monkeypatch), plan(4096 * MIB, monkeypatch)
    small.check()
    large.check()
    assert small.capacity().blocks == int(0.8 * MIB) // (TOKEN * 32)
    assert large.capacity().blocks > 64 * small.capacity().blocks
    assert small.pages < large.pages == 32 * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kv_memory": "90GiB", "max_sequences": 4096},
            r"--kv-memory: .* 3\.0 GiB for the key-value cache, and 1\.0 GiB are available",
        ),
        ({"adapter_memory": "2GiB"}, r"--adapter-memory: .* 2\.0 GiB for adapters.* 1\.0 GiB are available"),
        ({"adapter_memory": "900MiB", "kv_memory": "400MiB", "max_sequences": 4096}, "lower --adapter-memory"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    settings: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartupError, match=message):
        plan(1024 * MIB, monkeypatch, **settings).check()
    plan(64 * 1024 * MIB, monkeypatch, **settings).check()


def test_quantised_weights_are_counted_in_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding and the head stay in the compute dtype."""
    sizes = {kind: plan(1024 * MIB, monkeypatch, quantize=kind)._weights() for kind in ("auto", "none", "int8", "int4")}
    assert sizes["auto"] == sizes["none"]
    layers = 4 * (4 * 96 * 96 + 3 * 96 * 132 - 2 * 96 * 48)
    assert sizes["none"] - sizes["int8"] > 0.7 * 4 * layers
    assert sizes["int8"] - sizes["int4"] > 0.1 * layers
    with pytest.raises(StartupError, match=r"--quantize fp8: gate_proj has 96 inputs and 132 outputs"):
        plan(1024 * MIB, monkeypatch, quantize="fp8")


def test_unusable_blocks_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 sequences of 512 tokens need 12 MiB, whatever --kv-memory allows."""
    plan(1024 * MIB, monkeypatch, kv_memory="90GiB", max_sequences=16).check()


def test_ranks_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = {"adapter_memory": "600MiB"}
    plan(1024 * MIB, monkeypatch, **fits).check()
    with pytest.raises(StartupError, match=r"512\.0 MiB are available"):
        plan(1024 * MIB, monkeypatch, shards=2, **fits).check()


def test_a_model_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match="--model: each rank needs about"):
        plan(MIB, monkeypatch).check()


def test_the_least_adapter_memory_is_named_and_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match=r"--adapter-memory: 1024 bytes .*; set at least \d+ bytes") as caught:
        plan(1024 * MIB, monkeypatch, adapter_memory="1KiB").check()
    least = caught.value.message.split()[-2]
    plan(1024 * MIB, monkeypatch, adapter_memory=least).check()


def test_the_longest_context_is_named_and_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match=r"--max-context 100000: .*; set at most \d+, or 0") as caught:
        plan(1024 * MIB, monkeypatch, max_context=100_000).capacity()
    longest = int(caught.value.message.split("at most ")[1].split(",")[0])
    assert plan(1024 * MIB, monkeypatch, max_context=longest).capacity().max_context == longest


CARD = 100 * MIB
BLOCK = 256 * TOKEN // 2
"""Bytes of a block on CUDA, in 16 bits."""


def card_plan(**settings: object) -> MemoryPlan:
    """The plan for the tiny Llama on one GPU; nothing is allocated there."""
    config = family_config("llama")
    config.architectures = ["LlamaForCausalLM"]
    engine = EngineConfig.from_settings(Settings(shards=1, **settings), Path("tiny"))  # type: ignore[arg-type]
    return MemoryPlan(engine, from_transformers(config), ShardGroup(), torch.bfloat16, torch.device("cuda", 0))


def test_on_a_gpu_the_cache_gets_the_fraction_less_the_peak() -> None:
    use = CardUse(total=CARD, peak=30 * MIB, others=10 * MIB)
    assert card_plan().capacity(use).blocks == (92 - 30 - 10) * MIB // BLOCK
    assert card_plan(memory_fraction=0.5).capacity(use).blocks == (50 - 30 - 10) * MIB // BLOCK
    assert card_plan().capacity(use, reserve=20 * MIB).blocks == (92 - 30 - 10 - 20) * MIB // BLOCK
    assert card_plan(kv_memory="5MiB").capacity(use).blocks == 5 * MIB // BLOCK
    assert card_plan(max_sequences=4).capacity(use).blocks == 4 * 2, "more cannot be used"


def test_a_gpu_without_room_for_the_cache_is_refused() -> None:
    use = CardUse(total=CARD, peak=80 * MIB, others=12 * MIB)
    with pytest.raises(
        StartupError,
        match=r"--memory-fraction 0\.92: .* take 80\.0 MiB of 100\.0 MiB, and 12\.0 MiB .*; lower --adapter-slots",
    ):
        card_plan().capacity(use)
    assert card_plan(memory_fraction=0.95).capacity(use).blocks == 3 * MIB // BLOCK
    assert card_plan(kv_memory="7MiB").capacity(use).blocks == 7 * MIB // BLOCK, "a size goes before the fraction"
    with pytest.raises(StartupError, match=r"--kv-memory: 9\.0 MiB .* leave 8\.0 MiB of 100\.0 MiB; lower it"):
        card_plan(kv_memory="9MiB").capacity(use)


def test_the_use_of_a_gpu_is_measured_after_unused_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated card of 100 MiB: 30 allocated, 45 reserved until `empty_cache`, a peak of 40, 12 of others."""
    reserved = 45 * MIB

    def empty_cache() -> None:
        nonlocal reserved
        reserved = 30 * MIB

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 40 * MIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (CARD - reserved - 12 * MIB, CARD))
    use = CardUse.measure(torch.device("cuda", 0))
    assert use == CardUse(total=CARD, peak=40 * MIB, others=12 * MIB)
    assert use.rest(0.92) == 40 * MIB


@pytest.mark.parametrize(("device", "tokens"), [("cpu", 512), ("cuda", 2048)])
def test_the_default_of_the_batch_depends_on_the_device(device: str, tokens: int) -> None:
    automatic = EngineConfig.from_settings(Settings(), Path("tiny"))
    assert batch_tokens(automatic, torch.device(device)) == tokens
    chosen = EngineConfig.from_settings(Settings(max_batch_tokens=64), Path("tiny"))
    assert batch_tokens(chosen, torch.device(device)) == 64


@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch is built with CUDA")
def test_an_unsupported_device_or_dtype_is_refused_with_an_alternative() -> None:
    cuda = EngineConfig.from_settings(Settings(device="cuda"), Path("tiny"))
    with pytest.raises(StartupError, match="--device cuda: this PyTorch is built without CUDA; run"):
        resolve_device(cuda, 0)
    config = family_config("llama")
    config.architectures = ["LlamaForCausalLM"]
    half = EngineConfig.from_settings(Settings(dtype="bfloat16"), Path("tiny"))
    with pytest.raises(StartupError, match=r"--dtype bfloat16: .*; leave --dtype at auto"):
        resolve_dtype(half, from_transformers(config), torch.device("cpu"))


def test_ranks_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "cpu_count", lambda: 7)

    def threads(**settings: int) -> int:
        return EngineConfig.from_settings(Settings(**settings), Path("tiny")).threads  # type: ignore[arg-type]

    assert threads() == 7
    assert threads(shards=2) == 3
    assert threads(shards=2, threads=16) == 8
    assert threads(shards=4, threads=2) == 1


def test_threads_reach_torch_numba_and_openmp() -> None:
    rank = WorkerSpec(
        0, 1, "", "", EngineConfig.from_settings(Settings(threads=3), Path("tiny")), "", "", "", "/nowhere"
    )
    code = f"""
import msgspec, os
from motet.engine.worker import WorkerSpec, _prepare_environment, _set_torch_threads
spec = msgspec.json.decode({msgspec.json.encode(rank)!r}, type=WorkerSpec)
_prepare_environment(spec)
import numba, torch
_set_torch_threads(spec.engine.threads)
print(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, os.environ["OMP_NUM_THREADS"])
"""
    variables = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "3", "3"]
