"""`motet check`: finds nested adapters, and reports which of them fit the base model and why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from support.tiny_chat_model import write_chat_model

from motet.api.server.check_command import find_adapters, report
from motet.core.adapter_check import Verdict
from motet.core.errors import StartupError


def write_adapter(directory: Path, layer: int = 0, **fields: Any) -> Path:
    """An adapter for the tiny Llama, on one module."""
    directory.mkdir(parents=True)
    module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
    tensors = {f"{module}.lora_A.weight": torch.randn(4, 96), f"{module}.lora_B.weight": torch.randn(96, 4)}
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config | fields))
    return directory


def run_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`motet check` as a person runs it."""
    command = [sys.executable, "-m", "motet", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path) -> None:
    model = write_chat_model(tmp_path / "tiny")
    good = write_adapter(tmp_path / "a" / "run" / "checkpoint-5", base_model_name_or_path="org/other")
    dora = write_adapter(tmp_path / "a" / "dora", use_dora=True)
    deep = write_adapter(tmp_path / "a" / "deep", layer=9)
    mlx = tmp_path / "a" / "mlx"
    mlx.mkdir()
    (mlx / "adapters.safetensors").touch()
    done = run_check(str(tmp_path / "a"), "--model", str(model), "--format", "json")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["fit"], answer["refused"]) == ("tiny", 1, 3)
    found = {adapter["directory"]: adapter for adapter in answer["adapters"]}
    assert list(found) == sorted(map(str, (good, dora, deep, mlx)))
    assert found[str(good)]["fits"]
    assert "org/other" in found[str(good)]["warnings"][0]
    assert found[str(dora)]["param"] == "use_dora"
    assert "layer 9 is beyond this model's 4 layers" in found[str(deep)]["message"]
    assert "no adapter_config.json" in found[str(mlx)]["message"]
    assert not list(tmp_path.rglob("prepared")), "nothing is written"
    done = run_check(str(good), "--model", str(model))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "1 adapters for tiny: 1 fit, 0 refused"


def test_a_model_that_does_not_exist_is_a_line(tmp_path: Path) -> None:
    done = run_check(str(write_adapter(tmp_path / "a")), "--model", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("motet: --model: ")


def test_finding_adapters(tmp_path: Path) -> None:
    for name in ("b/nested/deeper", "a", ".hidden"):
        write_adapter(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "adapter_model.bin").touch()
    expected = [str(tmp_path / name) for name in ("a", "b/nested/deeper", "c")]
    assert find_adapters([str(tmp_path), str(tmp_path / "b")]) == expected
    with pytest.raises(StartupError, match="is not a directory"):
        find_adapters([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(StartupError, match="no adapter in"):
        find_adapters([str(tmp_path / "empty")])


def test_the_report_acts_on_no_terminal() -> None:
    verdicts = [Verdict("a\x1b[2J", False, "tensor \x07x: rename it"), Verdict("b", True, warnings=("another base",))]
    lines = report(verdicts, "tiny", "text").splitlines()
    assert lines == [
        "refused  a�[2J",
        "         tensor �x: rename it",
        "fits     b",
        "         warning: another base",
        "2 adapters for tiny: 1 fit, 1 refused",
    ]
    assert msgspec.json.decode(report(verdicts, "tiny", "json"))["refused"] == 1
