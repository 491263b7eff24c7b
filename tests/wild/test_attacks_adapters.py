"""Attacks by adapters' files and sources: each is refused or limited, and a normal adapter is served meanwhile."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from support.prepared_adapters import prepare, target_in
from support.scripted_registry import RegistrySetup, failure, run, until
from support.tiny_adapters import CONFIG, Q0, RANK, adapter, write

from motet.core.adapter_source import AdapterRef, ResolvedAdapter
from motet.core.errors import AdapterRefused, NotFound, Overloaded, Unavailable
from motet.core.settings import Settings
from motet.engine.adapters import prepared_files
from motet.engine.adapters.peft_config import parse_config
from motet.engine.adapters.prepare import Target
from motet.engine.kernels import kernel_cache
from motet.plugins.sources.local import LocalAdapters

SECONDS = 10.0
"""The time limit for a normal request during an attack: far above the usual time, and below that of attacks."""

BOMB = "(?:(?:a?){4294967}){429496}x"
LARGE_MODEL = {f"model.layers.{i}.self_attn.{m}_proj": i for i in range(80) for m in "qkvo"}


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return target_in(tmp_path)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    return write(tmp_path / "victim", adapter())


def refuse(source: Path, target: Target, words: str) -> None:
    """The loader refuses `source` in time."""
    began = time.monotonic()
    with pytest.raises(AdapterRefused, match=words):
        prepare(source, target)
    assert time.monotonic() - began < 2 * SECONDS


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_1_a_regex_that_takes_all_memory(tmp_path: Path, target: Target, victim: Path, field: str) -> None:
    value: Any = {BOMB: 4} if field.endswith("_pattern") else BOMB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse(write(tmp_path / "bomb", adapter(), **{field: value}), target, field)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    prepare(victim, target)


def test_2_merges_neither_fill_the_disk_nor_stop_others(tmp_path: Path) -> None:
    a, b = AdapterRef("hub", "org/a"), AdapterRef("hub", "org/b")

    async def body() -> None:
        s = RegistrySetup(tmp_path, merges_per_minute=30, cache_bytes=0)
        s.publish("org/a")
        s.publish("org/b")

        async def merge(weight: float, owner: str) -> None:
            await s.adapters.serve_merged(((a, weight), (b, 1.0)), (None, None), owner)

        for number in range(30):
            await merge(0.1 + number / 100, "alice")
        for number in range(30, 40):
            assert isinstance(await failure(merge(0.1 + number / 100, "alice")), Overloaded)
        await merge(0.5, "bob")
        await s.registry.close()
        assert len(list((tmp_path / "merged").glob("*"))) <= 1

    run(body)


def test_3_end_tokens_without_end(tmp_path: Path, target: Target, victim: Path) -> None:
    source = write(tmp_path / "bomb", adapter())
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(48_852))}))
    refuse(source, target, "lists 48852 tokens; the limit is 64")
    prepare(victim, target)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def _zero_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000] + bytes(2000))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("0.safetensors", _empty),
        ("0.safetensors", _cut),
        ("0.safetensors", _zero_the_end),
        ("adapter.json", _empty),
    ],
)
def test_9_damaged_cache_files_heal(target: Target, victim: Path, name: str, damage: Callable[[Path], None]) -> None:
    first = prepare(victim, target)
    home = Path(first.files[0]).parent
    whole = {path.name: path.read_bytes() for path in home.iterdir()}
    damage(home / name)
    assert prepare(victim, target) == first
    assert {path.name: path.read_bytes() for path in home.iterdir()} == whole


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_9_empty_kernel_files_heal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kernels"))
    source = tmp_path / "kernel.py"
    source.write_text("from numba import njit\n\n\n@njit(cache=True)\ndef double(x):\n    return 2 * x\n")

    def double(number: int) -> Any:
        space: dict[str, Any] = {"__name__": "kernel", "__file__": str(source)}
        exec(compile(source.read_text(), source, "exec"), space)
        kernel_cache.check_cached_kernels(space["double"])
        return space["double"](number)

    assert double(4) == 8
    (file,) = (tmp_path / "kernels").rglob(f"*.{kind}")
    file.write_bytes(b"")
    assert double(4) == 8
    assert all(path.stat().st_size for path in (tmp_path / "kernels").rglob("*.nb?"))


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_13_a_list_of_250_000_names(field: str) -> None:
    names = [f"x{number}" for number in range(250_000)]
    began = time.process_time()
    with pytest.raises(AdapterRefused, match=f"{field} lists 250000 modules"):
        parse_config({**CONFIG, field: names})
    assert parse_config({**CONFIG, field: [*names[:9_999], "o_proj"]}).modules(LARGE_MODEL)
    assert time.process_time() - began < 3, "55 s where each name is compared with each module"


def slow_fetches(s: RegistrySetup, into: list[str]) -> None:
    """Fetches of `org/slow…` never end by themselves; records how they end."""
    fetch = s.hub.fetch

    async def drip(adapter: ResolvedAdapter, token: str | None, place: Path) -> Path:
        if not adapter.ref.id.startswith("org/slow"):
            return await fetch(adapter, token, place)
        try:
            await asyncio.Event().wait()
        finally:
            into.append(adapter.ref.id)
        return place

    s.hub.fetch = drip  # type: ignore[method-assign]


def test_15_four_slow_downloads_do_not_hold_up_others_and_end(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, slot_seconds=0.05, abandoned_seconds=0.1)
        ended: list[str] = []
        slow_fetches(s, ended)
        names = [f"org/slow-{number}" for number in range(4)]
        for name in (*names, "org/victim"):
            s.publish(name)
        callers = [asyncio.create_task(s.adapters.serve(AdapterRef("hub", name), None)) for name in names]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(SECONDS):
            await s.adapters.serve(AdapterRef("hub", "org/victim"), None)
        assert not ended
        for caller in callers:
            caller.cancel()
        async with asyncio.timeout(SECONDS):
            await until(lambda: sorted(ended) == names)
        await asyncio.sleep(0.05)

    run(body)


def test_low_a_deep_generation_config(tmp_path: Path, target: Target) -> None:
    source = write(tmp_path / "deep", adapter())
    (source / "generation_config.json").write_text('{"eos_token_id": ' + "[" * 100_000 + "]" * 100_000 + "}")
    refuse(source, target, "nested too deeply")


def test_low_weights_that_overflow(tmp_path: Path, target: Target) -> None:
    tensors = {name: torch.full_like(tensor, 1e30) for name, tensor in adapter().items()}
    refuse(write(tmp_path / "huge", tensors, lora_alpha=1e30), target, "overflow")


def test_low_a_full_cache_disk_is_named(target: Target, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_files, "save_file", full)
        with pytest.raises(Unavailable) as caught:
            prepare(victim, target)
    assert caught.value.code == "storage_full"
    prepare(victim, target)


def header(length: int | None = None, **tensors: Any) -> bytes:
    """A safetensors file's header, with false claims about `tensors`."""
    content = json.dumps(tensors).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content


def tensor(dtype: str = "F32", shape: object = (RANK, 24), end: int = RANK * 24 * 4, begin: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


A = f"{Q0}.lora_A.weight"
DATA = bytes(RANK * 24 * 4)
FILES = {
    "empty": b"",
    "short": b"\0" * 7,
    "header-bomb": header(1 << 40),
    "header-past-the-end": header(10_000),
    "header-of-nothing": struct.pack("<Q", 0),
    "not-json": struct.pack("<Q", 4) + b"nope",
    "json-list": struct.pack("<Q", 2) + b"[]",
    "deep-json": struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
    "no-tensors": header(),
    "overlap": header(**{A: tensor(), f"{Q0}.lora_B.weight": tensor(shape=(24, RANK))}) + DATA,
    "offset-past-the-end": header(**{A: tensor(end=1 << 40)}) + DATA,
    "offset-negative": header(**{A: tensor(begin=-8)}) + DATA,
    "offsets-swapped": header(**{A: tensor(begin=384, end=0)}) + DATA,
    "wrong-size": header(**{A: tensor(shape=(RANK, 25))}) + DATA,
    "huge-shape": header(**{A: tensor(shape=(1 << 40, 1 << 40))}) + DATA,
    "negative-shape": header(**{A: tensor(shape=(-4, -24))}) + DATA,
    "shape-not-a-list": header(**{A: tensor(shape="x")}) + DATA,
    "unknown-dtype": header(**{A: tensor(dtype="F999")}) + DATA,
    "trailing-bytes": header(**{A: tensor()}) + DATA + b"x" * 9,
}


@pytest.mark.parametrize("form", FILES)
def test_withstood_broken_safetensors(tmp_path: Path, target: Target, victim: Path, form: str) -> None:
    source = write(tmp_path / "broken", adapter())
    (source / "adapter_model.safetensors").write_bytes(FILES[form])
    refuse(source, target, "adapter_model.safetensors|tensor|weights")
    prepare(victim, target)


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("nan", lambda t: t.fill_(torch.nan)),
        ("inf", lambda t: t.fill_(torch.inf)),
        ("int", lambda t: t.to(torch.int32)),
    ],
)
def test_withstood_numbers_that_are_none(
    tmp_path: Path, target: Target, form: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    tensors = {name: change(tensor) for name, tensor in adapter().items()}
    refuse(write(tmp_path / form, tensors), target, "lora_")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_withstood_other_floats(tmp_path: Path, target: Target, dtype: torch.dtype) -> None:
    prepare(write(tmp_path / "other", {name: tensor.to(dtype) for name, tensor in adapter().items()}), target)


OUTSIDE = ["../secret", "a/../../secret", "/etc", "/etc/passwd", ".", "", "..", "~", "a/..", "n\0ul", "x" * 5000]
OUTSIDE += ["./a", "a/", "a/.", ".//a", "//a", "..%2fsecret", "a\\..\\..\\secret", "link", "link/../secret", "a@../x"]


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: repr(name)[:20])
def test_withstood_local_names_that_lead_out(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write(root / "a", adapter())
    write(tmp_path / "secret", adapter())
    (root / "link").symlink_to(tmp_path / "secret")
    source = LocalAdapters()
    source.configure(Settings(adapter_root=(str(root),)))
    with pytest.raises((NotFound, AdapterRefused)):
        asyncio.run(source.resolve(AdapterRef("local", name), None))
    assert asyncio.run(source.resolve(AdapterRef("local", "a"), None)).ref.id == "a"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "generation_config.json"])
def test_withstood_files_that_never_end(tmp_path: Path, target: Target, victim: Path, name: str) -> None:
    for number, make in enumerate((os.mkfifo, lambda path: os.symlink("/dev/zero", path))):
        source = write(tmp_path / f"endless-{number}", adapter())
        (source / name).unlink(missing_ok=True)
        make(source / name)
        refuse(source, target, name)
    prepare(victim, target)


def test_withstood_3_000_cold_names(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        for start in range(0, 3000, 50):
            names = [AdapterRef("hub", f"org/{start + number}") for number in range(50)]
            errors = await asyncio.gather(*(failure(s.adapters.serve(name, None)) for name in names))
            assert {error.status for error in errors} == {404}
        assert not s.loader.prepared
        assert not list(s.cache.glob("*"))

    run(body)
