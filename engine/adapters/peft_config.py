"""Reads PEFT's adapter_config.json: which modules have LoRA, and their ranks and scales.

unsupported_features.py lists the fields that are supported, ignored and refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from motet.core import error_codes
from motet.core.adapter_directory_errors import MLX, no_config
from motet.core.errors import AdapterRefused
from motet.core.paths import read_regular
from motet.engine.adapters.module_patterns import first_matches
from motet.engine.adapters.unsupported_features import check_config_fields

T = TypeVar("T")

MAX_CONFIG_BYTES = 1 << 20
MAX_NAMES = 10_000
"""Limit on the entries of a list of modules or a table of patterns."""

MAX_NUMBER = 1e30
MAX_RANK = 1_000_000
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class ModuleConfig:
    """One module in the config: whether LoRA applies to it, its rank, and the scale of its delta."""

    targeted: bool
    rank: int
    scale: float


@dataclass(frozen=True)
class LoraConfig:
    """The supported fields, checked."""

    r: int
    lora_alpha: float
    use_rslora: bool
    target_modules: str | frozenset[str]
    exclude_modules: str | frozenset[str] = frozenset()
    layers_to_transform: tuple[int, ...] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    base_model: object = field(default=None, compare=False)
    """The value of base_model_name_or_path, of any type."""

    digest: bytes = field(default=b"", compare=False)
    """SHA-256 of the file."""

    def modules(self, layers: Mapping[str, int]) -> dict[str, ModuleConfig]:
        """PEFT's configuration of each module in `layers`, with names such as `model.layers.0.self_attn.q_proj`.

        `layers` maps each module to its decoder layer. The scale is alpha / r, or alpha / sqrt(r) (Kalajdzievski,
        "rsLoRA", 2023), with the module's own alpha and r. Raises AdapterRefused for an invalid pattern.
        """
        names = list(layers)
        targeted, excluded = self._targeted(layers), self._named("exclude_modules", self.exclude_modules, names)
        ranks = _by_pattern("rank_pattern", self.rank_pattern, names, self.r)
        alphas = _by_pattern("alpha_pattern", self.alpha_pattern, names, self.lora_alpha)
        return {
            name: ModuleConfig(
                targeted=name in targeted and name not in excluded,
                rank=ranks[name],
                scale=alphas[name] / (math.sqrt(ranks[name]) if self.use_rslora else ranks[name]),
            )
            for name in names
        }

    def _targeted(self, layers: Mapping[str, int]) -> set[str]:
        """The modules that `target_modules` and `layers_to_transform` select."""
        selected_layers = self.layers_to_transform
        targets = self.target_modules
        if isinstance(targets, str) and targets != ALL_LINEAR:
            return self._named("target_modules", targets, list(layers))
        named = set(layers) if isinstance(targets, str) else self._named("target_modules", targets, list(layers))
        # PEFT applies layers_to_transform only to a list of modules, and not to full names in it.
        full = targets if isinstance(targets, frozenset) else frozenset()
        return {name for name in named if selected_layers is None or layers[name] in selected_layers or name in full}

    def _named(self, field: str, names: str | frozenset[str], modules: list[str]) -> set[str]:
        """The modules that match a regex, or whose last parts are in a list."""
        if isinstance(names, frozenset):
            return {module for module in modules if names and not names.isdisjoint(_endings(module))}
        return {m for m, index in zip(modules, first_matches(field, [names], modules), strict=True) if index >= 0}


def _endings(module: str) -> list[str]:
    """`a.b.c` as a.b.c, b.c and c."""
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _by_pattern(field: str, table: Mapping[str, T], modules: list[str], default: T) -> dict[str, T]:
    """For each module the value of the first key that matches its end, as a regex; as PEFT looks it up."""
    if not table:
        return dict.fromkeys(modules, default)
    values = [*table.values(), default]  # index -1, no match, is the default
    indexes = first_matches(field, list(table), modules, suffix=True)
    return {module: values[index] for module, index in zip(modules, indexes, strict=True)}


def read_config(directory: Path) -> LoraConfig:
    """Read the config in `directory`. Raises AdapterRefused with the field that is missing, wrong or unsupported."""
    path = directory / "adapter_config.json"
    try:
        content = read_regular(path, MAX_CONFIG_BYTES)
    except FileNotFoundError as error:
        raise AdapterRefused(no_config(directory)) from error
    except OSError as error:
        raise AdapterRefused(f"adapter_config.json cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise AdapterRefused(str(error)) from error
    try:
        raw = json.loads(content)
        if not isinstance(raw, dict):
            raise AdapterRefused("adapter_config.json is not a JSON object")
        return replace(parse_config(raw), digest=hashlib.sha256(content).digest())
    except RecursionError as error:  # a value that json can parse may be too deep for repr in an error
        raise AdapterRefused("adapter_config.json is nested too deeply") from error
    except ValueError as error:
        raise AdapterRefused(
            f"adapter_config.json is not JSON: {error}", code=error_codes.ADAPTER_UNREADABLE
        ) from error


def parse_config(raw: dict[str, Any]) -> LoraConfig:
    """Check the fields of `raw`. Raises AdapterRefused with the field at fault."""
    if raw.get("peft_type") is None and ("lora_parameters" in raw or "fine_tune_type" in raw):
        raise AdapterRefused(f"adapter_config.json is MLX's, not PEFT's; {MLX}", param="peft_type")
    if raw.get("peft_type") != "LORA":
        raise AdapterRefused(
            f"adapter_config.json: peft_type is {raw.get('peft_type')!r}"[:300] + "; only LORA is supported",
            param="peft_type",
        )
    check_config_fields(raw)
    targets = raw.get("target_modules")
    if not targets:
        raise AdapterRefused("target_modules is empty; the adapter applies to nothing", param="target_modules")
    exclude = raw.get("exclude_modules")
    rslora = raw.get("use_rslora")
    if not isinstance(rslora, bool | None):
        raise AdapterRefused(
            f"adapter_config.json: use_rslora is {rslora!r}"[:300] + "; it must be true or false", param="use_rslora"
        )
    return LoraConfig(
        r=_rank("r", raw.get("r")),
        lora_alpha=_number("lora_alpha", raw.get("lora_alpha")),
        use_rslora=bool(rslora),
        target_modules=_names("target_modules", targets),
        exclude_modules=_names("exclude_modules", exclude or []),
        layers_to_transform=_layers(raw.get("layers_to_transform")),
        rank_pattern={k: _rank(f"rank_pattern[{k!r}]", v) for k, v in _table(raw, "rank_pattern").items()},
        alpha_pattern={k: _number(f"alpha_pattern[{k!r}]", v) for k, v in _table(raw, "alpha_pattern").items()},
        base_model=raw.get("base_model_name_or_path"),
    )


def _rank(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        raise AdapterRefused(
            f"adapter_config.json: {name} is {value!r}"[:300] + f"; it must be a whole number from 1 to {MAX_RANK}",
            param=name,
        )
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= MAX_NUMBER:
        raise AdapterRefused(f"adapter_config.json: {name} is {value!r}"[:300] + "; it must be a number", param=name)
    return float(value)


def _names(name: str, value: Any) -> str | frozenset[str]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) > MAX_NAMES:
        raise AdapterRefused(
            f"adapter_config.json: {name} lists {len(value)} modules; the limit is {MAX_NAMES}", param=name
        )
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return frozenset(value)
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
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        raise AdapterRefused(
            f"adapter_config.json: {name} must be an object of at most {MAX_NAMES} patterns", param=name
        )
    return value
