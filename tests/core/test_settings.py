"""Settings from flags, environment and file: who wins, what converts, and how a mistake is named."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.core.errors import StartupError
from motet.core.settings import Settings, flag, load_settings, misspelt_variables, parse_size, service_links

KNOWN = [setting.name for setting in dataclasses.fields(Settings)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file that sets the port and the number of shards."""
    path = tmp_path / "motet.toml"
    path.write_text('port = 1000\nshards = 2\nadapter-root = ["/a", "/b"]\ndrain-seconds = 3\n')
    return path


def test_defaults_are_complete_and_valid() -> None:
    settings = load_settings({}, {})
    assert settings == Settings()
    for name in KNOWN:
        default = getattr(settings, name)
        assert getattr(load_settings({name: default}, {}), name) == default


def test_flag_beats_environment_beats_file(config: Path) -> None:
    environ = {"MOTET_PORT": "2000", "MOTET_HOST": "::1"}
    settings = load_settings({"port": "3000"}, environ, config)
    assert (settings.port, settings.host, settings.shards) == (3000, "::1", 2)
    assert load_settings({}, environ, config).port == 2000
    assert load_settings({}, {}, config).port == 1000


def test_types_are_converted(config: Path) -> None:
    settings = load_settings({}, {}, config)
    assert settings.adapter_root == ("/a", "/b")
    assert isinstance(settings.drain_seconds, float)
    roots = {"MOTET_ADAPTER_ROOT": os.pathsep.join(("/x", "/y"))}
    assert load_settings({}, roots, config).adapter_root == ("/x", "/y")
    origins = {"MOTET_CORS_ORIGIN": "https://a.example,http://localhost:3000"}
    assert load_settings({}, origins).cors_origin == ("https://a.example", "http://localhost:3000")
    assert load_settings({"adapter_root": ["/only"]}, roots, config).adapter_root == ("/only",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "eighty"),
        ("port", "65536"),
        ("port", "-1"),
        ("shards", "0"),
        ("shards", "1.5"),
        ("shards", "many"),
        ("max_batch_tokens", "15"),
        ("port", "auto"),
        ("memory_fraction", "0"),
        ("memory_fraction", "1.1"),
        ("device", "tpu"),
        ("dtype", "int8"),
        ("kv_memory", "lots"),
        ("adapter_memory", "-1GiB"),
        ("max_body", ""),
        ("max_body", "0"),
        ("max_body", "auto"),
        ("max_files", "auto"),
        ("cors_origin", "localhost:3000"),
        ("cors_origin", "https://app.example/"),
        ("cors_origin", "https://App.example"),
        *(
            ("cors_origin", f"http://{rest}")
            for rest in ("a:80", "a:65536", "a:0", "a:*:*", "loc*lhost", "a*", "*a:1", "é")
        ),
        ("cors_origin", "https://a:443"),
        ("cors_origin", "http://localhost:30*"),
        ("cors_origin", "http://user@a"),
        ("cors_origin", "*.example"),
        ("cors_origin", "file://"),
        ("allowed_host", "http://motet.example"),
        ("allowed_host", "a.example,b.example"),
        ("drain_seconds", "nan"),
        ("drain_seconds", "-1"),
        ("log_format", "xml"),
    ],
)
def test_wrong_values_name_their_origin(name: str, value: str) -> None:
    with pytest.raises(StartupError) as by_flag:
        load_settings({name: value}, {})
    assert flag(name) in by_flag.value.message
    assert by_flag.value.param == name
    variable = f"MOTET_{name.upper()}"
    with pytest.raises(StartupError, match=variable):
        load_settings({}, {variable: value})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", r"unknown setting 'prot'; did you mean port\?"),
        ("shard = 2", r"unknown setting 'shard'; did you mean shards\?"),
        ("weather = 1", "unknown setting 'weather'$"),
        ("port = 'x'", "port"),
        ("port =", "is not valid TOML"),
        ("[server]\nport = 1", "server"),
        ("port = true", "port: True is not of type int"),
        ("shards = true", "shards: True is not of type int or auto"),
        ("port = 8080.7", "port: 8080.7 is not of type int"),
        ("drain_seconds = true", "drain_seconds: True is not of type float"),
        ("model = ['x']", "model: .* is not of type str"),
        ("kv_memory = 3.5", "kv_memory: 3.5 is not a size"),
        ("adapter_root = 1", "adapter_root: 1 is not of type str"),
        ("adapter_root = [1]", "adapter_root: .* is not of type str"),
    ],
)
def test_wrong_files_name_the_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "motet.toml"
    path.write_text(text)
    with pytest.raises(StartupError, match=named) as caught:
        load_settings({}, {}, path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("name", ["shards", "max_batch_tokens"])
def test_a_number_may_be_left_to_the_engine(name: str, tmp_path: Path) -> None:
    path = tmp_path / "motet.toml"
    for value, expected in (('"auto"', "auto"), ("32", 32), ('"32"', 32)):
        path.write_text(f"{name} = {value}\n")
        assert getattr(load_settings({}, {}, path), name) == expected
        text = value.strip('"')
        assert getattr(load_settings({name: text}, {}), name) == expected
        assert getattr(load_settings({}, {f"MOTET_{name.upper()}": text}), name) == expected
    assert getattr(load_settings({}, {}), name) == "auto"


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "motet.toml"
    path.write_bytes("port = 1  # hier h\u00f6ren".encode("latin-1"))
    with pytest.raises(StartupError, match=r"motet\.toml is not valid TOML"):
        load_settings({}, {}, path)


def test_a_file_may_write_sizes_as_numbers_and_lists_as_text(tmp_path: Path) -> None:
    path = tmp_path / "motet.toml"
    path.write_text("kv_memory = 1048576\nadapter_root = '/a:/b'\nshards = '2'\ncors_origin = ['*', 'null']\n")
    settings = load_settings({}, {}, path)
    assert settings.size("kv_memory") == 1 << 20
    assert settings.adapter_root == ("/a", "/b")
    assert settings.shards == 2
    assert settings.cors_origin == ("*", "null")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"--config: cannot read .*gone\.toml"):
        load_settings({}, {}, tmp_path / "gone.toml")


def test_flags_are_spelled_with_dashes() -> None:
    assert flag("max_batch_tokens") == "--max-batch-tokens"


def test_a_mistyped_variable_name_is_reported() -> None:
    slips = {"MOTET_API_KEY": "MOTET_API_KEYS", "MOTET_ADAPTER_ROOTS": "MOTET_ADAPTER_ROOT", "MOTET_PROT": "MOTET_PORT"}
    right = {"MOTET_PORT": "1", "MOTET_CACHE": "/c", "MOTET_CONFIG": "f", "MOTET_HUB_TOKEN": "t", "PORT": "2"}
    assert misspelt_variables({**dict.fromkeys(slips, "x"), **right, "MOTET_SAMPLE_ROOT": "/plugins"}) == slips


def test_variables_of_kubernetes_services_are_ignored() -> None:
    """What a pod gets for Services called `motet` and `motet-api`; a port that was meant is still read."""
    links = {
        "MOTET_SERVICE_HOST": "10.0.0.1",
        "MOTET_SERVICE_PORT": "8080",
        "MOTET_SERVICE_PORT_HTTP": "8080",
        "MOTET_PORT": "tcp://10.0.0.1:8080",
        "MOTET_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "MOTET_PORT_8080_TCP_PROTO": "tcp",
        "MOTET_PORT_8080_TCP_PORT": "8080",
        "MOTET_PORT_8080_TCP_ADDR": "10.0.0.1",
        "MOTET_API_PORT": "udp://10.0.0.2:80",
        "MOTET_API_SERVICE_HOST": "10.0.0.2",
    }
    meant = {"MOTET_HOST": "::1", "MOTET_CACHE": "/c", "MOTET_MODEL": "tcp://x", "PORT": "tcp://10.0.0.1:1"}
    assert service_links(links | meant) == sorted(links)
    assert misspelt_variables(links | meant) == {}
    settings = load_settings({}, links | meant)
    assert (settings.port, settings.host) == (8080, "::1")
    assert load_settings({"port": "9000"}, links).port == 9000
    assert load_settings({}, links | {"MOTET_PORT": "9000"}).port == 9000
    assert "MOTET_PORT" not in service_links(links | {"MOTET_PORT": "9000"})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("512MiB", 512 << 20),
        ("2GB", 2_000_000_000),
        ("1.5kib", 1536),
        (" 3 TiB ", 3 << 40),
        ("7K", 7000),
        ("9B", 9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert Settings(kv_memory=text).size("kv_memory") == size


@pytest.mark.parametrize("text", ["", "MiB", "1XB", "1 2", "-3", "1e9", "0x10", "1,5G", "١GiB nonsense"])
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_auto_is_not_a_size() -> None:
    assert Settings().size("kv_memory") is None


@given(st.integers(0, 10**15), st.sampled_from(["", "k", "M", "GB", "KiB", "mib", "TiB"]))
def test_size_units_are_exact(number: int, unit: str) -> None:
    factor = parse_size(f"1{unit}")
    assert parse_size(f"{number}{unit}") == pytest.approx(number * factor, rel=1e-15)


@pytest.mark.parametrize(
    "origin",
    [
        *("http://localhost:*", "http://127.0.0.1:*", "http://[::1]:3000", "https://*.example.com", "http://a:443"),
        *("app://obsidian.md", "chrome-extension://*", "tauri://localhost", "vscode-webview://*", "https://*.a:8443"),
    ],
)
def test_origins_may_have_wildcards(origin: str) -> None:
    assert load_settings({"cors_origin": [origin]}, {}).cors_origin == (origin,)
