"""Reading a model's files: slices for a rank, and every fault a StartupError that says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from motet.core.errors import StartupError
from motet.engine.checkpoint import Checkpoint, check_safetensors

CPU = torch.device("cpu")
TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "b.weight": torch.arange(5.0),
    "lm_head.weight": torch.ones(2, 2),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint in two files with an index, beside a file that is not part of it."""
    first = {name: t for name, t in TENSORS.items() if name != "b.weight"}
    save_file(first, tmp_path / "model-1.safetensors")
    save_file({"b.weight": TENSORS["b.weight"]}, tmp_path / "model-2.safetensors")
    save_file({"stray": torch.ones(1)}, tmp_path / "consolidated.safetensors")
    weight_map = dict.fromkeys(first, "model-1.safetensors") | {"b.weight": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def opened(directory: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """The directory's checkpoint."""
    return Checkpoint(directory, dtype, CPU)


def test_whole_tensors_and_slices(directory: Path) -> None:
    files = opened(directory)
    a = TENSORS["a.weight"]
    assert "a.weight" in files
    assert "stray" not in files
    assert torch.equal(files.read("a.weight", (3, 4)), a)
    assert torch.equal(files.read("a.weight", (3, 4), rows=slice(1, 3)), a[1:3])
    assert torch.equal(files.read("a.weight", (3, 4), columns=slice(2, 4)), a[:, 2:])
    assert torch.equal(files.read("a.weight", (3, 4), slice(0, 2), slice(1, 2)), a[:2, 1:2])
    assert torch.equal(files.read("b.weight", (5,), rows=slice(1, 4)), TENSORS["b.weight"][1:4])
    files.finish(r"lm_head\.weight")


def test_dtype_is_the_engines(directory: Path) -> None:
    assert opened(directory, torch.bfloat16).read("a.weight", (3, 4)).dtype == torch.bfloat16


def test_without_an_index_every_file_counts(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"y": torch.ones(1)}, tmp_path / "y.safetensors")
    files = opened(tmp_path)
    assert "x" in files
    assert "y" in files


def test_missing_tensor_is_named(directory: Path) -> None:
    with pytest.raises(StartupError, match=r"has no tensor model\.norm\.weight"):
        opened(directory).read("model.norm.weight", (3,))


def test_wrong_shape_is_named(directory: Path) -> None:
    with pytest.raises(StartupError, match=r"a\.weight has shape \[3, 4\]; expected \[4, 3\]"):
        opened(directory).read("a.weight", (4, 3))


def test_left_over_tensors_are_named(directory: Path) -> None:
    files = opened(directory)
    files.read("a.weight", (3, 4))
    files.read("lm_head.weight", (2, 2))
    with pytest.raises(StartupError, match=r"1 tensors that this architecture does not use, such as b\.weight"):
        files.finish(r"lm_head\.weight")


def test_no_safetensors_at_all(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(StartupError, match=r"no \*\.safetensors") as caught:
        opened(tmp_path)
    assert caught.value.param == "model"


def test_a_quantised_weight_is_read_with_its_scales(tmp_path: Path) -> None:
    values = torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4)
    tensors = {"a.weight": values, "a.weight_scale": torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.bfloat16)}
    tensors |= {"b.weight": values.float().to(torch.float8_e4m3fn), "b.weight_scale": torch.tensor(0.5)}
    tensors |= {"c.weight": torch.ones(3, 4), "d.weight": values.clone(), "d.weight_scale": torch.ones(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    files = opened(tmp_path, torch.bfloat16)
    a = files.read_weight("a", (3, 4), rows=slice(1, 3))
    assert a.scales is not None
    assert a.scales.dtype == torch.float32
    assert torch.equal(a.dense(), (values * torch.tensor([[1], [2], [4]]))[1:].bfloat16())
    b = files.read_weight("b", (3, 4), columns=slice(2, 4))
    assert torch.equal(b.dense(), (values * 0.5)[:, 2:].bfloat16())
    c = files.read_weight("c", (3, 4))
    assert (c.values.dtype, c.scales) == (torch.bfloat16, None)
    with pytest.raises(StartupError, match=r"d\.weight_scale has shape \[4\]; expected one scale, or \[3, 1\]"):
        files.read_weight("d", (3, 4))


def test_packed_weights_are_not_taken_for_numbers(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(3, 4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    for read in (opened(tmp_path).read_weight, lambda name, shape: opened(tmp_path).read(f"{name}.weight", shape)):
        with pytest.raises(StartupError, match=r"a\.weight is stored as int8, which is not supported"):
            read("a", (3, 4))


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "gone.safetensors"}}'],
)
def test_broken_index(directory: Path, index: str) -> None:
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(StartupError) as caught:
        opened(directory)
    assert caught.value.param == "model"


READ_IT_ALL = """
import sys
from pathlib import Path
import torch
from motet.core.errors import StartupError
from motet.engine.checkpoint import Checkpoint
for name in sorted(Path(sys.argv[1]).iterdir()):
    try:
        files = Checkpoint(name, torch.float32, torch.device("cpu"))
        files.read("big", (1000, 1000)).sum()
        print(name.name, "read")
    except StartupError as error:
        print(name.name, "refused", "download the model again" in str(error))
"""


def test_a_file_cut_short_does_not_kill_the_process(tmp_path: Path) -> None:
    """Reading a mapped file beyond its end is SIGBUS; so this runs in a process of its own."""
    data = save({"big": torch.ones(1000, 1000)})
    header = 8 + int.from_bytes(data[:8], "little")
    lengths = [0, 5, 8, header - 1, header, header + 4, 4096, len(data) // 2, len(data) - 4096, len(data) - 1]
    for length in [*lengths, len(data)]:
        (tmp_path / f"{length:08}").mkdir()
        (tmp_path / f"{length:08}" / "model.safetensors").write_bytes(data[:length])
    command = [sys.executable, "-c", READ_IT_ALL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    expected = [f"{length:08} refused True" for length in sorted(lengths)] + [f"{len(data):08} read"]
    assert done.stdout.splitlines() == expected


def with_header(header: object, body: bytes = b"") -> bytes:
    """A file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


BROKEN: dict[str, bytes] = {
    "no JSON": with_header(b"{{{"),
    "a list": with_header([1]),
    "no offsets": with_header({"a": {"dtype": "F32", "shape": [1]}}),
    "offsets of text": with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, b"1234"),
    "one offset": with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"),
    "unknown dtype": with_header({"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "shape that does not fit": with_header({"a": {"dtype": "F32", "shape": [7], "data_offsets": [0, 4]}}, b"1234"),
    "trailing bytes": save({"a": torch.ones(1)}) + b"more",
    "header beyond the end": b"\xff" * 8 + b"{}",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_headers(tmp_path: Path, fault: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(BROKEN[fault])
    with pytest.raises(StartupError, match=r"model\.safetensors.*download the model again") as caught:
        opened(tmp_path)
    assert caught.value.param == "model"


def test_whole_files_pass_the_check(tmp_path: Path) -> None:
    for tensors in ({}, {"x": torch.ones(3)}, {"empty": torch.ones(0), "x": torch.ones(2, dtype=torch.int8)}):
        save_file(tensors, tmp_path / "f.safetensors", metadata={"format": "pt"})
        check_safetensors(tmp_path / "f.safetensors")
