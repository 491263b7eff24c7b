"""`motet serve`: finds the model, starts the engine and the API's processes, watches all, and ends them in order.

Imports neither torch nor Quart: it must live when they die. It holds the listening socket, so that a port in use
is known at once and connections wait through a worker's restart.
"""

from __future__ import annotations

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
from motet.core.models import ModelLocation
from motet.core.paths import cache_directory, check_writable, data_directory
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings
from motet.engine.engine_config import EngineConfig
from motet.engine.models.convert import converted_directory
from motet.engine.processes.child_process import public_environment
from motet.engine.processes.engine_processes import EngineProcesses

OPEN_FILES = 65536
"""A process may have this many, if the system lets it: each connection is one."""


def supervise(settings: Settings) -> None:
    """Serve until Ctrl-C, SIGTERM or the terminal's end. Raises StartupError for what keeps it from starting."""
    allow_open_files()
    scheme = _scheme(settings)
    if settings.api_keys:
        read_keys(Path(settings.api_keys))
    check_directories(settings)
    listener = _listen(settings.host, settings.port)
    location = locate_model(settings)
    directory = model_directory(location, settings)
    stop = threading.Event()  # only now: until here, Ctrl-C ends a long download at once
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda *_: stop.set())
    name = settings.model_name or location.name
    engine = EngineProcesses(EngineConfig.from_settings(settings, directory), settings.shards, name)
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
            logger.info("not ready from now on; new requests are answered for {:g} s more", settings.drain_delay)
        else:
            logger.info("shutting down; requests may finish for {:g} s", settings.drain_seconds)
        stop.clear()
        api.drain(settings.drain_delay + settings.drain_seconds, stop)
    finally:
        api.stop()
        engine.stop()
        listener.close()


def allow_open_files() -> None:
    """Raise this process's limit of open files, and so its children's, as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _scheme(settings: Settings) -> str:
    """http, or https where there is a certificate. Raises StartupError for one that cannot be used."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if not certificate and not key:
        return "http"
    if not certificate or not key:
        raise StartupError("--tls-certificate and --tls-key go together: give both, or neither", param="tls_key")
    try:
        # With a password at hand, OpenSSL never asks the terminal for one.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise StartupError(
            f"--tls-certificate {certificate} with --tls-key {key} cannot be used: {error}; "
            "give a PEM chain and its private key without a password",
            param="tls_certificate",
        ) from error
    return "https"


def check_directories(settings: Settings) -> None:
    """Raise StartupError unless cache and data directory, the default ones too, can be used by this user."""
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
            f"{what} {directory} cannot be used: {reason}; set {setting} to a directory to write into"
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
    """`host` as a client on this machine would write it into a URL."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def locate_model(settings: Settings) -> ModelLocation:
    """The base model that `settings` name, by whichever plugin claims it. Raises StartupError."""
    plugins = PluginRegistry.load()
    plugins.configure(settings)
    _check_plugins(settings, plugins)
    for source in plugins.model_sources.items.values():
        if source.claims(settings.model):
            return source.locate(settings.model)
    names = sorted(name for name, source in plugins.model_sources.items.items() if source.claims(name))
    raise StartupError(
        f"--model {settings.model}: no such model; give a directory, a .gguf file, a hub id (org/name) or one of: "
        + ", ".join(names),
        param="model",
    )


def _check_plugins(settings: Settings, plugins: PluginRegistry) -> None:
    """Raise StartupError for a setting that names what no plugin has registered."""
    if settings.default_source not in plugins.adapter_sources.items:
        known = ", ".join(sorted(plugins.adapter_sources.items))
        raise StartupError(
            f"--default-source {settings.default_source}: no such adapter source; there are: {known}",
            param="default_source",
        )
    if settings.tool_parser not in ("auto", *plugins.tool_parsers.items):
        known = ", ".join(("auto", *sorted(plugins.tool_parsers.items)))
        raise StartupError(
            f"--tool-parser {settings.tool_parser}: no such tool parser; there are: {known}", param="tool_parser"
        )


def model_directory(location: ModelLocation, settings: Settings) -> Path:
    """The model as a transformers directory; a GGUF file is converted first, by a process that may use torch."""
    if location.kind == "transformers":
        return location.path.resolve()
    target = converted_directory(location.path, cache_directory())
    if not target.is_dir():
        command = [sys.executable, "-m", "motet.engine.models.convert", str(location.path), str(cache_directory())]
        variables = public_environment() | {"OMP_NUM_THREADS": str(settings.threads or cpu_count())}
        if code := subprocess.run(command, stdout=subprocess.DEVNULL, env=variables).returncode:
            raise StartupError(
                f"converting {location.path.name} failed (exit code {code}); its message is above",
                code=error_codes.ALREADY_REPORTED if code == 2 else None,
            )
    return target
