"""The cache of model configs: what it stores, when it is rebuilt, and that it avoids importing transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from support.tiny_models import FAMILIES, family_config

from motet.core.errors import StartupError
from motet.engine.models import config_cache
from motet.engine.models.architectures import ModelConfig, from_transformers, read_config


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(family: str, directory: Path) -> Path:
    """A model's directory, with nothing but its config."""
    config = family_config(family)
    config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
    config.save_pretrained(directory)
    return directory


def assert_same(left: ModelConfig, right: ModelConfig) -> None:
    """Bit for bit."""
    for field in fields(ModelConfig):
        one, other = getattr(left, field.name), getattr(right, field.name)
        assert type(one) is type(other), field.name
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_is_what_was_made(family: str, tmp_path: Path, cache: Path) -> None:
    directory = written(family, tmp_path / "model")
    made, kept = read_config(directory), read_config(directory)
    config = family_config(family)
    config.architectures = [made.architecture]
    assert_same(made, from_transformers(config))
    assert_same(kept, made)
    assert len(list((cache / "configs").iterdir())) == 1


def test_a_changed_config_or_a_changed_maker_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = written("llama", tmp_path / "model")
    first = read_config(directory)
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.25}))
    assert (first.norm_eps, read_config(directory).norm_eps) == (1e-6, 0.25)
    monkeypatch.setattr("motet.engine.models.architectures._windows", lambda config: (7, 7, 7, 7))
    assert read_config(directory).window == (0, 0, 0, 0)
    newer = tmp_path / "config.py"
    newer.write_text("# another version of the code")
    monkeypatch.setattr(config_cache, "_CODE", (newer,))
    assert read_config(directory).window == (7, 7, 7, 7)


def test_a_cache_that_is_broken_or_cannot_be_written_costs_time_alone(tmp_path: Path, cache: Path) -> None:
    directory = written("llama", tmp_path / "model")
    whole = read_config(directory)
    (file,) = (cache / "configs").iterdir()
    good = file.read_bytes()
    changed = good.replace(b'"float32"', b'"floaty"')  # JSON of the right shape, and not what was written
    assert changed != good
    for content in (b"", b"{", b'{"architecture": "x"}', good[:-40], good[:-40] + bytes(40), b"\xff" * 80, changed):
        file.write_bytes(content)
        assert_same(read_config(directory), whole)
        assert file.read_bytes() == good
    file.unlink()
    (cache / "configs").rmdir()
    (cache / "configs").write_text("not a directory")
    assert_same(read_config(directory), whole)


def test_refusals_are_not_kept(tmp_path: Path, cache: Path) -> None:
    directory = written("llama", tmp_path / "model")
    (directory / "config.json").write_text('{"model_type": "llama", "architectures": ["Odd"]}')
    for _ in range(2):
        with pytest.raises(StartupError, match="Odd is not supported"):
            read_config(directory)
    assert not (cache / "configs").exists()


def test_the_next_process_needs_no_transformers(tmp_path: Path) -> None:
    directory = written("llama", tmp_path / "model")
    read_config(directory)
    code = f"""
import sys
from pathlib import Path
from motet.engine.models.architectures import read_config
import motet.engine.model_runner, motet.engine.adapters.prepare
read_config(Path({str(directory)!r}))
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
