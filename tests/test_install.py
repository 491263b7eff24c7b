"""Installing: the pins resolve on a stock package index, and the Makefile chooses and replaces Pythons."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
# pip takes half a minute per version.
PYTHONS = ["3.11", *(pytest.param(version, marks=pytest.mark.slow) for version in ("3.12", "3.13"))]
CHOOSES_PACKAGES = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_NO_INDEX")


# What `make install-cuda` installs to build flash-attn, and what flash-attn requires.
BUILD_REQUIREMENTS = ("packaging", "ninja", "wheel", "setuptools", "einops")


def requirements() -> list[str]:
    """Everything that pyproject.toml and `make install-cuda` require, but flash-attn, which has no wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["dev"], *BUILD_REQUIREMENTS]


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(version: str, target: Path) -> subprocess.CompletedProcess[str]:
    """Run pip's resolution for Python `version` with this machine's own configuration left out."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
    command += ["--python-version", version, "--only-binary", ":all:", "--target", str(target)]
    command += ["--report", f"{target}.json", "--constraint", str(CONSTRAINTS), *requirements()]
    env = {name: value for name, value in os.environ.items() if name not in CHOOSES_PACKAGES}
    env["PIP_CONFIG_FILE"] = os.devnull
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def index_is_reachable() -> bool:
    """Whether PyPI answers."""
    try:
        urllib.request.urlopen("https://pypi.org/simple/pip/", timeout=10).close()
    except urllib.error.URLError:
        return False
    return True


@pytest.mark.clients  # it downloads from a package index, as the clients' tests do
@pytest.mark.parametrize("version", PYTHONS)
def test_the_pins_resolve_on_a_stock_index(version: str, tmp_path: Path) -> None:
    if "CI" not in os.environ and not index_is_reachable():
        pytest.skip("PyPI cannot be reached")
    done = resolve(version, tmp_path / version)
    assert done.returncode == 0, done.stdout
    pinned = {normalised(line.partition("==")[0]) for line in CONSTRAINTS.read_text().splitlines() if "==" in line}
    chosen = json.loads((tmp_path / f"{version}.json").read_text())["install"]
    names = {normalised(package["metadata"]["name"]) for package in chosen}
    assert names - pinned == set(), "installed without a pin"


def make(directory: Path, python: Path, *, nvidia: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `make install` in `directory` with PYTHON=`python`, as if the machine had an NVIDIA driver or not."""
    command = ["make", "install", f"PYTHON={python}", f"HAS_NVIDIA={str(nvidia).lower()}"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory with the files that `make install` reads."""
    (tmp_path / ".ci").mkdir()
    for name in ("Makefile", "pyproject.toml", ".ci/constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def python_that_reports(path: Path, version: str, *, reaches_pytorch: bool = False) -> Path:
    """A stand-in for another Python: it reports `version`, makes virtual environments of itself, and no more."""
    major, minor = version.split(".")
    path.write_text(
        "#!/bin/bash\n"
        f'if [[ "$1" == --version ]]; then echo "Python {version}.1"\n'
        f'elif [[ "$1" == -c && "$2" == *"version_info < "* ]]; then [[ {major}{minor} -ge 311 ]]\n'
        f'elif [[ "$1" == -c && "$2" == *"version_info["* ]]; then echo {version}\n'
        f'elif [[ "$1" == -c && "$2" == *urlopen* ]]; then exit {int(not reaches_pytorch)}\n'
        'elif [[ "$2" == venv ]]; then rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"\n'
        'else echo "$@" >> pip-calls; fi\n'
    )
    path.chmod(0o755)
    return path


def test_a_python_that_is_too_old_is_one_line_before_anything_is_made(clone: Path) -> None:
    before = sorted(clone.iterdir())
    done = make(clone, python_that_reports(clone.parent / "old", "3.9"))
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed" in done.stderr.splitlines()[0]
    assert "Python 3.9.1" in done.stderr.splitlines()[0]
    assert sorted(clone.iterdir()) == before


def test_an_environment_of_another_python_is_replaced_and_one_of_the_same_is_kept(clone: Path) -> None:
    older, newer = (python_that_reports(clone.parent / name, name) for name in ("3.11", "3.12"))
    assert make(clone, older).returncode == 0
    mark = clone / ".venv" / "mark"
    mark.touch()
    assert make(clone, older).returncode == 0
    assert mark.exists()
    assert make(clone, newer).returncode == 0
    assert not mark.exists()
    assert (clone / ".venv" / ".installed-3.12").exists()


def test_no_part_of_the_install_hides_pips_progress(clone: Path) -> None:
    make(clone, python_that_reports(clone.parent / "python", "3.11"))
    calls = (clone / "pip-calls").read_text().splitlines()
    assert any(call.endswith(" torch") for call in calls)
    assert all("--constraint .ci/constraints.txt" in call and "--quiet" not in call for call in calls)


@pytest.mark.parametrize(
    ("nvidia", "reachable", "cpu_build"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_pytorch_comes_without_cuda_where_no_nvidia_driver_is(
    clone: Path, nvidia: bool, reachable: bool, cpu_build: bool
) -> None:
    done = make(clone, python_that_reports(clone.parent / "3.12", "3.12", reaches_pytorch=reachable), nvidia=nvidia)
    first = (clone / "pip-calls").read_text().splitlines()[0]
    assert first.endswith(" torch")
    assert ("--extra-index-url https://download.pytorch.org/whl/cpu" in first) == cpu_build
    assert ("about 3 GB to download" in done.stdout) == (not cpu_build)


def install_cuda(directory: Path, capabilities: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Run `make install-cuda` on a machine whose nvidia-smi prints `capabilities`, and which has nvcc."""
    tools = directory / "tools"
    tools.mkdir()
    for name, output in (("nvidia-smi", capabilities), ("nvcc", "")):
        (tools / name).write_text(f"#!/bin/sh\nprintf '{output}'\n")
        (tools / name).chmod(0o755)
    python = python_that_reports(directory.parent / "python", "3.12")
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    command = ["make", "install-cuda", f"PYTHON={python}", "HAS_NVIDIA=true", "TYPES=", *variables]
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("capabilities", "architectures", "minutes"),
    [("8.6\\n", "80", "46"), ("9.0\\n9.0\\n", "90", "46"), ("10.3\\n8.9\\n", "80;100", "91")],
)
def test_flash_attn_is_compiled_for_the_gpus_of_this_machine(
    clone: Path, capabilities: str, architectures: str, minutes: str
) -> None:
    done = install_cuda(clone, capabilities, "MAX_JOBS=4")
    assert done.returncode == 0, done.stderr
    assert f"architecture {architectures} with 4 compilers: about {minutes} minutes" in done.stdout
    assert f'FLASH_ATTN_CUDA_ARCHS="{architectures}" MAX_JOBS=4' in done.stdout
    assert (clone / "pip-calls").read_text().splitlines()[-1].endswith(" --no-build-isolation flash-attn")


def test_the_architectures_can_be_chosen(clone: Path) -> None:
    done = install_cuda(clone, "", "FLASH_ATTN_CUDA_ARCHS=90", "MAX_JOBS=8")
    assert done.returncode == 0, done.stderr
    assert "architecture 90 with 8 compilers: about 23 minutes" in done.stdout


@pytest.mark.parametrize(("capabilities", "message"), [("", "580 or newer"), ("7.5\\n", "8.0 or higher")])
def test_flash_attn_is_not_compiled_for_a_gpu_that_cannot_run_it(clone: Path, capabilities: str, message: str) -> None:
    done = install_cuda(clone, capabilities)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[0]
    assert "flash-attn" not in (clone / "pip-calls").read_text()


def test_the_number_of_compilers_fits_the_machine(clone: Path) -> None:
    done = install_cuda(clone, "9.0\\n")
    jobs = re.search(r"with (\d+) compilers", done.stdout)
    assert jobs is not None
    assert 1 <= int(jobs[1]) <= len(os.sched_getaffinity(0))
