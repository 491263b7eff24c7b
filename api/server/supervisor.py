"""The command `motet serve`: finds the model, starts and watches the engine's and the API's processes, and stops them.

Imports neither torch nor Quart, so that it survives their failures. It holds the listening socket, so that a port in
use is reported at once and connections wait while a worker restarts.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from loguru import logger

from motet.api.http.api_keys import read_keys
from motet.api.server.api_processes import TICK_SECONDS, ApiProcesses
from motet.api.storage.data_directory import check_owners
from motet.core import error_codes
from motet.core.deployment import Deployment
from motet.core.errors import StartupError
from motet.core.machine_limits import cpu_count
from motet.core.model_source import ModelLocation
from motet.core.paths import cache_directory, check_writable, data_directory
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings
from motet.engine.distributed.hosts import HostGroup, host_group
from motet.engine.engine_config import EngineConfig
from motet.engine.models.convert_gguf import converted_directory
from motet.engine.processes.child_process import public_environment
from motet.engine.processes.engine_processes import EngineProcesses
from motet.engine.processes.host_agent import HostAgent, LocalConfig, LocalRanks
from motet.engine.processes.several_hosts import host_facts

OPEN_FILES = 65536
"""Open files per process, if the system allows it; each connection is one."""


def supervise(settings: Settings) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP. Raises StartupError if the server cannot start.

    With --node-rank above 0, only start the ranks that the first host needs here.
    """
    allow_open_files()
    hosts = host_group(settings, os.environ)
    if hosts is not None and hosts.node_rank:
        _follow_first_host(settings, hosts)
        return
    scheme = _scheme(settings)
    if settings.api_keys:
        read_keys(Path(settings.api_keys))
    check_directories(settings)
    listener = _listen(settings.host, settings.port)
    location = locate_model(settings)
    directory = model_directory(location, settings)
    stop = _stop_event()  # not earlier, so that Ctrl-C interrupts a long download
    name = settings.model_name or location.name
    engine = EngineProcesses(EngineConfig.from_settings(settings, directory), name, hosts)
    deployment = Deployment(
        settings=settings,
        model_directory=str(directory),
        model_name=name,
        model_aliases=location.aliases,
        engine_address=engine.engine_address,
        loader_address=engine.loader_address,
        state_address=engine.state_address,
        socket=listener.fileno(),
        address=f"{scheme}://{_url_host(settings.host)}:{listener.getsockname()[1]}",
        registry_address=f"ipc://{engine.run_directory}/registry",
        workers=settings.api_workers,
        run_directory=str(engine.run_directory),
    )
    api = ApiProcesses(deployment)
    try:
        api.start()
        engine.start()
        while not stop.wait(TICK_SECONDS):
            engine.tick()
            api.tick()
        if settings.drain_delay:
            logger.info("reporting not ready; accepting new requests for {:g} s more", settings.drain_delay)
        else:
            logger.info("shutting down; requests may finish for {:g} s", settings.drain_seconds)
        stop.clear()
        api.drain(settings.drain_delay + settings.drain_seconds, stop)
    finally:
        api.stop()
        engine.stop()
        listener.close()


def _follow_first_host(settings: Settings, hosts: HostGroup) -> None:
    """Run this host's ranks of the first host's engine until Ctrl-C, SIGTERM or SIGHUP. Raises StartupError."""
    _check_directory("the cache", "MOTET_CACHE", cache_directory)
    directory = model_directory(locate_model(settings), settings)
    stop = _stop_event()
    config = LocalConfig(EngineConfig.from_settings(settings, directory), settings.size("cache_size"))
    HostAgent(hosts, host_facts(hosts, directory), LocalRanks(hosts, config)).run(stop)


def _stop_event() -> threading.Event:
    """An event that Ctrl-C, SIGTERM and SIGHUP set from now on."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda *_: stop.set())
    return stop


def allow_open_files() -> None:
    """Raise the limit of open files of this process and its children, up to OPEN_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _scheme(settings: Settings) -> str:
    """https if there is a certificate, else http. Raises StartupError for an unusable certificate."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if not certificate and not key:
        return "http"
    if not certificate or not key:
        raise StartupError("--tls-certificate and --tls-key must be set together", param="tls_key")
    try:
        # With a password argument, OpenSSL does not prompt on the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise StartupError(
            f"--tls-certificate {certificate} with --tls-key {key} cannot be used: {error}; "
            "provide a PEM chain and its private key without a password",
            param="tls_certificate",
        ) from error
    return "https"


def check_directories(settings: Settings) -> None:
    """Raise StartupError unless this user can write to the cache and the data directory, including the defaults."""
    _check_directory("the cache", "MOTET_CACHE", cache_directory)
    _check_directory("the data directory", "--data-dir", lambda: data_directory(settings.data_dir))
    check_owners(data_directory(settings.data_dir))


def _check_directory(what: str, setting: str, path: Callable[[], Path]) -> None:
    directory: Path | str = "in the home directory"
    try:
        directory = path()
        check_writable(directory)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home directory
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartupError(
            f"{what} {directory} cannot be used: {reason}; set {setting} to a writable directory"
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host", param="port"
        ) from error
    listener.set_inheritable(True)
    return listener


def _url_host(host: str) -> str:
    """`host` as a client on this machine writes it in a URL."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def locate_model(settings: Settings) -> ModelLocation:
    """The base model that `settings` name, from the plugin that claims it. Raises StartupError."""
    plugins = PluginRegistry.load()
    plugins.configure(settings)
    _check_plugins(settings, plugins)
    for source in plugins.model_sources.items.values():
        if source.claims(settings.model):
            return source.locate(settings.model)
    names = sorted(name for name, source in plugins.model_sources.items.items() if source.claims(name))
    raise StartupError(
        f"--model {settings.model}: no such model; use a directory, a .gguf file, a hub id (org/name) or one of: "
        + ", ".join(names),
        param="model",
    )


def _check_plugins(settings: Settings, plugins: PluginRegistry) -> None:
    """Raise StartupError for a setting whose value no plugin has registered."""
    if settings.default_source not in plugins.adapter_sources.items:
        known = ", ".join(sorted(plugins.adapter_sources.items))
        raise StartupError(
            f"--default-source {settings.default_source}: no such adapter source; available: {known}",
            param="default_source",
        )
    if settings.tool_parser not in ("auto", *plugins.tool_parsers.items):
        known = ", ".join(("auto", *sorted(plugins.tool_parsers.items)))
        raise StartupError(
            f"--tool-parser {settings.tool_parser}: no such tool parser; available: {known}", param="tool_parser"
        )


def model_directory(location: ModelLocation, settings: Settings) -> Path:
    """The model's transformers directory; a GGUF file is converted first, in a process that imports torch."""
    if location.kind == "transformers":
        return location.path.resolve()
    target = converted_directory(location.path, cache_directory())
    if not target.is_dir():
        command = [sys.executable, "-m", "motet.engine.models.convert_gguf", str(location.path), str(cache_directory())]
        variables = public_environment() | {"OMP_NUM_THREADS": str(settings.threads or cpu_count())}
        if code := subprocess.run(command, stdout=subprocess.DEVNULL, env=variables).returncode:
            raise StartupError(
                f"converting {location.path.name} failed (exit code {code}); its message is above",
                code=error_codes.ALREADY_REPORTED if code == 2 else None,
            )
    return target
