"""What one decode step of an 8B asks of a GPU: kernel launches, copies and waits, counted on fake CUDA tensors.

A step that waits for the device twice, or launches a kernel for each row, is slow there and looks well on a CPU.
All layers launch the same, so models of 2 and 4 layers are counted; a slow test counts all 32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from docs.pages import section, table
from support.triton_process import run_triton

LAYERS = 32
SAMPLINGS = ("greedy", "sampled", "penalties")
NAMES = {
    "base": "the base model, greedy",
    "greedy": "LoRA, greedy",
    "sampled": "LoRA, temperature, top_k, top_p and min_p",
    "penalties": "LoRA, temperature, penalties and bias",
}
"""The cases in docs/gpu.md."""

MOST_LAUNCHES = 600
"""In an eager step of 32 rows with an adapter each; 129 are matrix products, and 64 are attention's."""


def count(directory: Path, *cases: str) -> dict[str, Any]:
    """The counts of cases such as `2:greedy-32` (2 layers, 32 rows)."""
    if shutil.which("g++") is None:
        pytest.skip("the device guard is compiled with g++")
    command = ["-W", "ignore", "-m", "support.launch_counts", str(directory), *cases]
    result: dict[str, Any] = json.loads(run_triton(command, interpret=False, seconds=500))
    return result


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The counts of every sampling with two layers, for few and for many rows, and of one with four layers."""
    two = ",".join(f"{sampling}-{rows}" for sampling in SAMPLINGS for rows in (8, 32))
    return count(tmp_path_factory.mktemp("counts"), f"2:{two},base-32", "4:greedy-32,base-32")


def kernels(counts: dict[str, Any], sampling: str) -> float:
    """The kernels of a step with all layers and 32 rows. Sampling is not part of a layer."""
    layers = "base" if sampling == "base" else "greedy"
    layer = (counts[f"4:{layers}-32"]["kernels"] - counts[f"2:{layers}-32"]["kernels"]) / 2
    return float(counts[f"2:{sampling}-32"]["kernels"] + (LAYERS - 2) * layer)


def test_a_decode_step_launches_no_more_than_the_docs_say(counts: dict[str, Any]) -> None:
    documented = {row[0]: row[1:] for row in table(section("docs/gpu.md", "What a step asks of the GPU"))}
    for sampling, name in NAMES.items():
        found = counts[f"2:{sampling}-32"]
        launches, uploads, downloads = map(int, documented[name])
        assert kernels(counts, sampling) <= min(launches, MOST_LAUNCHES), found["launches"]
        assert (sum(found["uploads"].values()), sum(found["downloads"].values())) == (uploads, downloads)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_decode_step_has_one_copy_down_one_up_and_one_wait(counts: dict[str, Any], sampling: str) -> None:
    found = counts[f"2:{sampling}-32"]
    assert sum(found["uploads"].values()) == 1, found["uploads"]
    assert sum(found["downloads"].values()) == 1, found["downloads"]
    # The host buffer of two steps ago has long been copied when it is written again.
    assert found["waits"] == {"event after the upload": 1, "event after the download": 1}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_more_rows_launch_nothing_more(counts: dict[str, Any], sampling: str) -> None:
    few, many = (counts[f"2:{sampling}-{rows}"] for rows in (8, 32))
    assert many["launches"] == few["launches"]


@pytest.mark.slow  # PyTorch's fake tensors take some milliseconds for each of the launches
def test_all_layers_launch_the_same(counts: dict[str, Any], tmp_path: Path) -> None:
    whole = count(tmp_path, f"{LAYERS}:greedy-32")[f"{LAYERS}:greedy-32"]
    assert whole["kernels"] == kernels(counts, "greedy")
