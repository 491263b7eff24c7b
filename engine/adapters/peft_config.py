"""PEFT's adapter_config.json, read in three tables: neutral, honoured, refused. Unknown fields must be empty.

Numbers that come out silently wrong are the worst fault of an adapter server, so whatever would change them is
either computed as PEFT computes it, or refused by name. Knows no tensors.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from motet.core.errors import AdapterRefused

MAX_CONFIG_BYTES = 1 << 20
MAX_PATTERN = 4096
MAX_NUMBER = 1e30
PATTERN_SECONDS = 5.0
"""What all of a config's patterns together may take: a large model's adapter has hundreds, for hundreds of modules."""

_RECURSION = regex.compile(r"\(\?(R|&|P>|[+-]?[0-9])")
"""Calls of groups, which Python's own regexes, and so PEFT's, do not have; they eat memory faster than time."""

NEUTRAL = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "inference_mode",
        "layers_pattern",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    ]
)
"""Without effect on what a trained adapter computes (or read elsewhere here: peft_type, layers_pattern)."""

HONOURED = frozenset(
    [
        "alpha_pattern",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_to_transform",
        "lora_alpha",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    ]
)

REFUSED = {
    "alora_invocation_tokens": "aLoRA is not supported",
    "arrow_config": "Arrow routing is not supported",
    "bias": "adapters with trained biases are not supported; train with bias='none'",
    "corda_config": "",
    "eva_config": "",
    "kasa_config": "KaSA is not supported",
    "layer_replication": "layer replication changes the base model",
    "loftq_config": "",
    "lora_bias": "biases in lora_B are not supported",
    "lora_ga_config": "",
    "modules_to_save": "fully trained modules are not supported; train them with LoRA instead",
    "monteclora_config": "MonteCLoRA is not supported",
    "target_parameters": "LoRA on bare parameters is not supported",
    "trainable_token_indices": "trained token embeddings are not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "use_dora": "DoRA is not supported",
    "use_qalora": "QA-LoRA is not supported",
    "velora_config": "VeLoRA is not supported",
}
"""Refused unless empty. An empty reason: the field only describes how training began, so it is let pass."""

PLAIN_INITS = (True, False, "true", "false", "gaussian", "eva", "orthogonal")
"""Other initialisations change the base weights, so that the adapter fits none but its own altered base."""


class Patterns:
    """Matches a config's foreign regexes against modules: each is compiled once, all together are limited in time."""

    def __init__(self) -> None:
        self._compiled: dict[str, regex.Pattern[str]] = {}
        self._left = PATTERN_SECONDS

    def match(self, what: str, pattern: str, module: str) -> bool:
        """Whether `pattern`, of the field `what`, matches the whole of `module`. Raises AdapterRefused naming it."""
        if len(pattern) > MAX_PATTERN:
            raise AdapterRefused(f"adapter_config.json: a pattern in {what} is longer than {MAX_PATTERN}", param=what)
        if _RECURSION.search(pattern):
            raise AdapterRefused(f"adapter_config.json: a pattern in {what} calls itself", param=what)
        began = time.monotonic()
        try:
            if self._left <= 0:
                raise TimeoutError("matching takes too long")
            if pattern not in self._compiled:
                self._compiled[pattern] = regex.compile(pattern, cache_pattern=False)
            return self._compiled[pattern].fullmatch(module, timeout=self._left) is not None
        except (regex.error, TimeoutError, RecursionError, MemoryError) as error:
            raise AdapterRefused(f"adapter_config.json: {what} has a bad pattern: {error}", param=what) from error
        finally:
            self._left -= time.monotonic() - began


@dataclass(frozen=True)
class LoraConfig:
    """The honoured fields, checked."""

    r: int
    lora_alpha: float
    use_rslora: bool
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    patterns: Patterns = field(default_factory=Patterns, repr=False, compare=False)

    def rank(self, module: str) -> int:
        """The rank of a module such as `model.layers.0.self_attn.q_proj`."""
        return int(self._by_pattern("rank_pattern", self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) (Kalajdzievski, "rsLoRA", 2023), with the module's own alpha and r."""
        rank = self.rank(module)
        alpha = self._by_pattern("alpha_pattern", self.alpha_pattern, module, self.lora_alpha)
        return float(alpha / (math.sqrt(rank) if self.use_rslora else rank))

    def targets(self, module: str, layer: int) -> bool:
        """Whether PEFT would put LoRA on this module of this decoder layer."""
        excluded, targeted = self.exclude_modules, self.target_modules
        if isinstance(excluded, str):
            if self.patterns.match("exclude_modules", excluded, module):
                return False
        elif excluded is not None and _listed(excluded, module):
            return False
        if isinstance(targeted, str) and targeted != "all-linear":
            return self.patterns.match("target_modules", targeted, module)
        # PEFT asks for the layers only where modules are listed, and not by their full names.
        if not isinstance(targeted, str) and module in targeted:
            return True
        layers = self.layers_to_transform
        named = isinstance(targeted, str) or _listed(targeted, module)
        return named and (layers is None or layer in layers)

    def _by_pattern(self, what: str, table: dict[str, Any], module: str, default: Any) -> Any:
        """The first entry whose key, as a regex, matches the end of `module` at a dot; as PEFT looks it up."""
        for key, value in table.items():
            if self.patterns.match(what, rf"(.*\.)?({key})", module):
                return value
        return default


def read_config(directory: Path) -> LoraConfig:
    """The config in `directory`. Raises AdapterRefused naming the field that is missing, wrong or unsupported."""
    path = directory / "adapter_config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise AdapterRefused(f"adapter_config.json is larger than {MAX_CONFIG_BYTES} bytes")
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterRefused("the adapter has no readable adapter_config.json") from error
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"adapter_config.json is not JSON: {error}", code="adapter_unreadable") from error
    if not isinstance(raw, dict):
        raise AdapterRefused("adapter_config.json is not a JSON object")
    return parse_config(raw)


def parse_config(raw: dict[str, Any]) -> LoraConfig:
    """`raw`, checked against the three tables. Raises AdapterRefused naming the field."""
    if raw.get("peft_type") != "LORA":
        raise AdapterRefused(f"peft_type is {raw.get('peft_type')!r}; only LORA is supported")
    _check_refused(raw)
    targets = raw.get("target_modules")
    if not targets:
        raise AdapterRefused("target_modules is empty; the adapter applies to nothing")
    exclude = raw.get("exclude_modules")
    rslora = raw.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise AdapterRefused(f"use_rslora is {rslora!r}; it must be true or false")
    return LoraConfig(
        r=_rank("r", raw.get("r")),
        lora_alpha=_number("lora_alpha", raw.get("lora_alpha")),
        use_rslora=rslora,
        target_modules=_names("target_modules", targets),
        exclude_modules=_names("exclude_modules", exclude) if exclude else None,
        layers_to_transform=_layers(raw.get("layers_to_transform")),
        rank_pattern={k: _rank(f"rank_pattern[{k!r}]", v) for k, v in _table(raw, "rank_pattern").items()},
        alpha_pattern={k: _number(f"alpha_pattern[{k!r}]", v) for k, v in _table(raw, "alpha_pattern").items()},
    )


def _check_refused(raw: dict[str, Any]) -> None:
    for name, value in raw.items():
        if name in NEUTRAL or name in HONOURED or not value or (name == "bias" and value == "none"):
            continue
        reason = REFUSED.get(name, "the field is not known here, and may change what the adapter computes")
        if reason:
            raise AdapterRefused(f"adapter_config.json: {name} = {value!r}"[:300] + f": {reason}", param=name)
    init = raw.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        raise AdapterRefused(
            f"adapter_config.json: init_lora_weights = {init!r} alters the base weights; convert the adapter to a "
            "plain LoRA (PEFT: save_pretrained(path_initial_model_for_weight_conversion=…))",
            param="init_lora_weights",
        )


def _listed(names: tuple[str, ...], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _rank(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterRefused(f"adapter_config.json: {name} is {value!r}; it must be a whole number above 0", param=name)
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= MAX_NUMBER:
        raise AdapterRefused(f"adapter_config.json: {name} is {value!r}; it must be a number"[:300], param=name)
    return float(value)


def _names(name: str, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise AdapterRefused(f"adapter_config.json: {name} must be a string or a list of strings", param=name)


def _layers(value: Any) -> tuple[int, ...] | None:
    if value is None or value == []:
        return None
    layers = value if isinstance(value, list) else [value]
    if all(isinstance(v, int) and not isinstance(v, bool) for v in layers):
        return tuple(layers)
    raise AdapterRefused(
        "adapter_config.json: layers_to_transform must be a number or a list of them", param="layers_to_transform"
    )


def _table(raw: dict[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name) or {}
    if not isinstance(value, dict) or len(value) > 10_000:
        raise AdapterRefused(f"adapter_config.json: {name} must be an object of patterns", param=name)
    return value
