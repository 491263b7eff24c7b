"""The server's settings: one dataclass that the command line, MOTET_… variables and a TOML file all fill.

A flag goes before the environment, the environment before the file, the file before the default. `Settings` is frozen
and complete; the code that uses a setting resolves a default such as `auto`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from motet.core.errors import StartupError

HOST_KEY_VARIABLE = "MOTET_HOST_KEY"
"""Has the secret of --host-key-file itself, as text."""

OTHER_VARIABLES = ("MOTET_CONFIG", "MOTET_CACHE", "MOTET_HUB_TOKEN", HOST_KEY_VARIABLE)
VARIABLE_SIMILARITY = 0.85
"""Similarity (difflib's ratio, 0 to 1) from which an unknown variable counts as a misspelt setting."""
FLAG_SIMILARITY = 0.7
"""The same for an unknown flag or key. These are errors in any case, so a wrong guess does less harm."""

_SERVICE_LINK = re.compile(
    r"MOTET_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")

_LIST = "tuple[str, ...]"
_INT_OR_AUTO = "int | Literal['auto']"
_PORT = r"[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5]"
_DOMAIN = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
# Excludes what no browser sends: a path, a capital letter, the scheme's default port, `*` within a name.
_ORIGIN = (
    r"\*|null|(?!http://.*:80\Z|https://.*:443\Z)"
    rf"[a-z][a-z0-9+.-]*://(?:\*|(?:\*\.)?{_DOMAIN}|\[[0-9a-f:.]+\])(?::(?:\*|{_PORT}))?"
)
_HOST = r"[^/\s,]+"

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_UNITS |= {f"{k}I": 1024**i for i, k in enumerate(("K", "M", "G", "T"), start=1)}


def parse_size(text: str) -> int:
    """Bytes from `512MiB`, `2GB`, `1048576`. Raises ValueError on anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 512MiB or 2GB")
    return int(float(match[1]) * _UNITS[match[2]])


def _setting(default: Any, help: str, **extra: Any) -> Any:
    """A setting; in `--help`, `group` begins a group of settings, and `metavar` stands for the value."""
    metadata = {"help": help, **extra}
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The settings of `motet serve`. The field `adapter_root` is `--adapter-root`, MOTET_ADAPTER_ROOT, and so on."""

    model: str = _setting(
        "smollm2",
        "base model: the name of a model source, a directory, a .gguf file or a hub id",
        group="Model",
        metavar="MODEL",
    )
    model_name: str = _setting(
        "", "name of the base model for clients (default: the name of the source or directory)", metavar="NAME"
    )
    model_alias: tuple[str, ...] = _setting(
        (), "another name of the base model for clients (repeatable)", metavar="NAME"
    )
    host: str = _setting("127.0.0.1", "address to listen on", group="HTTP", metavar="ADDRESS")
    port: int = _setting(8080, "port to listen on", low=0, high=65535)
    api_workers: int = _setting(1, "API processes; all use the same engine", low=1, high=64)
    api_keys: str = _setting(
        "", "file of API keys (default: everyone may use the server)", group="Access", metavar="FILE"
    )
    cors_origin: tuple[str, ...] = _setting(
        (),
        "origin whose pages may call this server from a browser, such as http://localhost:*, or * (repeatable)",
        metavar="ORIGIN",
        separator=",",
        pattern=_ORIGIN,
        expected="an origin as browsers send it (no path, no default port, no capitals), such as https://app.example, "
        "http://localhost:* (any port), https://*.example.com (any subdomain) or null; or *",
    )
    allowed_host: tuple[str, ...] = _setting(
        (),
        "host name that requests may use if there are no API keys, or * (repeatable)",
        metavar="NAME",
        pattern=_HOST,
        expected="a host name such as motet.example (no http://, no path), or *",
    )
    tls_certificate: str = _setting("", "certificate chain (PEM): serve HTTPS", metavar="FILE")
    tls_key: str = _setting("", "the certificate's private key (PEM)", metavar="FILE")
    shards: int | Literal["auto"] = _setting(
        "auto",
        "ranks that share the model by tensor parallelism (auto: the fewest GPUs that have room for it; on the CPU 1)",
        low=1,
        high=64,
        group="Engine",
    )
    threads: int = _setting(
        0,
        "CPU threads of each host's ranks together (0: the CPUs of the machine, or of its cgroup)",
        low=0,
        high=1024,
    )
    device: str = _setting("auto", "device of the engine", choices=("auto", "cpu", "cuda"))
    dtype: str = _setting(
        "auto",
        "compute dtype (auto: float32 on the CPU; on CUDA the checkpoint's 16-bit dtype, else bfloat16)",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantize: str = _setting(
        "auto",
        "stored form of the linear layers' weights (auto: on CUDA the checkpoint's, on the CPU none)",
        choices=("auto", "none", "fp8", "int8", "int4"),
    )
    max_context: int = _setting(0, "longest prompt and answer together, in tokens (0: the model's own)", low=0)
    nnodes: int = _setting(
        1, "hosts that share the model; each runs the same number of ranks", low=1, high=64, group="Several hosts"
    )
    node_rank: int = _setting(0, "number of this host; host 0 answers requests", low=0, high=63)
    master_addr: str = _setting("", "address of host 0 that the other hosts can reach", metavar="ADDRESS")
    master_port: int = _setting(29500, "first of four consecutive ports of host 0 for the hosts", low=1, high=65532)
    host_key_file: str = _setting("", "file with the secret that all hosts share", metavar="FILE")
    adapter_root: tuple[str, ...] = _setting(
        (), "directory in which local:NAME is searched (repeatable)", metavar="DIR", group="Adapters"
    )
    follow_links: str = _setting(
        "off", "whether links in adapter roots may lead out of the roots", choices=("off", "on"), bare="on"
    )
    adapter_slots: int = _setting(32, "adapters on the device at once", low=1, high=4096)
    adapter_memory: str = _setting(
        "auto", "device memory for adapters, such as 2GiB (auto: enough for --adapter-slots)", size=True
    )
    max_adapter_rank: int = _setting(256, "highest LoRA rank; adapters above it are refused", low=1, high=4096)
    default_source: str = _setting("hub", "adapter source of names without one, such as org/name", metavar="SOURCE")
    authorisation_seconds: float = _setting(
        60.0,
        "how long a source's permission to use an adapter holds before it is requested again",
        low=0,
        metavar="SECONDS",
    )
    stale_authorisation_seconds: float = _setting(
        86400.0, "how long a permission holds while the adapter's source cannot be reached", low=0, metavar="SECONDS"
    )
    tool_parser: str = _setting(
        "auto", "how the model writes tool calls (auto: by its chat template)", group="Answers", metavar="PARSER"
    )
    pooling: str = _setting(
        "auto",
        "how embeddings are pooled (auto: as the model's config says, else last)",
        choices=("auto", "last", "mean"),
    )
    max_batch_tokens: int | Literal["auto"] = _setting(
        "auto",
        "most tokens in one step (auto: 512 on the CPU, 2048 on CUDA)",
        low=16,
        high=1 << 20,
        group="Batching and cache",
    )
    max_sequences: int = _setting(256, "most sequences in one step", low=1, high=1 << 16)
    overlap: str = _setting(
        "auto",
        "whether the next step is scheduled before the last one's tokens are known (auto: on CUDA)",
        choices=("auto", "on", "off"),
    )
    enforce_eager: str = _setting(
        "off", "whether decode steps run without CUDA graphs", choices=("off", "on"), bare="on"
    )
    kv_memory: str = _setting("auto", "memory for the key-value cache, such as 4GiB", size=True)
    memory_fraction: float = _setting(
        0.92,
        "share of a GPU's memory for weights, adapters, steps and cache together",
        low=0.1,
        high=1.0,
        metavar="SHARE",
    )
    data_dir: str = _setting(
        "",
        "directory for stored responses, files and batches (default: motet in the user's data directory)",
        group="Storage and limits",
        metavar="DIR",
    )
    cache_size: str = _setting(
        "auto",
        "disk space for fetched, prepared and merged adapters (auto: 20GiB, or half of the available space if less)",
        size=True,
    )
    max_body: str = _setting("4MiB", "largest request body", size=True, low=1)
    max_file: str = _setting("200MiB", "largest file that can be uploaded", size=True)
    max_files: str = _setting("10GiB", "disk space for files, batches and stored responses together", size=True)
    batch_concurrency: int = _setting(32, "lines of batches that run at the same time", low=1, high=1024)
    drain_seconds: float = _setting(
        8.0,
        "how long running requests may continue after Ctrl-C or SIGTERM",
        low=0,
        group="Shutdown",
        metavar="SECONDS",
    )
    drain_delay: float = _setting(
        0.0,
        "how long the server accepts new requests after Ctrl-C or SIGTERM, while it reports that it is not ready",
        low=0,
        metavar="SECONDS",
    )
    log_format: str = _setting("text", "format of log lines", choices=("text", "json"), group="Logs")
    log_level: str = _setting("info", "least severe log lines to write", choices=("debug", "info", "warning", "error"))
    access_log: str = _setting("on", "one log line per request", choices=("off", "on"))

    def size(self, name: str) -> int | None:
        """A size setting in bytes; None where it is `auto`."""
        text = str(getattr(self, name))
        return None if text == "auto" else parse_size(text)


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def _convert(setting: dataclasses.Field[Any], value: Any, origin: str) -> Any:
    """Convert `value` (a string, or a TOML value) to the setting's type. Raises StartupError naming `origin`."""
    name, rules = setting.name, setting.metadata
    kind: type = {"int": int, _INT_OR_AUTO: int, "float": float}.get(str(setting.type), str)
    expected = rules.get("expected") or ("a size such as 512MiB" if rules.get("size") else f"of type {kind.__name__}")
    expected += " or auto" if setting.type == _INT_OR_AUTO else ""
    if not _is_readable(setting, value):
        raise StartupError(f"{origin}: {value!r} is not {expected}", param=name)
    if setting.type == _LIST:
        entries = value.split(rules.get("separator", os.pathsep)) if isinstance(value, str) else value
        for entry in entries:
            if entry and not re.fullmatch(rules.get("pattern", ".*"), entry, re.DOTALL):
                raise StartupError(f"{origin}: {entry!r} is not {expected}", param=name)
        return tuple(filter(None, entries))
    if setting.type == _INT_OR_AUTO and value == "auto":
        return value
    try:
        converted = measured = kind(value)
        if rules.get("size") and (converted != "auto" or setting.default != "auto"):
            measured = parse_size(converted)
    except ValueError as error:
        raise StartupError(f"{origin}: {value!r} is not {expected}", param=name) from error
    if "choices" in rules and converted not in rules["choices"]:
        raise StartupError(f"{origin}: {value!r} is not one of {', '.join(rules['choices'])}", param=name)
    if not rules.get("low", measured) <= measured <= rules.get("high", measured):  # NaN is outside, too
        limits = f"{rules.get('low', '')}..{rules.get('high', '')}"
        raise StartupError(f"{origin}: {value!r} is outside {limits}", param=name)
    return converted


def _is_readable(setting: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a value of this type can be converted: a string, or TOML's number or list for such a setting."""
    if isinstance(value, (list, tuple)):
        return setting.type == _LIST and all(isinstance(entry, str) for entry in value)
    numbers: dict[str, Any] = {"int": int, _INT_OR_AUTO: int, "float": (int, float)}
    number = numbers.get(str(setting.type), int if setting.metadata.get("size") else ())
    return isinstance(value, str) or (isinstance(value, number) and not isinstance(value, bool))


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str], config: Path | None = None) -> Settings:
    """Settings from flags (only those that were passed), MOTET_… variables and a TOML file, in that order.

    Raises StartupError naming the flag, variable or key that is wrong, or unknown in the file.
    """
    known = {f.name: f for f in dataclasses.fields(Settings)}
    links = service_links(environ)
    chosen: dict[str, Any] = {}
    for key, value in _read_toml(config).items() if config else ():
        name = key.replace("-", "_")
        if name not in known:
            raise StartupError(f"{config}: unknown setting {key!r}{did_you_mean(name, known)}", param=key)
        chosen[name] = _convert(known[name], value, f"{config}: {key}")
    for name, setting in known.items():
        variable = f"MOTET_{name.upper()}"
        if variable in environ and variable not in links:
            chosen[name] = _convert(setting, environ[variable], variable)
        if name in flags:
            chosen[name] = _convert(setting, flags[name], flag(name))
    return Settings(**chosen)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: a suggestion, if a known name is similar."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=FLAG_SIMILARITY)
    return f"; did you mean {matches[0]}?" if matches else ""


def service_links(environ: Mapping[str, str]) -> list[str]:
    """MOTET_… variables that describe a Kubernetes Service or a linked container, such as MOTET_PORT=tcp://10.0.0.1:80.

    Kubernetes sets them in each pod whose namespace has a Service called `motet` or `motet-…`.
    """
    return sorted(
        name
        for name, value in environ.items()
        if _SERVICE_LINK.fullmatch(name) or (re.fullmatch(r"MOTET_(\w+_)?PORT", name) and _SERVICE_ADDRESS.match(value))
    )


def misspelt_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """MOTET_… variables whose names are similar to a setting's, each with that one; plugins may have others."""
    known = [f"MOTET_{setting.name.upper()}" for setting in dataclasses.fields(Settings)]
    known += service_links(environ)
    unknown = (name for name in environ if name.startswith("MOTET_") and name not in (*known, *OTHER_VARIABLES))
    similar = {name: difflib.get_close_matches(name, known, n=1, cutoff=VARIABLE_SIMILARITY) for name in unknown}
    return {name: matches[0] for name, matches in similar.items() if matches}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(f"--config: cannot read {path}: {error.strerror}", param="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"--config: {path} is not valid TOML: {error}", param="config") from error
