"""Prepared adapters: one file per rank, keyed by content, and nothing left of refused ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.prepared_adapters import prepare, target_in
from support.tiny_adapters import MODEL, Q0, RANK, adapter, write

from motet.core.errors import AdapterRefused, Unavailable
from motet.core.messages import AdapterPart
from motet.engine.adapters.prepare import Target, check_adapter, prepare_adapter

A0 = f"{Q0}.lora_A.weight"


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Two ranks, and an empty cache."""
    return target_in(tmp_path, shards=2)


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
    "content",
    [
        "[1]",
        "{",
        '{"eos_token_id": "x"}',
        '{"eos_token_id": -1}',
        '{"eos_token_id": 64}',
        json.dumps({"eos_token_id": [1] * 65}),
        "[" * 100_000,
        '{"eos_token_id": ' + "[" * 100_000 + "}",
        " " * (1 << 20) + "{}",
    ],
    ids=range(9),
)
def test_wrong_ends_of_text(tmp_path: Path, target: Target, content: str) -> None:
    """An id beyond the vocabulary too: it could never be sampled, and would be looked up in the logits."""
    directory = write(tmp_path / "a", adapter())
    (directory / "generation_config.json").write_text(content)
    with pytest.raises(AdapterRefused, match=r"generation_config\.json"):
        prepare(directory, target)


def write_base(directory: Path, dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some weights of a base model in `directory`, over two files; returns them."""
    torch.manual_seed(1)
    directory.mkdir()
    first = {
        "model.embed_tokens.weight": torch.randn(64, 24).to(dtype),
        "lm_head.weight": torch.randn(64, 24).to(dtype),
    }
    second = {"model.layers.0.self_attn.q_proj.weight": torch.randn(24, 24).to(dtype), **more}
    save_file(first, directory / "model-00001-of-00002.safetensors")
    save_file(second, directory / "model-00002-of-00002.safetensors")
    return first | second


COPIES = {
    "base_model.model.model.embed_tokens.weight": "model.embed_tokens.weight",
    "base_model.model.embed_tokens.weight": "model.embed_tokens.weight",
    "base_model.model.lm_head.weight": "lm_head.weight",
    "base_model.model.lm_head.base_layer.weight": "lm_head.weight",
    f"{Q0}.base_layer.weight": "model.layers.0.self_attn.q_proj.weight",
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize(
    ("base", "saved"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
)
def test_copies_of_the_base_are_dropped(
    tmp_path: Path, target: Target, copy: str, base: torch.dtype, saved: torch.dtype
) -> None:
    weights = write_base(target.directory, base)
    prepared = prepare(write(tmp_path / "a", adapter() | {copy: weights[COPIES[copy]].to(saved)}), target)
    plain = prepare(write(tmp_path / "b", adapter()), target)
    assert prepared.entries == plain.entries
    for file, expected in zip(prepared.files, plain.files, strict=True):
        assert Path(file).read_bytes() == Path(expected).read_bytes()


@pytest.mark.parametrize("copy", COPIES)
def test_trained_weights_of_the_base_are_refused(tmp_path: Path, target: Target, copy: str) -> None:
    """Also after the same LoRA tensors were prepared beside a copy that was not trained."""
    weight = write_base(target.directory)[COPIES[copy]]
    prepare(write(tmp_path / "a", adapter() | {copy: weight}), target)
    trained = weight.clone()
    trained[-1, -1] = torch.nextafter(trained[-1, -1], torch.tensor(torch.inf))
    more_rows = torch.cat([weight, weight[:1]])
    for changed in (trained, more_rows, torch.zeros(0, 24), weight[0].clone(), weight.int()):
        with pytest.raises(AdapterRefused, match=r"not a copy of the base's .*not supported yet") as caught:
            prepare(write(tmp_path / "a", adapter() | {copy: changed}), target)
        assert copy in caught.value.message


def test_a_tied_head_is_compared_with_the_embedding(tmp_path: Path, target: Target) -> None:
    tied = replaced(target, model=dataclasses.replace(MODEL, tied_embeddings=True))
    weights = write_base(target.directory)
    head = "base_model.model.lm_head.weight"
    prepare(write(tmp_path / "a", adapter() | {head: weights["model.embed_tokens.weight"]}), tied)
    with pytest.raises(AdapterRefused, match=r"lm_head\.weight is not a copy of the base's model\.embed_tokens"):
        prepare(write(tmp_path / "a", adapter() | {head: weights["lm_head.weight"]}), tied)


def test_biases_are_taken_if_they_are_the_bases(tmp_path: Path, target: Target) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    bias = write_base(target.directory, **{name: torch.randn(24)})[name]
    for saved in (f"{Q0}.bias", f"{Q0}.base_layer.bias"):
        assert prepare(write(tmp_path / "a", adapter() | {saved: bias}, bias="all"), target).entries
        with pytest.raises(AdapterRefused, match="trained biases"):
            prepare(write(tmp_path / "a", adapter() | {saved: bias + 1}, bias="all"), target)
    assert prepare(write(tmp_path / "a", adapter(), bias="lora_only"), target).entries


def test_an_index_says_where_the_bases_weights_are(tmp_path: Path, target: Target) -> None:
    weight = write_base(target.directory)["lm_head.weight"]
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (target.directory / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = adapter() | {"base_model.model.lm_head.weight": weight}
    assert prepare(write(tmp_path / "a", tensors), target).entries
    (target.directory / "model-00001-of-00002.safetensors").write_bytes(b"short")
    with pytest.raises(Unavailable, match="base model's weights cannot be read"):
        prepare(write(tmp_path / "a", tensors), target)


def without_model(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As PEFT names them for a base without a head (AutoModel)."""
    return {name.replace("model.model.", "model.", 1): tensor for name, tensor in tensors.items()}


def test_names_of_a_base_without_a_head(tmp_path: Path, target: Target) -> None:
    """PEFT's module names then begin with `layers`, for patterns too."""
    plain = prepare(write(tmp_path / "a", adapter(), rank_pattern={r"^model\.layers\.0\..*": RANK}), target)
    directory = write(tmp_path / "b", without_model(adapter()), rank_pattern={r"^layers\.0\..*": RANK}, r=RANK + 1)
    with pytest.raises(AdapterRefused, match=r"layers\.1.*shape"):
        prepare(directory, target)
    headless = prepare(write(tmp_path / "b", without_model(adapter())), target)
    assert headless.entries == plain.entries
    assert Path(headless.files[0]).read_bytes() == Path(plain.files[0]).read_bytes()


@pytest.mark.parametrize(
    ("stated", "names", "warned"),
    [
        ("meta-llama/Llama-3.2-1B", ("/models/Llama-3.2-1B",), False),
        ("unsloth/llama-3.2-1b-unsloth-bnb-4bit", ("meta-llama/Llama-3.2-1B",), False),
        ("unsloth/Llama-3.2-1B-bnb-4bit", ("x", "/h/models--meta-llama--Llama-3.2-1B/snapshots/0123abc"), False),
        ("HuggingFaceTB/SmolLM2-135M", ("/c/SmolLM2-135M.Q4_1-0123456789abcdef-v2",), False),
        ("meta-llama/Llama-3.2-1B-Instruct", ("/models/Llama-3.2-1B",), True),
        ("Qwen/Qwen3-0.6B", ("smollm2", "/models/SmolLM2"), True),
        ("/home/me/llama", ("qwen",), False),
        ("./out/checkpoint", ("qwen",), False),
        ("gpt2", ("qwen",), False),
        ("../x/y", ("qwen",), False),
        (None, ("qwen",), False),
        (["a/b"], ("qwen",), False),
        ("a/b", (), False),
    ],
)
def test_another_bases_name_is_a_warning(
    tmp_path: Path, target: Target, stated: object, names: tuple[str, ...], warned: bool
) -> None:
    directory = write(tmp_path / "a", adapter(), base_model_name_or_path=stated)
    warnings = prepare(directory, replaced(target, names=names)).warnings
    assert len(warnings) == int(warned)
    assert all(str(stated) in warning and "answers will be wrong" in warning for warning in warnings)


def test_a_merge_warns_of_each_part(tmp_path: Path, target: Target) -> None:
    named = replaced(target, names=("Llama",))
    parts = [AdapterPart(str(write(tmp_path / n, adapter(2), r=2, base_model_name_or_path=f"org/{n}"))) for n in "ab"]
    assert [w.partition("names ")[2][:7] for w in prepare_adapter(parts, named).warnings] == ["'org/a'", "'org/b'"]


def test_a_check_writes_nothing_and_finds_what_preparing_would(tmp_path: Path, target: Target) -> None:
    directory = write(tmp_path / "a", adapter(), base_model_name_or_path="org/other")
    assert check_adapter(directory, replaced(target, names=("llama",)))[0].startswith("its adapter_config.json names")
    assert not target.cache.exists()
    faults = [{"lora_alpha": 1e29}, {"use_dora": True}, {"target_modules": "("}]
    for fault in faults:
        with pytest.raises(AdapterRefused):
            check_adapter(write(tmp_path / "a", adapter(), **fault), target)
    (write(tmp_path / "a", adapter()) / "generation_config.json").write_text("[]")
    with pytest.raises(AdapterRefused, match="generation_config"):
        check_adapter(directory, target)
