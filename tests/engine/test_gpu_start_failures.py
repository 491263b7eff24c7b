"""What keeps a rank on a GPU from starting: each exception of PyTorch, NCCL, flash-attn and Triton, in a real worker.

The texts are those of the libraries; the classes are the libraries' own, which builds without CUDA have too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from motet.core.child_processes import REFUSED, ChildStart, refusal
from motet.core.settings import Settings
from motet.engine.engine_config import EngineConfig
from motet.engine.worker import WorkerSpec

# Imports torch once, and then forks a worker for each case; stdin has [name, exception, arguments] of each.
WORKERS = """
import json, os, subprocess, sys
import torch, torch.distributed
from motet.engine import model_runner, worker

def run(arguments, kind, message):
    def fail(*_):
        raise {"call": lambda: subprocess.CalledProcessError(1, message)}.get(kind, lambda: eval(kind)(message))()
    model_runner.ModelRunner.__init__ = fail
    os.dup2(os.pipe()[0], 0)  # a worker ends when its stdin closes
    sys.argv = ["worker", *arguments]
    worker.main()

codes = {}
for name, kind, message, arguments in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        run(arguments, kind, message)
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, "
LAUNCH_ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)
GCC = ["/usr/bin/gcc", "/tmp/tmpx/cuda_utils.c", "-O3", "-shared", "-o", "/tmp/tmpx/cuda_utils.so", "-l:libcuda.so.1"]

# name: the exception's class, its text, and words of the one line that the server prints.
CASES: dict[str, tuple[str, str | list[str], list[str]]] = {
    "memory": (
        "torch.OutOfMemoryError",
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is "
        "free. Including non-PyTorch memory, this process has 77.89 GiB memory in use.",
        ["CUDA out of memory. Tried to allocate 20.00 GiB", "--kv-memory, --adapter-slots", "--shards"],
    ),
    "cublas": (
        "RuntimeError",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ["--kv-memory, --adapter-slots"],
    ),
    "driver": (
        "RuntimeError",
        "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by "
        "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx "
        "Alternatively, go to: https://pytorch.org to install a PyTorch version that has been compiled with your "
        "version of the CUDA driver.",
        ["found version 12040", "update the NVIDIA driver", "580 or newer"],
    ),
    "no driver": (
        "RuntimeError",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
        "http://www.nvidia.com/Download/index.aspx",
        ["install the NVIDIA driver", "NVIDIA Container Toolkit"],
    ),
    "another architecture": (
        "torch.AcceleratorError",
        "CUDA error: no kernel image is available for execution on the device" + LAUNCH_ADVICE,
        ["no kernel image is available for execution on the device; ", "make install-cuda", "8.0 or higher"],
    ),
    "an older GPU": (
        "RuntimeError",
        "FlashAttention only supports Ampere GPUs or newer.",
        ["only supports Ampere GPUs or newer; ", "8.0 or higher"],
    ),
    "flash-attn": (
        "ImportError",
        "/opt/venv/lib/python3.12/site-packages/flash_attn_2_cuda.cpython-312-x86_64-linux-gnu.so: undefined symbol: "
        "_ZN3c104cuda9SetDeviceEa",
        ["undefined symbol", "install flash-attn for this version of PyTorch with `make install-cuda`"],
    ),
    "Python.h": ("call", GCC, ["gcc", "Python's header files", "python3-dev"]),
    "compiler": (
        "RuntimeError",
        "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl.",
        ["packages gcc and python3-dev"],
    ),
    "libcuda": (
        "AssertionError",
        'libcuda.so cannot found!\nPlease make sure GPU is set up and then run "/sbin/ldconfig" (requires sudo) to '
        "refresh the linker cache.",
        ["install the NVIDIA driver"],
    ),
    "shared memory": (
        "torch.distributed.DistBackendError",
        NCCL + "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.29.7\nncclSystemError: "
        "System call (e.g. socket, malloc) or external library call failed or device error. \nLast error:\nError while "
        "creating shared memory segment /dev/shm/nccl-PHOxHE (size 9637888), error: No space left on device (28)",
        ["DistBackendError", "--shm-size 4gb"],
    ),
    "one GPU for two ranks": (
        "torch.distributed.DistBackendError",
        NCCL + "invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.29.7\nncclInvalidUsage: This "
        "usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 both "
        "on CUDA device ac000",
        ["each rank needs a GPU of its own: lower --shards"],
    ),
    "nccl": (
        "torch.distributed.DistBackendError",
        NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.29.7\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 101 'invalid device ordinal'"
        "\nException raised from create at /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94 (most recent call "
        "first):\nframe #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x98 (0x7f) in libc10.so",
        ["invalid device ordinal'; ", "NCCL_DEBUG=INFO"],
    ),
    "nccl memory": (
        "torch.distributed.DistBackendError",
        NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.29.7\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
        ["--kv-memory, --adapter-slots"],
    ),
    "fabric manager": (
        "RuntimeError",
        "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() "
        "that might have already set an error? Error 802: system not yet initialized",
        ["nvidia-fabricmanager"],
    ),
    "busy": (
        "torch.AcceleratorError",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable" + LAUNCH_ADVICE,
        ["busy or unavailable; ", "another process"],
    ),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """The exit code and the reported line of a worker for each case."""
    directories = {name: tmp_path_factory.mktemp("run") for name in CASES}
    given = [(name, kind, text, arguments(directories[name])) for name, (kind, text, _) in CASES.items()]
    command = [sys.executable, "-c", WORKERS]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    codes = json.loads(done.stdout)
    return {name: (codes[name], refusal("engine", directory).message) for name, directory in directories.items()}


def arguments(directory: Path) -> list[str]:
    """The arguments of a worker whose server's run directory is `directory`."""
    spec = WorkerSpec(
        tp_rank=0,
        tp_size=1,
        engine_id="engine",
        name="tiny",
        engine=EngineConfig.from_settings(Settings(threads=1, device="cpu"), directory),
        engine_address=f"ipc://{directory}/engine",
        ranks_address=f"ipc://{directory}/ranks",
        store=f"{directory}/store",
        kernel_cache=f"{directory}/kernels",
    )
    return [msgspec.json.encode(part).decode() for part in (spec, ChildStart(f"{directory}/heartbeat-0"))]


@pytest.mark.parametrize("name", CASES)
def test_the_server_ends_with_one_line_that_has_the_remedy(ended: dict[str, tuple[int, str]], name: str) -> None:
    code, line = ended[name]
    assert code == REFUSED
    assert line.startswith("the engine failed to start (loading the model): ")
    assert [words for words in CASES[name][2] if words not in line] == []
    assert "\n" not in line
    assert "frame #0" not in line
    assert "CUDA_LAUNCH_BLOCKING" not in line
