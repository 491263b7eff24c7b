"""An adapter's tensors: read, matched, checked and sharded; whatever is wrong is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from support.tiny_lora import CONFIG, LINEARS, MODEL, PREFIX, Q0, RANK, Tensors, adapter, name_of
from torch import Tensor

from motet.core.errors import AdapterRefused
from motet.engine.adapters.peft_config import parse_config
from motet.engine.adapters.tensors import LoraPair, match_pairs, parse_weights, read_weights, shard_pair
from motet.engine.parallel import ShardGroup

Change = Callable[[Tensors], None]


def pairs_of(tensors: Tensors, max_rank: int = 8, **config: object) -> list[LoraPair]:
    """The adapter's pairs, through a file's bytes."""
    return match_pairs(parse_weights(save(tensors)), parse_config(CONFIG | config), MODEL, max_rank)


def test_a_whole_adapter() -> None:
    tensors = adapter()
    pairs = pairs_of(tensors)
    assert len(pairs) == 3 * len(LINEARS)
    for pair in pairs:
        entry = pair.entry
        assert (entry.rank, entry.scale) == (RANK, 2.0)
        assert torch.equal(pair.a, tensors[name_of(entry.layer, entry.module, "A")])
        assert torch.equal(pair.b, tensors[name_of(entry.layer, entry.module, "B")])
    assert [p.entry.layer for p in pairs] == sorted(p.entry.layer for p in pairs)


def test_tensors_decide_where_it_applies() -> None:
    """Layers and modules that the file leaves out have no pair, whatever the config targets."""
    tensors = {n: t for n, t in adapter().items() if ".1." in n and "q_proj" in n}
    assert [(p.entry.layer, p.entry.module) for p in pairs_of(tensors)] == [(1, "q_proj")]


def add(name: str, *shape: int) -> Change:
    """One more tensor."""
    return lambda tensors: tensors.update({name: torch.zeros(*shape)})


def remove(name: str) -> Change:
    """One tensor less."""
    return lambda tensors: tensors.__delitem__(name)


def replace(name: str, make: Callable[[Tensor], Tensor]) -> Change:
    """Another tensor under the same name."""
    return lambda tensors: tensors.update({name: make(tensors[name])})


def poison(value: float) -> Callable[[Tensor], Tensor]:
    """One element that is no number."""

    def make(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[-1, -1] = value
        return tensor

    return make


A0, B0 = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
FAULTS: dict[str, tuple[Change, str, str]] = {
    "NaN": (replace(A0, poison(float("nan"))), A0, "NaN or infinity"),
    "infinity": (replace(B0, poison(float("-inf"))), B0, "NaN or infinity"),
    "NaN in bfloat16": (replace(A0, lambda t: poison(float("nan"))(t.bfloat16())), A0, "NaN or infinity"),
    "wrong inputs": (replace(A0, lambda t: t[:, 1:].contiguous()), A0, "shape"),
    "wrong outputs": (replace(B0, lambda t: t[1:].contiguous()), B0, "shape"),
    "another rank": (replace(A0, lambda t: t[1:].contiguous()), A0, "shape"),
    "flat": (replace(A0, lambda t: t.flatten()), A0, "shape"),
    "integers": (replace(A0, lambda t: t.int()), A0, "floating point"),
    "no B": (remove(B0), A0, "no counterpart"),
    "no A": (remove(A0), B0, "no counterpart"),
    "layer beyond the model": (add(f"{PREFIX}.3.self_attn.q_proj.lora_A.weight", 4, 24), ".3.self_attn", "3 layers"),
    "head": (add("base_model.model.lm_head.lora_A.weight", 4, 24), "lm_head", "head are not supported"),
    "embedding": (add("base_model.model.model.embed_tokens.lora_embedding_A", 4, 64), "embed_tokens", "embedding"),
    "trained embedding": (add("base_model.model.model.embed_tokens.weight", 64, 24), "embed_tokens", "embedding"),
    "DoRA": (add(f"{Q0}.lora_magnitude_vector", 24), "magnitude", "DoRA"),
    "saved module": (add("base_model.model.model.norm.modules_to_save.weight", 24), "norm", "fully trained"),
    "bias": (add(f"{Q0}.lora_B.bias", 24), "lora_B.bias", "belongs to nothing"),
    "base weight": (add("model.layers.0.self_attn.q_proj.weight", 24, 24), "q_proj.weight", "belongs to nothing"),
    "unknown module": (add(f"{PREFIX}.0.mlp.gate_up_proj.lora_A.weight", 4, 24), "gate_up_proj", "belongs to nothing"),
    "module elsewhere": (add(f"{PREFIX}.0.mlp.q_proj.lora_A.weight", 4, 24), "mlp.q_proj", "belongs to nothing"),
    "layer spelled twice": (add(f"{PREFIX}.00.self_attn.q_proj.lora_A.weight", 4, 24), "00", "belongs to nothing"),
    "layer of many digits": (add(f"{PREFIX}.{'1' * 5000}.mlp.up_proj.lora_A.weight", 4, 24), "111", "belongs to"),
    "layer in other digits": (add(f"{PREFIX}.٠.self_attn.q_proj.lora_A.weight", 4, 24), "٠", "belongs to nothing"),
    "named adapter": (add(f"{Q0}.lora_A.default.weight", 4, 24), "default", "belongs to nothing"),
    "no prefix": (add("layers.0.self_attn.q_proj.lora_A.weight", 4, 24), "layers.0", "belongs to nothing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_tensor(fault: str) -> None:
    change, named, complaint = FAULTS[fault]
    tensors = adapter()
    change(tensors)
    with pytest.raises(AdapterRefused, match=complaint) as caught:
        pairs_of(tensors)
    assert named in caught.value.message
    assert caught.value.status == 422


def test_untargeted_tensors_are_left_over() -> None:
    with pytest.raises(AdapterRefused, match=r"does not target .*_proj"):
        pairs_of(adapter(), target_modules=["q_proj"])
    with pytest.raises(AdapterRefused, match="does not target"):
        pairs_of(adapter(), layers_to_transform=[0, 1])


def test_rank_above_the_limit() -> None:
    assert pairs_of(adapter(8), r=8, max_rank=8)
    with pytest.raises(AdapterRefused, match="--max-adapter-rank") as caught:
        pairs_of(adapter(9), r=9, max_rank=8)
    assert caught.value.param == "r"


def test_nothing_at_all() -> None:
    with pytest.raises(AdapterRefused, match="no LoRA tensors"):
        pairs_of({})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_any_floating_dtype(dtype: torch.dtype) -> None:
    pairs = pairs_of({name: t.to(dtype) for name, t in adapter().items()})
    shard = shard_pair(pairs[0], ShardGroup(), torch.float32)
    assert {t.dtype for t in shard.values()} == {torch.float32}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{f"cut at {n}": lambda data, n=n: data[:n] for n in (0, 1, 7, 8, 9, 500, -1)},
    "header cut": lambda data: data[: 8 + int.from_bytes(data[:8], "little")],
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    "header too long": lambda data: (int.from_bytes(data[:8], "little") + 1).to_bytes(8, "little") + data[8:],
    "trailing bytes": lambda data: data + b"\0",
    "unknown dtype": lambda data: data.replace(b'"F32"', b'"Q99"'),
    "dtype that does not fit": lambda data: data.replace(b'"F32"', b'"F64"'),
    "no JSON": lambda data: data.replace(b'{"', b"{{", 1),
    "a pickle": lambda data: b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(damage: str) -> None:
    with pytest.raises(AdapterRefused, match="cut short or damaged"):
        parse_weights(DAMAGES[damage](save(adapter())))


def test_pickles_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match=r"no adapter_model\.safetensors$"):
        read_weights(tmp_path, 1 << 30)
    torch.save(adapter(), tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterRefused, match="unpickling runs code") as caught:
        read_weights(tmp_path, 1 << 30)
    assert "adapter_model.bin" in caught.value.message


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shards_put_together_are_the_whole(size: int) -> None:
    """B is split where outputs are, A where inputs are; each shard is contiguous and in the engine's dtype."""
    for pair in pairs_of(adapter()):
        name = f"{pair.entry.layer}.{pair.entry.module}"
        shards = [shard_pair(pair, ShardGroup(rank, size), torch.float32) for rank in range(size)]
        assert all(set(shard) == {f"{name}.A", f"{name}.B"} for shard in shards)
        assert all(t.is_contiguous() for shard in shards for t in shard.values())
        a, b = ([shard[f"{name}.{side}"] for shard in shards] for side in "AB")
        if pair.entry.module in ("o_proj", "down_proj"):
            assert torch.equal(torch.cat(a, dim=1), pair.a)
            assert all(torch.equal(part, pair.b.T) for part in b)
        else:
            assert all(torch.equal(part, pair.a) for part in a)
            assert torch.equal(torch.cat(b, dim=1), pair.b.T)
