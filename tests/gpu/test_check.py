"""The GPU check itself, on the CPU: every part runs at tiny sizes, and the report has what failed."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path

import pytest
from gpu import check
from gpu.check import PARTS, Part
from gpu.measuring import Bench, require

IN_PROCESS = ("machine", "lora", "quantised", "attention", "elementwise", "sampling", "step", "install", "sanitizer")


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_part_prints_its_section(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(f"gpu.parts.{name}").run(Bench.on("cpu", tiny=True))
    printed = capsys.readouterr().out
    assert "| ---" in printed or printed.startswith("Not run")
    assert "inf" not in printed.split()


@pytest.mark.slow  # starts engines; `oracle` runs the code that `shards` repeats
def test_the_oracle_part(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("gpu.parts.oracle").run(Bench.on("cpu", tiny=True))
    assert "r64-patterns-some_layers | 300 |" in capsys.readouterr().out


def test_every_part_is_a_module() -> None:
    modules = {path.stem for path in (Path(check.__file__).parent / "parts").glob("*.py")}
    assert modules == {part.name for part in PARTS}
    assert set(IN_PROCESS) | {"oracle", "shards"} == modules


def test_all_limits_together_are_six_minutes() -> None:
    assert sum(part.seconds for part in PARTS if part.min_gpus == 1) <= 360


def test_a_part_that_fails_and_one_that_hangs_leave_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, time; print('| printed |', flush=True); "
    ends = {"good": "", "bad": "raise RuntimeError('an illegal memory access')", "slow": "time.sleep(60)"}
    popen = check.subprocess.Popen

    def start(command: list[str], **options: object) -> object:
        return popen([sys.executable, "-c", script + ends[command[3]]], **options)

    monkeypatch.setattr(check.subprocess, "Popen", start)
    output = io.StringIO()
    parts = (Part("slow", "Slow", 1), Part("bad", "Bad", 30), Part("good", "Good", 30))
    assert not check.check(parts, "cpu", output)
    report = output.getvalue()
    assert report.count("| printed |") == 3
    assert "**Slow: stopped after 1 s, its limit.**" in report
    assert "RuntimeError: an illegal memory access" in report
    assert "| Good | done |" in report


def test_the_command_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.md"
    monkeypatch.setattr(sys, "argv", ["gpu.check", str(report), "--device", "cpu", "--parts", "elementwise"])
    assert check.main() == 0, report.read_text()
    text = report.read_text()
    assert text.startswith("# GPU check\n\n## Elementwise kernels\n")
    assert "| silu × up | 7 |" in text
    assert "| Elementwise kernels | done |" in text


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.check"])
    monkeypatch.setattr(check, "gpu_count", lambda: 0)
    assert check.main() == 2
    assert "nvidia-smi lists no GPU" in capsys.readouterr().err


def test_a_wrong_result_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="the largest error is 3"):
        require(3 < 2, "the largest error is 3")
