"""The process of one rank: `python -m motet.engine.worker SPEC`. Rank 0 schedules; the others execute its plans."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from loguru import logger

from motet.core.child_processes import follow_parent, run_child
from motet.core.heartbeat import SERVING, Heartbeat
from motet.core.logs import configure_logging
from motet.core.model_source import ModelInfo
from motet.engine.engine_config import EngineConfig

if TYPE_CHECKING:
    from motet.engine.distributed.transport import EngineSockets
    from motet.engine.model_runner import ModelRunner


PROGRESS_GRAPHS = 8
"""After this many recorded graphs, the progress is reported."""


class WorkerSpec(msgspec.Struct, frozen=True):
    """How to run one rank of an engine. The ranks find each other through `store` (engine/distributed/rendezvous.py).

    `local_rank` is the rank's number on its host. On several hosts, rank 0 also listens on `hosts_address`, and the
    ranks of other hosts keep adapter files from `files_address` in `cache`, up to `cache_size` bytes.
    """

    tp_rank: int
    tp_size: int
    engine_id: str
    name: str
    engine: EngineConfig
    engine_address: str
    ranks_address: str
    store: str
    kernel_cache: str
    local_rank: int = 0
    hosts_address: str = ""
    files_address: str = ""
    cache: str = ""
    cache_size: int | None = None


def _prepare_environment(spec: WorkerSpec) -> None:
    """Set the variables that torch and Numba read when they are imported."""
    threads = str(spec.engine.threads)
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = threads
    os.environ.setdefault("NUMBA_CACHE_DIR", spec.kernel_cache)
    os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp workqueue tbb")
    # Idle threads sleep soon. If they spun, they would take the cores from other processes, for which we then wait.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Numba loads the system's OpenMP by its file name. Loaded first, it serves torch too, so that there is one thread
    # pool instead of two that compete for the cores. Without it, Numba uses a pool of its own.
    with contextlib.suppress(ImportError):
        importlib.import_module("numba.np.ufunc.omppool")


def _open_sockets(spec: WorkerSpec) -> EngineSockets:
    """Rank 0's sockets, once all other ranks have loaded the model."""
    from motet.engine.distributed.host_key import HostKey
    from motet.engine.distributed.transport import EngineSockets

    hosts = (spec.hosts_address, key) if (key := HostKey.inherited()) is not None else None
    return EngineSockets(spec.engine_address, spec.ranks_address, spec.tp_size - 1, hosts)


def run_rank_0(spec: WorkerSpec, heartbeat: Heartbeat) -> None:
    """Load the model, wait for the other ranks, and serve until SIGTERM."""
    from motet.engine.decode_graphs import cuda_recorder
    from motet.engine.distributed.process_group import leave
    from motet.engine.engine_core import EngineCore
    from motet.engine.schedule.adapter_slots import AdapterSlots
    from motet.engine.schedule.batch import SchedulerConfig
    from motet.engine.schedule.kv_block_manager import BlockManager
    from motet.engine.schedule.scheduler import Scheduler

    runner = _load(spec, heartbeat)
    capacity = runner.capacity
    scheduler = Scheduler(
        BlockManager(capacity.blocks, capacity.block_size),
        AdapterSlots(spec.engine.adapter_slots, dict.fromkeys(runner.modules, runner.pages)),
        SchedulerConfig(runner.max_batch_tokens, spec.engine.max_sequences, capacity.max_context),
        spec.engine_id,
    )
    model = _model_info(spec, runner)
    if spec.tp_size > 1:
        heartbeat.enter("waiting for the other ranks")
    sockets = _open_sockets(spec)
    overlap = model.device != "cpu" if spec.engine.overlap == "auto" else spec.engine.overlap == "on"
    core = EngineCore(runner, model, scheduler, sockets, overlap)
    if runner.graph_sizes:
        core.record_draws(cuda_recorder(runner.device))
    logger.bind(
        engine=spec.engine_id,
        model=model.name,
        device=str(runner.device),
        dtype=model.dtype,
        quantize=runner.quantization,
        shards=model.shards,
        attention=runner.attention.name,
        lora_kernels="numba" if model.device == "cpu" else "triton",
        threads=spec.engine.threads,
        max_context=model.max_context,
        cache_tokens=capacity.blocks * capacity.block_size,
        adapter_slots=spec.engine.adapter_slots,
        adapter_pages=runner.pages,
        batch_tokens=runner.max_batch_tokens,
        overlap=overlap,
    ).info("engine ready")
    core.heartbeat = heartbeat
    heartbeat.enter(SERVING)
    signal.signal(signal.SIGTERM, lambda *_: core.stop())
    core.run()
    sockets.close()
    leave()


def _model_info(spec: WorkerSpec, runner: ModelRunner) -> ModelInfo:
    """What the clients learn of the loaded model."""
    return ModelInfo(
        name=spec.name,
        architecture=runner.config.architecture,
        directory=spec.engine.directory,
        vocab_size=runner.config.vocab_size,
        max_context=runner.capacity.max_context,
        dtype=str(runner.dtype).removeprefix("torch."),
        shards=spec.tp_size,
        eos_token_ids=runner.config.eos_token_ids,
        device=runner.device.type,
        hidden_size=runner.config.hidden_size,
        max_batch_tokens=runner.max_batch_tokens,
    )


def run_other_rank(spec: WorkerSpec, heartbeat: Heartbeat) -> None:
    """Load the model, and execute the messages of rank 0 until Shutdown."""
    from motet.engine.distributed.host_key import HostKey
    from motet.engine.distributed.process_group import leave
    from motet.engine.distributed.shipped_files import ShippedFiles
    from motet.engine.distributed.transport import WorkerSocket
    from motet.engine.lora.adapter_installer import Installer
    from motet.engine.schedule.plan import ClearSlot, InstallAdapter, Shutdown, StepPlan

    runner = _load(spec, heartbeat)
    key, shipped = HostKey.inherited(), None
    if key is not None and spec.files_address:
        shipped = ShippedFiles(spec.files_address, key, Path(spec.cache), spec.cache_size)
    installer = Installer(runner.pool, spec.tp_rank, shipped)
    socket = WorkerSocket(spec.ranks_address, spec.tp_rank, key)

    def end(*_: object) -> None:
        leave()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    heartbeat.enter(SERVING)
    while True:
        message = socket.receive(2 if installer.running else 1000)
        for report in installer.finish():
            socket.report(report)
        match message:
            case StepPlan():
                runner.execute(runner.stage(message))
                runner.store_samples(sum(s.sample for s in message.sequences))
            case InstallAdapter():
                installer.start(message)
            case ClearSlot():
                runner.pool.clear(message.slot)
            case Shutdown():
                socket.close()
                leave()
                return


def _load(spec: WorkerSpec, heartbeat: Heartbeat) -> ModelRunner:
    """This rank's model runner, loaded and warmed up."""
    from motet.engine.device import resolve_device
    from motet.engine.distributed.process_group import ShardGroup, join
    from motet.engine.model_runner import ModelRunner

    _set_torch_threads(spec.engine.threads)
    device = resolve_device(spec.engine, spec.local_rank)
    heartbeat.enter("loading the model")
    runner = ModelRunner(spec.engine, join(ShardGroup(spec.tp_rank, spec.tp_size), spec.store, device), device)
    if device.type == "cpu" and not _has_kernels(Path(os.environ["NUMBA_CACHE_DIR"])):
        heartbeat.enter("compiling the CPU kernels, once; about a minute")
    else:
        heartbeat.enter("running a first step")
    runner.warm_up()
    if runner.graph_sizes:
        _record_graphs(runner, heartbeat)
    return runner


def _record_graphs(runner: ModelRunner, heartbeat: Heartbeat) -> None:
    """Record the CUDA graphs, and report the progress."""
    from motet.engine.decode_graphs import cuda_recorder

    def report(done: int, total: int) -> None:
        if done % PROGRESS_GRAPHS == 0 or done == total:
            heartbeat.enter(f"recording CUDA graphs: {done} of {total}")

    runner.record_graphs(runner.graph_sizes, cuda_recorder(runner.device), report)


def _set_torch_threads(threads: int) -> None:
    """Set the number of threads again: MKL ignores an OMP_NUM_THREADS above the number of cores."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _has_kernels(cache: Path) -> bool:
    """Whether `cache` has compiled CPU kernels that are as new as their sources."""
    sources = [Path(__file__).with_name("kernels") / name for name in ("cpu.py", "cpu_sampling.py")]
    newest = max(source.stat().st_mtime for source in sources)
    return all(
        any(file.stat().st_mtime >= newest for file in cache.glob(f"*/{source.stem}.*.nbi")) for source in sources
    )


def _run(spec: WorkerSpec, heartbeat: Heartbeat) -> None:
    heartbeat.enter("importing PyTorch")
    _prepare_environment(spec)
    (run_rank_0 if spec.tp_rank == 0 else run_other_rank)(spec, heartbeat)


def main() -> None:
    """Run the rank that argv[1] describes. The exit code is 2 if it cannot start."""
    spec = msgspec.json.decode(sys.argv[1], type=WorkerSpec)
    follow_parent()
    configure_logging(process=f"rank-{spec.tp_rank}")
    run_child("engine", lambda heartbeat: _run(spec, heartbeat))


if __name__ == "__main__":
    main()
