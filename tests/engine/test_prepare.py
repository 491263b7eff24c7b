"""Prepared adapters: one file a rank, keyed by content, and nothing left of those that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from support.tiny_lora import MODEL, Q0, adapter, write

from motet.core.errors import AdapterRefused
from motet.core.messages import AdapterPart, PreparedAdapter
from motet.engine.adapters.prepare import Target, prepare_adapter

A0 = f"{Q0}.lora_A.weight"


def prepare(directory: Path, target: Target) -> PreparedAdapter:
    """One adapter, prepared."""
    return prepare_adapter([AdapterPart(str(directory))], target)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Two ranks, and an empty cache."""
    return Target(MODEL, "base", 2, torch.float32, 8, tmp_path / "cache")


def test_prepared_files_are_keyed_by_content(tmp_path: Path, target: Target) -> None:
    first = prepare(write(tmp_path / "a", adapter()), target)
    again = prepare(write(tmp_path / "b", adapter()), target)
    assert again == first
    assert len(first.files) == 2
    assert first.bytes == sum(Path(f).stat().st_size for f in first.files)
    assert set(load_file(first.files[0])) == {f"{e.layer}.{e.module}.{s}" for e in first.entries for s in "AB"}
    changed = adapter()
    changed[A0][0, 0] += 1
    other_weights = prepare(write(tmp_path / "c", changed), target)
    other_scale = prepare(write(tmp_path / "d", adapter(), lora_alpha=9), target)
    other_base = prepare(tmp_path / "a", replaced(target, base_fingerprint="other"))
    other_shards = prepare(tmp_path / "a", replaced(target, shards=3))
    prints = [p.fingerprint for p in (first, other_weights, other_scale, other_base, other_shards)]
    assert len(set(prints)) == len(prints)


def replaced(target: Target, **changes: object) -> Target:
    """`target` with some fields changed."""
    fields = {name: getattr(target, name) for name in target.__dataclass_fields__}
    return Target(**(fields | changes))


def test_a_lower_rank_limit_holds_for_prepared_adapters_too(tmp_path: Path, target: Target) -> None:
    directory = write(tmp_path / "a", adapter(8), r=8)
    prepare(directory, target)
    with pytest.raises(AdapterRefused, match="--max-adapter-rank"):
        prepare(directory, replaced(target, max_rank=7))


def test_refused_adapters_leave_nothing_behind(tmp_path: Path, target: Target) -> None:
    broken = adapter()
    broken[A0][0, 0] = float("nan")
    with pytest.raises(AdapterRefused):
        prepare(write(tmp_path / "a", broken), target)
    assert not target.cache.exists() or not any(target.cache.rglob("*.safetensors"))


@pytest.mark.parametrize(("eos", "expected"), [(None, ()), (3, (3,)), ([3, 5], (3, 5)), ([], ())])
def test_own_ends_of_text(tmp_path: Path, target: Target, eos: object, expected: tuple[int, ...]) -> None:
    directory = write(tmp_path / "a", adapter())
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    prepared = prepare(directory, target)
    assert prepared.eos_token_ids == expected
    plain = prepare(write(tmp_path / "b", adapter()), target)
    assert msgspec.structs.replace(prepared, eos_token_ids=()) == plain, "the weights' fingerprint does not see it"


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": -1}', '{"eos_token_id": 64}']
)
def test_wrong_ends_of_text(tmp_path: Path, target: Target, content: str) -> None:
    """An id beyond the vocabulary too: it could never be sampled, and would be looked up in the logits."""
    directory = write(tmp_path / "a", adapter())
    (directory / "generation_config.json").write_text(content)
    with pytest.raises(AdapterRefused, match=r"generation_config\.json"):
        prepare(directory, target)
