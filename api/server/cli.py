"""The command line: `motet serve`, `check`, `plugins`, `key` and `bench`. Each setting becomes a flag."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from loguru import logger

from motet.core import error_codes
from motet.core.adapter_check import CheckRequest, Verdict
from motet.core.errors import StartupError
from motet.core.logs import configure_logging
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings, did_you_mean, flag, load_settings, misspelt_variables, service_links

_METAVARS = {"int": "N", "int | Literal['auto']": "N", "float": "NUMBER", "str": "TEXT"}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting; an absent flag sets nothing, so that variables and the file apply.

    A setting belongs to the group that it, or the nearest setting before it, names.
    """
    group: argparse._ActionsContainer = parser
    for setting in dataclasses.fields(Settings):
        if title := setting.metadata.get("group"):
            group = parser.add_argument_group(title)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(setting), "metavar": _metavar(setting)}
        if setting.type == "tuple[str, ...]":
            options["action"] = "append"
        if bare := setting.metadata.get("bare"):
            options |= {"nargs": "?", "const": bare}
        group.add_argument(flag(setting.name), **options)
    files = parser.add_argument_group("Settings file")
    files.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="a TOML file with these settings")


def _metavar(setting: dataclasses.Field[Any]) -> str:
    rules = setting.metadata
    if "choices" in rules:
        return "|".join(rules["choices"])
    return str(rules.get("metavar") or ("SIZE" if rules.get("size") else _METAVARS[str(setting.type)]))


def _help(setting: dataclasses.Field[Any]) -> str:
    """The setting's help text with its default."""
    text = str(setting.metadata["help"])
    if "default:" in text:
        return text
    empty = setting.default is dataclasses.MISSING or setting.default == ""
    return f"{text} (default: {'none' if empty else setting.default})"


def settings_from(arguments: argparse.Namespace) -> Settings:
    """The settings from flags, MOTET_… variables and the TOML file. Raises StartupError."""
    options = vars(arguments)
    config = options.pop("config", None) or os.environ.get("MOTET_CONFIG")
    return load_settings(options, os.environ, Path(config) if config else None)


def _serve(arguments: argparse.Namespace) -> None:
    from motet.api.server.supervisor import supervise
    from motet.engine.distributed.hosts import with_torchrun

    settings = settings_from(arguments)
    configure_logging(settings.log_format, settings.log_level, process="supervisor")
    settings = with_torchrun(settings, os.environ)
    if links := service_links(os.environ):
        logger.info("ignoring variables that Kubernetes sets for a Service called motet: {}", ", ".join(links))
    for name, suggestion in misspelt_variables(os.environ).items():
        logger.warning("unknown variable {}; did you mean {}?", name, suggestion)
    supervise(settings)


def _plugins(arguments: argparse.Namespace) -> None:
    from motet.api.server.plugin_list import print_plugins

    print_plugins(PluginRegistry.load())


def _key(arguments: argparse.Namespace) -> None:
    from motet.api.http.api_keys import key_line, new_key

    key = new_key()
    print(key_line(arguments.name, key, arguments.admin))
    print(f"the key of {arguments.name}, which is not stored anywhere: {key}", file=sys.stderr)


def _bench(arguments: argparse.Namespace) -> None:
    from motet.api.bench.command import run_bench

    run_bench(arguments)


def _check(arguments: argparse.Namespace) -> None:
    from motet.api.server.check_command import find_adapters, report

    os.environ["HF_HUB_OFFLINE"] = "1"  # must be set before a plugin imports huggingface_hub
    from motet.api.server.supervisor import locate_model, model_directory
    from motet.engine.adapters.loader import LoaderSpec
    from motet.engine.engine_config import EngineConfig
    from motet.engine.processes.child_process import public_environment

    options = vars(arguments)
    directories, output = options.pop("directories"), options.pop("format")
    settings = load_settings(options, os.environ, None)
    found = find_adapters(directories)
    location = locate_model(settings)
    spec = LoaderSpec(
        engine=EngineConfig.from_settings(settings, model_directory(location, settings)),
        address="",
        cache="",
        names=(settings.model_name or location.name,),
    )
    request = CheckRequest(msgspec.to_builtins(spec), tuple(found))
    command = [sys.executable, "-m", "motet.engine.adapters.check_worker"]
    done = subprocess.run(
        command, input=msgspec.json.encode(request), stdout=subprocess.PIPE, env=public_environment(), check=False
    )
    if done.returncode:
        raise StartupError(
            f"the checker exited with code {done.returncode}; its message is above", code=error_codes.ALREADY_REPORTED
        )
    verdicts = msgspec.json.decode(done.stdout, type=list[Verdict])
    print(report(verdicts, location.name, output))
    if not all(verdict.fits for verdict in verdicts):
        raise SystemExit(1)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the `motet` command."""
    parser = argparse.ArgumentParser(prog="motet", description="Many LoRA fine-tunes of one base model, one server.")
    parser.add_argument("--version", action="version", version=f"motet {version('motet')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        added.set_defaults(run=run, parser=added)
        return added

    serve = command("serve", _serve, "serve a base model and its adapters over HTTP")
    serve.epilog = (
        "You can also set each setting by a variable (--adapter-root: MOTET_ADAPTER_ROOT), or in the TOML file "
        "of --config or MOTET_CONFIG (adapter_root); a flag overrides a variable, and a variable the file."
    )
    serve.usage = "motet serve [--FLAG VALUE …]"
    add_settings(serve)
    command("plugins", _plugins, "list the registered names and their plugins")
    check = command("check", _check, "report which adapters fit a base model, and why others do not, without serving")
    from motet.api.server.check_command import add_check_arguments

    add_check_arguments(check)
    key = command("key", _key, "create an API key: prints a line for the --api-keys file, and the key itself on stderr")
    key.add_argument("name", help="the owner's name: letters, digits, or any of _.@-")
    key.add_argument("--admin", action="store_true", help="the key may cancel all callers' requests")
    bench = command("bench", _bench, "measure any OpenAI-compatible server over HTTP")
    from motet.api.bench.command import add_bench_arguments

    add_bench_arguments(bench)
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Prints the command's usage and exits with code 2 if it is invalid."""
    parsed, unknown = build_parser().parse_known_args(arguments)
    parser: argparse.ArgumentParser = vars(parsed).pop("parser")
    if unknown:
        name = unknown[0].split("=")[0]
        hint = did_you_mean(name, parser._option_string_actions) if name.startswith("--") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return parsed


def main() -> None:
    """Entry point of the `motet` command. An invalid setting is reported in one line, with exit code 2."""
    arguments = parse_arguments()
    run = vars(arguments).pop("run")
    try:
        run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `motet plugins | head -1`; leave nothing to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except StartupError as error:
        if error.code != error_codes.ALREADY_REPORTED:
            print(f"motet: {error.message}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
