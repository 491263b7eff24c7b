"""docker/one-gpu.sh: each replica locks a GPU of its own, and frees it when it ends. `nvidia-smi` is a script here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "one-gpu.sh"
REPLICA = ["bash", "-c", 'echo "$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER $MOTET_DATA_DIR"; exec cat']


class Host:
    """A machine with two GPUs, and the volume that its containers share."""

    def __init__(self, directory: Path) -> None:
        tools = directory / "tools"
        tools.mkdir()
        smi = tools / "nvidia-smi"
        smi.write_text('#!/bin/sh\ntest "$*" = "--query-gpu=index --format=csv,noheader" && printf "0\\n1\\n"\n')
        smi.chmod(0o755)
        locks = directory / "gpus"
        locks.mkdir()
        self._env = {"PATH": f"{tools}:{os.environ['PATH']}", "GPU_LOCKS": str(locks), "MOTET_DATA_DIR": "/data"}

    def start(self) -> subprocess.Popen[str]:
        """A replica that prints its variables and runs until its stdin closes."""
        pipe = subprocess.PIPE
        return subprocess.Popen([SCRIPT, *REPLICA], env=self._env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    """The first line that the process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.timeout(30)
def test_each_replica_has_a_gpu_until_it_ends(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with host.start() as first, host.start() as second:
        lines = sorted([first_line(first), first_line(second)])
        assert lines == ["0 PCI_BUS_ID /data/gpu-0", "1 PCI_BUS_ID /data/gpu-1"]
        with host.start() as third:
            _, message = third.communicate()
        assert third.returncode == 2
        assert message.splitlines() == ["motet: each GPU is used by another replica; start fewer (REPLICAS)"]
        second.kill()
        second.wait()
        with host.start() as third:
            assert first_line(third) in lines
            third.communicate()
        first.communicate()
