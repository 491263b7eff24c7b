"""Which device a rank gets, and the one line about a GPU that cannot be used; PyTorch's view of the GPUs is made up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loguru import logger

from motet.core.errors import StartupError
from motet.core.settings import Settings
from motet.engine import device
from motet.engine.device import resolve_device
from motet.engine.engine_config import EngineConfig

OLD_DRIVER = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 12040). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx "
    "Alternatively, go to: https://pytorch.org to install a PyTorch version that has been compiled with your version "
    "of the CUDA driver. (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:119.)"
)
CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Makes this a machine with GPUs of these compute capabilities, and with this warning about its driver."""

    def make(*capabilities: tuple[int, int], warning: str = "", cuda: str | None = "13.0") -> None:
        def is_available() -> bool:
            if warning:
                warnings.warn(warning, UserWarning, stacklevel=1)
            return bool(capabilities) and not warning

        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda rank: capabilities[rank])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda rank: "Tesla T4")
        device._cuda_state.cache_clear()

    yield make
    device._cuda_state.cache_clear()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The log lines of the test."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(sink)


def config(kind: str) -> EngineConfig:
    """The engine's config with --device `kind`."""
    return EngineConfig.from_settings(Settings(device=kind), Path("tiny"))


@pytest.mark.parametrize("kind", ["auto", "cuda"])
def test_each_rank_has_a_gpu_of_its_own(machine: Machine, kind: str) -> None:
    machine((9, 0), (9, 0))
    assert [resolve_device(config(kind), rank) for rank in (0, 1)] == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("capabilities", "warning", "cuda", "message"),
    [
        ([], "", None, r"built without CUDA"),
        ([], "", "13.0", r"finds no GPU .*; install the NVIDIA driver"),
        ([], OLD_DRIVER, "13.0", r"too old \(found version 12040\).*; update the NVIDIA driver .*580 or newer"),
        ([(9, 0)], OLD_DRIVER, "13.0", r"update the NVIDIA driver .*580 or newer"),  # NVML counts GPUs all the same
        ([(7, 5)], "", "13.0", r"GPU 0 \(Tesla T4\) has compute capability 7\.5, and 8\.0 is needed"),
    ],
)
def test_a_required_gpu_that_cannot_be_used_ends_the_server_with_the_remedy(
    machine: Machine, capabilities: list[tuple[int, int]], warning: str, cuda: str | None, message: str
) -> None:
    machine(*capabilities, warning=warning, cuda=cuda)
    with pytest.raises(StartupError, match=f"^--device cuda: .*{message}") as caught:
        resolve_device(config("cuda"), 0)
    assert "\n" not in caught.value.message
    assert "Triggered" not in caught.value.message


@pytest.mark.parametrize("kind", ["auto", "cuda"])
def test_more_ranks_than_gpus_are_refused_with_the_number_that_fits(machine: Machine, kind: str) -> None:
    machine((9, 0), (9, 0))
    with pytest.raises(StartupError, match=r"PyTorch finds 2; lower --shards to 2, or check CUDA_VISIBLE_DEVICES"):
        resolve_device(config(kind), 2)


@pytest.mark.parametrize(
    ("capabilities", "warning", "cuda", "logged"),
    [
        ([], "", None, ""),
        ([], "", "13.0", ""),
        ([(9, 0)], OLD_DRIVER, "13.0", "update the NVIDIA driver"),
        ([(7, 5), (9, 0)], "", "13.0", "has compute capability 7.5"),
    ],
)
def test_auto_uses_the_cpu_on_every_rank_and_says_why_a_gpu_is_not_used(
    machine: Machine,
    log: list[str],
    capabilities: list[tuple[int, int]],
    warning: str,
    cuda: str | None,
    logged: str,
) -> None:
    machine(*capabilities, warning=warning, cuda=cuda)
    assert [resolve_device(config("auto"), rank) for rank in (0, 1)] == [CPU, CPU]
    assert all("using the CPU although there is a GPU" in line and logged in line for line in log)
    assert bool(log) == bool(logged)
