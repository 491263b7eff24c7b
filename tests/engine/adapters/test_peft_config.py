"""adapter_config.json: every field of PEFT's is decided on, and what is honoured is computed as PEFT computes it."""

from __future__ import annotations

import json
import re
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from transformers import LlamaConfig, LlamaForCausalLM

from motet.core.errors import AdapterRefused
from motet.engine.adapters import module_patterns
from motet.engine.adapters.peft_config import LoraConfig, ModuleConfig, parse_config, read_config
from motet.engine.adapters.unsupported_features import NEUTRAL, SUPPORTED, UNSUPPORTED

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}

# What each refused field looks like when it is in use.
IN_USE: dict[str, Any] = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1e-4},
    "layer_replication": [[0, 4], [2, 5]],
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "monteclora_config": {"num_samples": 4},
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": [7],
    "use_bdlora": {"nblocks": 2},
    "use_dora": True,
    "use_qalora": True,
    "velora_config": {"num_groups": 64},
}


def config(**changes: Any) -> LoraConfig:
    """A plain config with some fields changed."""
    return parse_config(PLAIN | changes)


def refusal(**changes: Any) -> AdapterRefused:
    """How a config is refused."""
    with pytest.raises(AdapterRefused) as caught:
        config(**changes)
    return caught.value


def test_every_field_of_the_installed_peft_is_in_one_table() -> None:
    """Fails when PEFT adds a field: decide whether it is neutral, honoured or refused."""
    tables = [*NEUTRAL, *SUPPORTED, *UNSUPPORTED]
    assert len(tables) == len(set(tables)), "a field is in two tables"
    # PEFT leaves runtime_config out of what it saves; older versions wrote it.
    assert set(tables) - {"runtime_config"} == set(peft.LoraConfig().to_dict())


def test_what_peft_saves_by_default_is_taken(tmp_path: Path) -> None:
    peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM").save_pretrained(str(tmp_path))
    parsed = read_config(tmp_path)
    assert (parsed.r, parsed.lora_alpha, parsed.use_rslora) == (8, 8.0, False)
    assert sorted(parsed.target_modules) == ["q_proj", "v_proj"]


def test_refused_fields_are_all_tried() -> None:
    assert set(IN_USE) == {name for name, reason in UNSUPPORTED.items() if reason}


@pytest.mark.parametrize("name", IN_USE)
def test_fields_in_use_are_refused_by_name(name: str) -> None:
    error = refusal(**{name: IN_USE[name]})
    assert (error.param, error.status) == (name, 422)
    assert name in error.message
    assert config(**{name: type(IN_USE[name])()}) == config(**{name: None}) == config()


@pytest.mark.parametrize("name", sorted(name for name, reason in UNSUPPORTED.items() if not reason))
def test_settings_of_how_training_began_pass(name: str) -> None:
    assert config(**{name: {"any": 1}}) == config()


@pytest.mark.parametrize("value", ["x", 1, [0], {"a": 1}, True])
def test_unknown_fields_must_be_empty(value: Any) -> None:
    assert refusal(a_field_from_the_future=value).param == "a_field_from_the_future"
    assert config(a_field_from_the_future=type(value)()) == config()


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "new", 3, [1]])
def test_initialisations_that_change_the_base(init: Any) -> None:
    assert refusal(init_lora_weights=init).param == "init_lora_weights"


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_plain_initialisations(init: Any) -> None:
    assert config(init_lora_weights=init) == config()


@pytest.mark.parametrize("bias", [None, "none", "all", "lora_only"])
def test_the_tensors_decide_on_biases(bias: str | None) -> None:
    assert config(bias=bias) == config()


def test_null_is_the_default_as_in_peft() -> None:
    optional = ["use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules"]
    assert config(**dict.fromkeys(optional)) == config()


def test_a_module_may_be_listed_twice() -> None:
    assert config(target_modules=["q_proj", "q_proj"]) == config()


@pytest.mark.parametrize("name", sorted(NEUTRAL - {"peft_type"}))
def test_neutral_fields_change_nothing(name: str) -> None:
    assert config(**{name: "anything"}) == config()


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"r": 0}, "r"),
        ({"r": "8"}, "r"),
        ({"r": True}, "r"),
        ({"r": None}, "r"),
        ({"r": 2.0}, "r"),
        ({"r": 10**4000}, "r"),
        ({"bias": "some"}, "bias"),
        ({"use_rslora": 1}, "use_rslora"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern['q_proj']"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern['q_proj']"),
        ({"alpha_pattern": {str(i): 1 for i in range(10_001)}}, "alpha_pattern"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": ["q_proj"] * 10_001}, "target_modules"),
        ({"exclude_modules": ["q_proj"] * 10_001}, "exclude_modules"),
        ({"target_modules": {"q_proj": 1}}, "target_modules"),
        ({"exclude_modules": 3}, "exclude_modules"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform"),
        ({"layers_to_transform": 1.5}, "layers_to_transform"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], param: str) -> None:
    error = refusal(**changes)
    assert error.param == param
    assert len(error.message) < 400


@pytest.mark.parametrize("changes", [{"target_modules": None}, {"target_modules": []}, {"peft_type": "IA3"}])
def test_what_is_no_lora_is_refused(changes: dict[str, Any]) -> None:
    assert next(iter(changes)) in refusal(**changes).message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no adapter_config.json"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"peft_type": "LORA", "new": ' + b"[" * 990 + b"]" * 990 + b"}", "nested too deeply|new = "),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "not JSON"),
        (b" " * (1 << 20) + b"{}", "the limit is"),
        (b'{"r": 1' + b"0" * 5000 + b"}", "not JSON"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterRefused, match=complaint):
        read_config(tmp_path)


SEGMENT = st.sampled_from(["model", "layers", "0", "1", "12", "self_attn", "mlp", "q_proj", "k_proj", "up_proj", "x"])
NAMES = st.lists(SEGMENT, min_size=1, max_size=6).map(".".join)
DECODER_NAMES = st.builds(
    lambda layer, module: f"model.layers.{layer}.{module}",
    st.integers(0, 12),
    st.sampled_from(["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"]),
)
PIECE = st.sampled_from(
    [r"\.", ".", ".*", r"\d+", "(q|k)", "_proj", "^", "$", "|", "[a-z]+", "layers", "(?:1|12)", "?"]
)
PATTERNS = st.one_of(NAMES, DECODER_NAMES, st.lists(st.one_of(SEGMENT, PIECE), min_size=1, max_size=5).map("".join))


def is_regex(pattern: str) -> bool:
    """Whether PEFT could use it at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(rf"(.*\.)?({pattern})$")
            re.compile(pattern)
        except re.error:
            return False
    return True


VALID_PATTERNS = PATTERNS.filter(is_regex)


def module_config(ours: LoraConfig, module: str) -> ModuleConfig:
    """What a config says about one module."""
    return ours.modules({module: int(module.split(".")[2])})[module]


@settings(max_examples=100, deadline=None)
@given(module=DECODER_NAMES, keys=st.lists(VALID_PATTERNS, max_size=4, unique=True))
def test_rank_and_alpha_patterns_are_looked_up_as_peft_does(module: str, keys: list[str]) -> None:
    ranks = {key: i + 1 for i, key in enumerate(keys)}
    alphas = {key: i + 100 for i, key in enumerate(keys)}
    ours = config(rank_pattern=ranks, alpha_pattern=alphas)
    key = get_pattern_key(list(keys), module)
    found = module_config(ours, module)
    assert found.rank == ranks.get(key, 8)
    assert found.scale == alphas.get(key, 16) / ranks.get(key, 8)


@settings(max_examples=120, deadline=None)
@given(
    module=DECODER_NAMES,
    targets=VALID_PATTERNS | st.lists(NAMES | DECODER_NAMES, min_size=1, max_size=4),
    exclude=st.none() | VALID_PATTERNS | st.lists(NAMES | DECODER_NAMES, max_size=3),
    layers=st.none() | st.integers(0, 12) | st.lists(st.integers(0, 12), max_size=3),
    layers_pattern=st.sampled_from([None, "layers", ["layers"], []]),
)
def test_modules_are_targeted_as_peft_does(
    module: str, targets: str | list[str], exclude: str | list[str] | None, layers: Any, layers_pattern: Any
) -> None:
    fields = {"target_modules": targets, "exclude_modules": exclude, "layers_to_transform": layers}
    raw = PLAIN | fields | {"layers_pattern": layers_pattern}
    # PEFT refuses some combinations when a config is made, not when a saved one is matched.
    theirs = peft.LoraConfig(target_modules=["q_proj"])
    for name, value in raw.items():
        setattr(theirs, name, value)
    expected = bool(check_target_module_exists(theirs, module)) and not is_excluded(theirs, module)
    assert module_config(parse_config(raw), module).targeted == expected


def is_excluded(theirs: peft.LoraConfig, module: str) -> bool:
    """PEFT answers a module that is excluded with an object of its own."""
    return type(check_target_module_exists(theirs, module)).__name__ == "_ExcludedModule"


def test_ranks_and_scales_are_those_of_a_peft_model(tmp_path: Path) -> None:
    """Against the modules that PEFT makes, not only its helpers."""
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, head_dim=4
        )
    )
    by_module = {
        "rank_pattern": {r"layers\.1\..*": 3, "v_proj": 2},
        "alpha_pattern": {r"^model\.layers\.2\..*": 5, "q_proj": 7},
    }
    for rslora in (False, True):
        theirs = peft.LoraConfig(
            r=4, lora_alpha=6, use_rslora=rslora, target_modules="all-linear", exclude_modules=["o_proj"], **by_module
        )
        model = peft.get_peft_model(base, theirs)
        model.save_pretrained(str(tmp_path))
        ours = read_config(tmp_path)
        for name, module in model.base_model.model.named_modules():
            if not name.endswith("_proj"):
                continue
            found = module_config(ours, name)
            assert found.targeted == hasattr(module, "lora_A")
            if hasattr(module, "lora_A"):
                assert found.rank == module.r["default"]
                assert found.scale == pytest.approx(module.scaling["default"], rel=1e-12)
        model.unload()


MODULES = {f"model.layers.{i}.self_attn.{m}_proj": i for i in range(80) for m in "qkvo"}
FIELDS = ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"]


def pattern_config(field: str, pattern: str) -> LoraConfig:
    """A config with a regex in `field`."""
    return config(**{field: {pattern: 4} if field.endswith("pattern") else pattern})


@pytest.mark.parametrize("field", FIELDS)
def test_a_pattern_that_takes_all_memory_is_refused(field: str) -> None:
    """It would need gigabytes; where patterns are matched, it gets 256 MiB, and this process notices nothing."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AdapterRefused, match=field) as caught:
        pattern_config(field, "(?:(?:a?){4294967}){429496}x").modules(MODULES)
    assert caught.value.param == field
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_pattern_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_patterns, "_SECONDS", 0.5)
    module_patterns._matcher.cache_clear()  # the next worker has the shorter time
    ours = pattern_config("target_modules", "(a|b|c|..|.)+(?<!.)")
    try:
        with pytest.raises(AdapterRefused, match="target_modules") as caught:
            ours.modules(MODULES)
    finally:
        module_patterns._matcher.cache_clear()
    assert caught.value.param == "target_modules"
    assert pattern_config("target_modules", ".*q_proj").modules(MODULES), "the next one finds a fresh worker"


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "x" * 5000, "(" * 4000, "a{99999999999}", "\ud800"])
def test_broken_patterns_are_named(pattern: str, field: str) -> None:
    with pytest.raises(AdapterRefused, match=field):
        pattern_config(field, pattern).modules(MODULES)


def test_many_patterns_for_a_large_model_are_no_burden() -> None:
    """A rank for each module of 80 layers, by full name, as adaptive-rank methods write them."""
    ours = config(rank_pattern={name: i + 1 for i, name in enumerate(MODULES)})
    assert [found.rank for found in ours.modules(MODULES).values()] == list(range(1, len(MODULES) + 1))


def test_a_long_list_costs_no_more_for_many_modules() -> None:
    names = [f"x{i}" for i in range(9_999)]
    ours = config(target_modules=[*names, "self_attn.v_proj"], exclude_modules=names)
    began = time.process_time()
    targeted = {name for name, found in ours.modules(MODULES).items() if found.targeted}
    assert time.process_time() - began < 1, "comparing each name with each module takes many seconds"
    assert targeted == {name for name in MODULES if name.endswith("v_proj")}


def test_config_round_trips_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN))
    assert read_config(tmp_path) == config()
