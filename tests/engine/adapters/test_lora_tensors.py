"""An adapter's tensors: read, matched, checked and sharded; whatever is wrong is refused by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace as replaced
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from support.tiny_adapters import CONFIG, LINEARS, MODEL, PREFIX, Q0, RANK, Tensors, adapter, name_of
from torch import Tensor

from motet.core.errors import AdapterRefused
from motet.core.messages import LoraEntry
from motet.engine.adapters.lora_tensors import LoraPair, check_magnitudes, open_weights, read_pairs, shard_pair
from motet.engine.adapters.peft_config import parse_config
from motet.engine.adapters.safetensors_file import SafetensorsFile
from motet.engine.adapters.tensor_names import read_layout
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.models.linear_specs import linear_specs

Change = Callable[[Tensors], None]


def pairs_of(tensors: Tensors, max_rank: int = 8, **config: object) -> list[LoraPair]:
    """The adapter's pairs, through a file's bytes."""
    weights = SafetensorsFile(BytesIO(save(tensors)))
    return read_pairs(weights, read_layout(weights.tensors, MODEL), parse_config(CONFIG | config), MODEL, max_rank)


def test_a_whole_adapter() -> None:
    tensors = adapter()
    pairs = pairs_of(tensors)
    assert len(pairs) == 3 * len(LINEARS)
    for pair in pairs:
        entry = pair.entry
        assert (entry.lora_rank, entry.scale) == (RANK, 2.0)
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
    "empty": (replace(A0, lambda t: t[:0]), A0, "ZeRO-3"),
    "layer beyond the model": (add(f"{PREFIX}.3.self_attn.q_proj.lora_A.weight", 4, 24), ".3.self_attn", "3 layers"),
    "head": (add("base_model.model.lm_head.lora_A.weight", 4, 24), "lm_head", "head .*not supported"),
    "head under another name": (add("base_model.model.unembed_tokens.lora_A.weight", 4, 24), "unembed", "head"),
    "embedding": (add("base_model.model.model.embed_tokens.lora_embedding_A", 4, 64), "embed_tokens", "embedding"),
    "saved head": (add("base_model.model.lm_head.modules_to_save.weight", 64, 24), "lm_head", "trained embeddings"),
    "classifier": (add("base_model.model.score.weight", 2, 24), "score", "classifier"),
    "DoRA": (add(f"{Q0}.lora_magnitude_vector", 24), "magnitude", "DoRA"),
    "saved module": (add("base_model.model.model.norm.modules_to_save.weight", 24), "norm", "fully trained"),
    "bias of LoRA": (add(f"{Q0}.lora_B.bias", 24), "lora_B.bias", "lora_bias=False"),
    "trained bias": (add("base_model.model.model.norm.bias", 24), "norm.bias", "bias='none'"),
    "base weight": (add("model.layers.0.self_attn.q_proj.weight", 24, 24), "q_proj.weight", "whole model"),
    "whole model's embedding": (add("model.embed_tokens.weight", 64, 24), "embed_tokens", "trained embeddings"),
    "fused projection": (add(f"{PREFIX}.0.mlp.gate_up_proj.lora_A.weight", 4, 24), "gate_up_proj", "gate_proj and up"),
    "fused attention": (add(f"{PREFIX}.0.self_attn.qkv_proj.lora_A.weight", 4, 24), "qkv_proj", "q_proj, k_proj and"),
    "module elsewhere": (add(f"{PREFIX}.0.mlp.q_proj.lora_A.weight", 4, 24), "mlp.q_proj", "another base"),
    "experts": (add(f"{PREFIX}.0.mlp.experts.1.up_proj.lora_A.weight", 4, 24), "experts", "mixture of experts"),
    "layer spelled twice": (add(f"{PREFIX}.00.self_attn.q_proj.lora_A.weight", 4, 24), "00", "another base"),
    "layer of many digits": (add(f"{PREFIX}.{'1' * 5000}.mlp.up_proj.lora_A.weight", 4, 24), "111", "another base"),
    "layer in other digits": (add(f"{PREFIX}.٠.self_attn.q_proj.lora_A.weight", 4, 24), "٠", "another base"),
    "module twice": (add("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", 4, 24), "layers.0", "the same"),
    "mistral-finetune": (add("layers.0.attention.wq.lora_A.weight", 4, 24), "wq", "mistral-finetune"),
    "MLX": (add("model.layers.0.self_attn.q_proj.lora_a", 24, 4), "lora_a", "MLX"),
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
    "a gap": lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[1,'),
    "negative size": lambda data: data.replace(b'"shape":[4,', b'"shape":[-4,'),
    "nested": lambda data: (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "a pickle": lambda data: b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(damage: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(DAMAGES[damage](save(adapter())))
    with pytest.raises(AdapterRefused, match="cut short or damaged"), open_weights(tmp_path):
        pass


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(save(adapter()))

    def read() -> None:
        with open_weights(tmp_path) as weights:
            os.truncate(path, path.stat().st_size - 1)
            read_pairs(weights, read_layout(weights.tensors, MODEL), parse_config(CONFIG), MODEL, RANK)

    with pytest.raises(AdapterRefused, match="shorter while it was read"):
        read()


def test_a_fifo_in_place_of_the_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterRefused, match="not a regular file"), open_weights(tmp_path):
        pass


FILES: dict[str, tuple[str, bytes, str]] = {
    "pickled": ("adapter_model.bin", b"\x80", "adapter_model.bin is not supported, since unpickling runs code"),
    "shards": ("adapter_model-00001-of-00002.safetensors", b"", "split over 2 files"),
    "MLX": ("adapters.safetensors", b"", "MLX's .*transpose"),
    "GGUF": ("lora.gguf", b"", "GGUF adapters are not supported"),
    "checkpoints": ("checkpoint-500", b"", "checkpoint-500; use that directory"),
    "a git-lfs pointer": ("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "nothing": ("README.md", b"", r"no adapter_model\.safetensors$"),
}


@pytest.mark.parametrize("case", FILES)
def test_other_files_than_one_safetensors(case: str, tmp_path: Path) -> None:
    name, content, complaint = FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterRefused, match=complaint), open_weights(tmp_path):
        pass


def test_names_are_judged_before_sizes() -> None:
    """A head makes the file larger than LoRA may be, and its name is what the person has to know."""
    tensors = adapter() | {"base_model.model.lm_head.lora_A.weight": torch.zeros(1 << 20)}
    with pytest.raises(AdapterRefused, match="lm_head"):
        pairs_of(tensors, max_rank=4)
    with pytest.raises(AdapterRefused, match="--max-adapter-rank"):
        pairs_of(adapter(64), r=64, max_rank=8)


def test_the_tensor_named_does_not_depend_on_their_order() -> None:
    wrong = {f"{PREFIX}.{i}.mlp.x_proj.lora_A.weight": torch.zeros(1) for i in (2, 0, 1)}
    for names in (wrong, dict(reversed(wrong.items()))):
        with pytest.raises(AdapterRefused, match=r"layers\.0\."):
            read_layout(names, MODEL)


HUGE = {name: torch.full_like(t, 1e30) for name, t in adapter().items()}


@pytest.mark.parametrize(
    ("tensors", "config", "dtype", "complaint"),
    [
        (HUGE, {"lora_alpha": 1e30}, torch.float32, "layer 0, down_proj: lora_A .*overflow in float32"),
        (
            {n: t * 1e12 for n, t in adapter().items()},
            {},
            torch.float32,
            "layer 0, down_proj: lora_B lora_A .*overflow",
        ),
        (
            {n: t * 1e6 for n, t in adapter().items()},
            {},
            torch.float16,
            "layer 0, down_proj: lora_A .*overflow in float16",
        ),
        ({n: t * 300 for n, t in adapter().items()}, {}, torch.float16, "lora_B lora_A .*overflow in float16"),
        (adapter(), {"lora_alpha": 1e30}, torch.bfloat16, "overflow in bfloat16"),
    ],
)
def test_adapters_that_overflow(
    tensors: Tensors, config: dict[str, object], dtype: torch.dtype, complaint: str
) -> None:
    with pytest.raises(AdapterRefused, match=complaint):
        check_magnitudes(pairs_of(tensors, **config), dtype)


def test_a_large_bound_alone_is_no_overflow() -> None:
    """Where A is large, B is zero: the bound on the delta is beyond float16, and the delta is small."""
    tensors = adapter()
    for name in tensors:
        tensors[name] = torch.zeros_like(tensors[name])
        row = (0, 0) if "lora_A" in name else (0, 1)
        tensors[name][row] = 60_000.0
    check_magnitudes(pairs_of(tensors), torch.float16)
    check_magnitudes(pairs_of(adapter()), torch.float16)


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


def test_ranks_that_share_a_key_value_head_have_the_same_shard() -> None:
    """Two key-value heads on four ranks: each rank's B has the columns of one whole head."""
    spec = linear_specs(replaced(MODEL, num_kv_heads=2))["qkv"]
    a, b = torch.randn(RANK, 24), torch.randn(8, RANK)
    for module in ("k_proj", "v_proj"):
        pair = LoraPair(LoraEntry(0, module, RANK, 1.0), spec, a, b)
        for rank in range(4):
            shard = shard_pair(pair, ShardGroup(rank, 4), torch.float32)
            assert torch.equal(shard[f"0.{module}.A"], a)
            assert torch.equal(shard[f"0.{module}.B"], b.T[:, :4] if rank < 2 else b.T[:, 4:])
