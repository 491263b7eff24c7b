"""Merged adapters: the exact weighted sum of their deltas, whatever their ranks, scales and targets."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.tiny_adapters import CONFIG, LINEARS, MODEL, Tensors, adapter, name_of, write
from torch import Tensor

from motet.core.errors import AdapterRefused
from motet.core.messages import MAX_PARTS, AdapterPart, PreparedAdapter
from motet.engine.adapters.prepare import Target, prepare_adapter

MAX_RANK = 24
ROWS = ("o_proj", "down_proj")


@dataclass(frozen=True)
class Part:
    """A random adapter and its weight."""

    rank: int
    weight: float
    seed: int
    modules: tuple[str, ...] = LINEARS
    layers: tuple[int, ...] = (0, 1, 2)
    config: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def tensors(self) -> Tensors:
        """Its tensors, as PEFT would save them."""
        torch.manual_seed(self.seed)
        sizes = {name: t.shape for name, t in adapter(1).items()}
        kept: Tensors = {}
        for layer in self.layers:
            for module in self.modules:
                a, b = name_of(layer, module, "A"), name_of(layer, module, "B")
                kept[a] = torch.randn(self.rank_of(module), sizes[a][1]).to(self.dtype)
                kept[b] = torch.randn(sizes[b][0], self.rank_of(module)).to(self.dtype)
        return kept

    def rank_of(self, module: str) -> int:
        """The module's rank."""
        return int(self.config.get("rank_pattern", {}).get(module, self.rank))

    def delta(self, layer: int, module: str) -> Tensor:
        """weight * scale * B A, in fp64."""
        tensors, rank = self.tensors(), self.rank_of(module)
        if module not in self.modules or layer not in self.layers:
            return torch.zeros(())
        alpha = self.config.get("alpha_pattern", {}).get(module, self.config.get("lora_alpha", CONFIG["lora_alpha"]))
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        a, b = (tensors[name_of(layer, module, side)].double() for side in "AB")
        return self.weight * scale * b @ a

    def write(self, directory: Path) -> AdapterPart:
        """Itself as a directory."""
        targets = {"target_modules": list(self.modules), "r": self.rank}
        return AdapterPart(str(write(directory, self.tensors(), **(targets | self.config))), self.weight)


CONFIGS = st.fixed_dictionaries(
    {"lora_alpha": st.sampled_from([0.25, 1, 8, 32])},
    optional={
        "use_rslora": st.booleans(),
        "rank_pattern": st.sampled_from([{"q_proj": 1}, {"down_proj": 5, "v_proj": 2}]),
        "alpha_pattern": st.sampled_from([{"q_proj": 3}, {"o_proj": 0.5}]),
        "fan_in_fan_out": st.booleans(),
    },
)
PARTS = st.builds(
    Part,
    rank=st.integers(1, 6),
    weight=st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(-4, 4)),
    seed=st.integers(0, 5),
    modules=st.sets(st.sampled_from(LINEARS), min_size=1).map(lambda names: tuple(sorted(names))),
    layers=st.sets(st.integers(0, 2), min_size=1).map(tuple),
    config=CONFIGS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)


def whole(prepared: PreparedAdapter, layer: int, module: str) -> Tensor:
    """The delta that the ranks' files come to together, in fp64; zero where the adapter does not apply."""
    entry = {(e.layer, e.module): e for e in prepared.entries}.get((layer, module))
    if entry is None:
        return torch.zeros(())
    shards = [load_file(name) for name in prepared.files]
    a, b = ([shard[f"{layer}.{module}.{side}"].double() for shard in shards] for side in "AB")
    assert all(len(t) == entry.lora_rank for t in (*a, *b))
    if module in ROWS:
        return entry.scale * b[0].T @ torch.cat(a, dim=1)
    return entry.scale * torch.cat(b, dim=1).T @ a[0]


def assert_sum(prepared: PreparedAdapter, parts: list[Part]) -> None:
    """Every module's delta is the sum; relative to how large its terms are, since they may cancel out."""
    for layer in range(3):
        for module in LINEARS:
            terms = [part.delta(layer, module) for part in parts]
            size = max(float(term.abs().max()) for term in terms)
            error = (whole(prepared, layer, module) - sum(terms)).abs().max()
            assert float(error) <= 1e-5 * size, (layer, module)


@settings(max_examples=12, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=4), shards=st.sampled_from([1, 2]))
def test_the_delta_is_the_weighted_sum_of_the_deltas(parts: list[Part], shards: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        target = Target(MODEL, "base", shards, torch.float32, MAX_RANK, Path(place) / "cache", Path(place) / "model")
        merged = prepare_adapter([part.write(Path(place) / f"{n}") for n, part in enumerate(parts)], target)
        assert_sum(merged, parts)
        for entry in merged.entries:
            present = [p for p in parts if entry.module in p.modules and entry.layer in p.layers]
            assert entry.lora_rank == sum(part.rank_of(entry.module) for part in present)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """One rank, and an empty cache."""
    return Target(MODEL, "base", 1, torch.float32, MAX_RANK, tmp_path / "cache", tmp_path / "model")


def test_the_largest_adapter_keeps_its_numbers(tmp_path: Path, target: Target) -> None:
    small, large = Part(2, 0.001, 0), Part(3, -5.0, 1)
    merged = prepare_adapter([small.write(tmp_path / "small"), large.write(tmp_path / "large")], target)
    b = load_file(merged.files[0])["0.q_proj.B"]
    assert torch.equal(b[2:], large.tensors()[name_of(0, "q_proj", "B")].T)
    assert b[:2].abs().max() < small.tensors()[name_of(0, "q_proj", "B")].abs().max()
    assert merged.entries[0].scale == pytest.approx(-5.0 * 8 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_lose_little_of_the_sum(tmp_path: Path, dtype: torch.dtype) -> None:
    parts = [Part(4, 1e-4, 0), Part(4, 3.0, 1, config={"lora_alpha": 4000}), Part(4, -2.0, 2)]
    target = Target(MODEL, "base", 1, dtype, MAX_RANK, tmp_path / "cache", tmp_path / "model")
    merged = prepare_adapter([part.write(tmp_path / f"{n}") for n, part in enumerate(parts)], target)
    expected = sum(part.delta(0, "q_proj") for part in parts)
    error = (whole(merged, 0, "q_proj") - expected).abs().max() / expected.abs().max()
    assert float(error) < (2e-3 if dtype == torch.float16 else 1.5e-2)


def test_one_adapter_twice_and_adapters_that_cancel_out(tmp_path: Path, target: Target) -> None:
    part = Part(3, 0.75, 4).write(tmp_path / "a")
    twice = prepare_adapter([part, part], target)
    assert {entry.lora_rank for entry in twice.entries} == {6}
    single = prepare_adapter([AdapterPart(part.directory, 1.5)], target)
    assert torch.allclose(whole(twice, 1, "up_proj"), whole(single, 1, "up_proj"), rtol=1e-6)
    nothing = prepare_adapter([AdapterPart(part.directory, 0.0), AdapterPart(part.directory, 0.0)], target)
    assert float(whole(nothing, 0, "q_proj").abs().max()) == 0
    assert all(math.isfinite(entry.scale) for entry in nothing.entries)


def test_fingerprints_tell_parts_weights_and_order_apart(tmp_path: Path, target: Target) -> None:
    a, b = (str(write(tmp_path / name, adapter(rank), r=rank)) for name, rank in (("a", 2), ("b", 3)))
    copy = str(write(tmp_path / "copy", adapter(2), r=2))

    def fingerprint(*parts: tuple[str, float]) -> str:
        return prepare_adapter([AdapterPart(*part) for part in parts], target).fingerprint

    plain = fingerprint((a, 1.0))
    assert fingerprint((copy, 1.0)) == plain
    assert fingerprint((a, 0.5), (b, 0.5)) == fingerprint((copy, 0.5), (b, 0.5)), "contents count, not places"
    prints = [
        plain,
        fingerprint((a, 0.5)),
        fingerprint((a, 0.5), (b, 0.5)),
        fingerprint((b, 0.5), (a, 0.5)),
        fingerprint((a, 0.5), (b, 0.25)),
        fingerprint((a, 1.0), (b, 1.0)),
        fingerprint((a, 1.0), (a, 1.0)),
    ]
    assert len(set(prints)) == len(prints)
    kept = {path: path.stat().st_mtime_ns for path in (target.cache / "prepared").rglob("*")}
    fingerprint((a, 0.5), (b, 0.5))
    assert {path: path.stat().st_mtime_ns for path in (target.cache / "prepared").rglob("*")} == kept


def test_the_first_ones_ends_of_text_count(tmp_path: Path, target: Target) -> None:
    parts = [Part(2, 0.5, n).write(tmp_path / f"{n}") for n in range(2)]
    for part, eos in zip(parts, (3, 5), strict=True):
        (Path(part.directory) / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    merged = prepare_adapter(parts, target)
    assert merged.eos_token_ids == (3,)
    assert prepare_adapter(parts[::-1], target).eos_token_ids == (5,)
    assert merged.id == ""


REFUSALS: dict[str, tuple[list[Part], str]] = {
    "ranks that come to too much": (
        [Part(10, 1.0, 0), Part(8, 0.5, 1), Part(7, 2.0, 2)],
        r"10 \+ 8 \+ 7 add up to 25.*24",
    ),
    "a weight that is no number": ([Part(2, math.nan, 0), Part(2, 1.0, 1)], "out of bounds"),
    "a weight without end": ([Part(2, math.inf, 0), Part(2, 1.0, 1)], "out of bounds"),
    "a factor that fp32 cannot hold": ([Part(2, 1e20, 0, config={"lora_alpha": 1e20})], "out of bounds"),
    "too many": ([Part(1, 0.5, 0)] * (MAX_PARTS + 1), "17 adapters"),
    "none": ([], "0 adapters"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_merged(case: str, tmp_path: Path, target: Target) -> None:
    parts, complaint = REFUSALS[case]
    with pytest.raises(AdapterRefused, match=complaint):
        prepare_adapter([part.write(tmp_path / f"{n}") for n, part in enumerate(parts)], target)
    assert not target.cache.exists() or not any(target.cache.rglob("*.safetensors"))


def test_sixteen_adapters(tmp_path: Path, target: Target) -> None:
    parts = [Part(1, (-1) ** n / (n + 1), n) for n in range(MAX_PARTS)]
    merged = prepare_adapter([part.write(tmp_path / f"{n}") for n, part in enumerate(parts)], target)
    assert_sum(merged, parts)
    lower = Target(**{**{f: getattr(target, f) for f in target.__dataclass_fields__}, "max_rank": 15})
    with pytest.raises(AdapterRefused, match="--max-adapter-rank"):
        prepare_adapter([part.write(tmp_path / f"{n}") for n, part in enumerate(parts)], lower)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(merged), type=PreparedAdapter) == merged
