"""Where people keep adapters, and their tokenizers, names and new weights: one case per public report."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save, save_file
from support.adapter_forms import FILE
from support.adapter_tokenizers import write_config, write_renamed
from support.fake_hub import Hub
from support.fake_hub_registry import HubRegistry
from support.scripted_registry import failure, until
from transformers import AutoModel, PreTrainedTokenizerFast
from wild.adapters import CONFIG, PROMPT, AdapterServer

from motet.core.adapter_source import AdapterRef
from motet.core.errors import Unavailable

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hi there"}]


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def server(adapter_server: AdapterServer) -> AdapterServer:
    return adapter_server


@pytest.fixture
def hub(server: AdapterServer) -> Iterator[Hub]:
    """The server's hub; its faults are reset afterwards."""
    server.hub.requests.clear()
    yield server.hub
    server.hub.failing, server.hub.delay = None, 0.0


def heads(hub: Hub) -> int:
    return hub.count("HEAD", CONFIG)


# The hub fails while its adapters are loaded.


@pytest.mark.parametrize("trouble", ["429", "500", "503", "slow"])
def test_hub_trouble_and_a_loaded_adapter(server: AdapterServer, hub: Hub, trouble: str) -> None:
    """huggingface_hub#3312, lorax#430, sglang PR 17248: it is served without a hub request for each of ours."""
    name = f"org/loaded-{trouble}"
    commit = hub.add(name, files_of(server.forms.plain)).commit
    for _ in range(20):
        assert server.complete(name, max_tokens=1).status_code == 200
    assert heads(hub) == 1
    pinned = f"{name}@{commit}"
    for _ in range(11):
        assert server.complete(pinned, max_tokens=1).status_code == 200
    assert heads(hub) <= 2
    hub.requests.clear()
    if trouble == "slow":
        hub.delay = 30
    else:
        hub.failing = int(trouble)
        assert server.complete("org/unknown").status_code == 503
    for model in (name, pinned):
        server.assert_served(model, server.forms.plain)
    assert hub.count("HEAD", f"/{name}/resolve/main/{CONFIG}") == 0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_hub_trouble_for_longer_than_a_permission_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    good = AdapterRef("hub", "org/good")

    async def body(hub: Hub) -> None:
        async with HubRegistry(tmp_path) as registry:
            await registry.serve(good)
            registry.now, hub.failing = 3600.0, status
            for _ in range(20):
                assert await registry.serve(good, "hf_anybody")
            async with asyncio.timeout(20):
                await until(lambda: heads(hub) == 2)  # one more request to the hub, in the background
            assert isinstance(await failure(registry.serve(AdapterRef("hub", "org/cold"))), Unavailable)

    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add("org/good", {CONFIG: b"{}", FILE: b"weights"})
        asyncio.run(body(hub))


def test_offline_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE=1: adapters on disk are served; others are a 404, which SDKs do not retry."""

    async def serve(name: str) -> str:
        async with HubRegistry(tmp_path) as registry:
            return await registry.serve(AdapterRef("hub", name))

    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add("org/good", {CONFIG: b"{}", FILE: b"weights"})
        asyncio.run(serve("org/good"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert asyncio.run(serve("org/good")) == "{}"
    error = asyncio.run(failure(serve("org/unknown")))
    assert (error.status, error.code) == (404, "source_offline")


# Repositories of the hub.


def test_adapter_and_full_model_in_one_repository(server: AdapterServer, hub: Hub) -> None:
    """unsloth#1061, vllm#10798: only the adapter's files are fetched."""
    model = {"config.json": b"{}", "model.safetensors": b"x" * 1000, "pytorch_model.bin": b"x"}
    hub.add("org/both", {**files_of(server.forms.plain), **model})
    server.assert_served("org/both", server.forms.plain)
    fetched = {path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {CONFIG, FILE}


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        (
            "pickled",
            {CONFIG: b"{}", "adapter_model.bin": b"\x80"},
            "adapter_model.bin is not supported, since unpickling",
        ),
        ("mlx", {CONFIG: b"{}", "adapters.safetensors": b"x"}, "MLX's adapters file; convert it to PEFT's format"),
        ("shards", {CONFIG: b"{}", "adapter_model-00001-of-00002.safetensors": b"x"}, "split over 2 files"),
        ("sub-directory", {f"checkpoint-500/{CONFIG}": b"{}"}, "it has no adapter_config.json"),
    ],
)
def test_other_repositories(server: AdapterServer, hub: Hub, name: str, files: dict[str, bytes], words: str) -> None:
    """.bin on the hub; mlx-lm#1119; PEFT PR 1717, whose sub-directories of a repository cannot be named."""
    hub.add(f"org/{name}", files)
    assert words in server.refusal(f"org/{name}")


def test_a_private_adapter_and_the_operators_token(server: AdapterServer, hub: Hub) -> None:
    """lorax#541: callers do not use the server's HF_TOKEN, but their own token."""
    hub.add("org/private", files_of(server.forms.plain), tokens=["hf_operator", "hf_caller"])
    message = server.refusal("org/private", 404)
    assert (
        "private; if it is private, send a hub token as api_token in the body or as the header x-adapter-token"
        in message
    )
    assert server.complete("org/private", api_token="hf_caller").status_code == 200
    assert server.complete("org/private").status_code == 404


# An adapter's own tokenizer and end of text.


def test_renamed_chat_tokens(server: AdapterServer) -> None:
    """unsloth#350, vllm#3404: prompts have the adapter's tokens, as with its own tokenizer in transformers."""
    users = {256: "<|user|>", 257: "<|assistant|>"}
    directory = server.forms.changed(lambda tensors: tensors, "renamed")
    write_renamed(server.forms.model, directory, users, {"eos_token": None})
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    expected = theirs.apply_chat_template(MESSAGES, chat_template=TEMPLATE, add_generation_prompt=True)["input_ids"]
    assert len(expected) == len("hi there") + 2
    body = {"model": "local:renamed", "messages": MESSAGES}
    assert server.post("/tokenize", body).json()["tokens"] == expected
    answer = server.post("/v1/chat/completions", {**body, "max_tokens": 1, "return_token_ids": True}).json()
    assert answer["usage"]["prompt_tokens"] == len(expected)
    ids = answer.get("prompt_token_ids") or answer["choices"][0]["prompt_token_ids"]
    assert ids == expected


def test_a_token_beyond_the_vocabulary(server: AdapterServer) -> None:
    directory = server.forms.changed(lambda tensors: tensors, "beyond")
    write_renamed(server.forms.model, directory, {258: "<|fits|>", 259: "<|tool|>"})
    assert "adds the token '<|tool|>' with id 259, and the base model has ids 0 to 258" in server.refusal(
        "local:beyond"
    )


def test_added_tokens_that_are_the_bases(server: AdapterServer) -> None:
    """sglang PR 17905."""
    directory = server.forms.changed(lambda tensors: tensors, "same-tokens")
    write_renamed(server.forms.model, directory, {})
    (directory / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 256, "<|im_end|>": 257}))
    server.assert_served("local:same-tokens", directory)


def test_an_end_of_text_of_its_own(server: AdapterServer) -> None:
    """LlamaFactory#7943 #7454, Qwen3#1064: eos_token in tokenizer_config.json ends the adapter's answers alone."""
    directory = server.forms.changed(lambda tensors: tensors, "own-end")
    write_config(server.forms.model, directory, eos_token="<|im_start|>")
    for model, finish, count in (("local:own-end", "stop", 1), ("local:plain", "length", 10)):
        asked = {"logit_bias": {"256": 100}, "max_tokens": 10, "ignore_eos": False}
        answer = server.complete(model, **asked).json()
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == (finish, count)


# Adapters of embedding models.


def test_an_adapter_of_a_headless_model(server: AdapterServer) -> None:
    """vllm#30058, vllm PR 14935, tevatron#108, sie#193: PEFT on AutoModel writes base_model.model.layers."""
    directory = server.root / "feature-extraction"
    base = AutoModel.from_pretrained(server.forms.model, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="FEATURE_EXTRACTION")
    model = get_peft_model(base, config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.5)
        expected = model(input_ids=torch.tensor([PROMPT])).last_hidden_state[0, -1]
    model.save_pretrained(str(directory))
    assert all(name.startswith("base_model.model.layers.") for name in load_file(directory / FILE))

    def cosine(name: str) -> float:
        answer = server.post("/v1/embeddings", {"model": name, "input": PROMPT}).json()
        return float(torch.cosine_similarity(torch.tensor(answer["data"][0]["embedding"]), expected, dim=0))

    assert cosine("local:feature-extraction") > 0.99999
    assert cosine("") < 0.9, "the adapter matters"


# Names.

NAMES = ["v1.5", "a:b", "a b", "a#b", "who?", "🙂", "海盗", "name@v2", "run1/checkpoint-500"]


@pytest.fixture(scope="module")
def named(adapter_server: AdapterServer) -> AdapterServer:
    """A server that lists the plain adapter under all NAMES."""
    for name in NAMES:
        (adapter_server.root / name).parent.mkdir(exist_ok=True)
        adapter_server.forms.changed(lambda tensors: tensors, name)
    adapter_server.wait_listed(*(f"local:{name}" for name in NAMES))
    return adapter_server


@pytest.mark.parametrize("name", NAMES)
def test_names(named: AdapterServer, name: str) -> None:
    """sie#193, inspect_ai PR 3995, sglang#12745; trainer checkpoints: every listed name works in every route."""
    named.assert_served(f"local:{name}", named.forms.plain)
    body = {"inputs": "hi", "parameters": {"adapter_id": name, "adapter_source": "local", "max_new_tokens": 1}}
    assert named.post("/generate", body).status_code == 200
    found = named.client.get(f"/v1/models/{quote(f'local:{name}', safe='')}")
    assert (found.status_code, found.json()["id"]) == (200, f"local:{name}")
    if "/" not in name:
        assert named.complete(name, max_tokens=1).status_code == 200


def test_demo_adapters_of_another_base(server: AdapterServer) -> None:
    assert not [name for name in server.listed() if name.startswith("demo:")]


# Links, hub caches, paths.


def test_kubernetes_data_links(server: AdapterServer) -> None:
    mount = server.root / "mounted"
    directory = server.forms.changed(lambda tensors: tensors, "mounted/..2026_01_01")
    (mount / "..data").symlink_to(directory.name)
    for file in files_of(directory):
        (mount / file).symlink_to(Path("..data") / file)
    server.assert_served("local:mounted", server.forms.plain)
    server.wait_listed("local:mounted")


def test_a_snapshot_of_the_hubs_cache(server: AdapterServer) -> None:
    """llmos#41, lorax#14, mellea#1492, thenoise#3: its files are links into blobs/."""
    home = server.hub_cache / "models--org--sql-lora"
    snapshot = home / "snapshots" / ("c" * 40)
    for directory in (home / "blobs", home / "refs", snapshot):
        directory.mkdir(parents=True)
    (home / "refs" / "main").write_text(snapshot.name)
    for number, (name, content) in enumerate(files_of(server.forms.plain).items()):
        (home / "blobs" / str(number)).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    server.assert_served("local:org/sql-lora", server.forms.plain)
    server.assert_served(f"local:{snapshot.relative_to(server.hub_cache)}", server.forms.plain)
    (server.root / "linked").symlink_to(snapshot)
    server.assert_served("local:linked", server.forms.plain)
    server.wait_listed("local:org/sql-lora", "local:linked")


def test_a_link_out_of_the_roots(server: AdapterServer, tmp_path: Path) -> None:
    shutil.copytree(server.forms.plain, tmp_path / "elsewhere")
    (server.root / "out").symlink_to(tmp_path / "elsewhere")
    assert "out is a link that leads out of the adapter roots; --follow-links" in server.refusal("local:out", 404)
    (server.root / "of-links").mkdir()
    for name in (CONFIG, FILE):
        (server.root / "of-links" / name).symlink_to(tmp_path / "elsewhere" / name)
    message = server.refusal("local:of-links")
    assert f"{CONFIG} of of-links is a link that leads out of the adapter roots; --follow-links" in message


def test_an_absolute_path(server: AdapterServer, tmp_path: Path) -> None:
    """lorax#51, TGI#2143: inside a root it is served; outside, the error names the flag."""
    for path, status in ((server.forms.plain, 200), (tmp_path, 424)):
        parameters = {"adapter_id": str(path), "adapter_source": "local", "max_new_tokens": 1}
        response = server.post("/generate", {"inputs": "hi", "parameters": parameters})
        assert response.status_code == status, response.text
        assert status == 200 or "not inside any --adapter-root directory of the server" in response.text


def test_checkpoints_below_a_directory(server: AdapterServer) -> None:
    (server.root / "run2").mkdir()
    server.forms.changed(lambda tensors: tensors, "run2/checkpoint-500")
    message = server.refusal("local:run2", 404)
    assert "'run2' has no adapter_config.json; adapters below it: checkpoint-500" in message


# New weights under an old name; warnings; LoRAX's routes.


def weights_of(server: AdapterServer, seed: int) -> dict[str, torch.Tensor]:
    """Other weights of the plain adapter's shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(server.forms.plain / FILE).items()
    }


def test_saved_again_under_one_name(server: AdapterServer) -> None:
    """vllm#42125, SkyRL PR 1606: the next request has the new weights, also with the same size and time."""
    directory = server.forms.changed(lambda tensors: weights_of(server, 1), "again")
    server.assert_served("local:again", directory)
    times = (directory / FILE).stat()
    save_file(weights_of(server, 2), directory / FILE)
    os.utime(directory / FILE, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (directory / FILE).stat().st_size == times.st_size
    server.assert_served("local:again", directory)


def test_overwritten_under_load(server: AdapterServer) -> None:
    """Weights rewritten in place: the last valid version is served, and every error is one that SDKs retry."""
    directory = server.forms.changed(lambda tensors: weights_of(server, 1), "busy")
    contents = [save(weights_of(server, seed)) for seed in (1, 2)]
    assert server.complete("local:busy").status_code == 200
    done = threading.Event()

    def rewrite() -> None:
        while not done.is_set():
            for content in contents:
                with (directory / FILE).open("r+b", buffering=0) as file:
                    file.truncate(0)
                    for start in range(0, len(content), 4096):
                        file.write(content[start : start + 4096])
                        done.wait(0.002)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        responses = [server.complete("local:busy") for _ in range(30)]
    finally:
        done.set()
        writer.join()
    assert {response.status_code for response in responses} <= {200, 503}
    assert all("retry-after" in response.headers for response in responses if response.status_code == 503)
    chosen = {tuple(r.json()["choices"][0]["token_ids"]) for r in responses if r.status_code == 200}
    assert 1 <= len(chosen) <= 2, "no answer has a mixture of the two"


def test_an_adapter_that_names_another_base(server: AdapterServer) -> None:
    """vllm#12106: it is served, with one warning in the log."""
    server.forms.changed(lambda tensors: tensors, "other-base", base_model_name_or_path="org/Other-7B")
    for _ in range(3):
        server.assert_served("local:other-base", server.forms.plain)
    lines = [line for line in server.server.log.read_text().splitlines() if "org/Other-7B" in line]
    assert len(lines) == 1
    assert "local:other-base" in lines[0]
    assert "the served model is tiny; if they differ, its answers will be wrong" in lines[0]


def test_refusals_on_lorax_routes(server: AdapterServer) -> None:
    server.forms.changed(lambda tensors: tensors, "refused", use_qalora=True)
    parameters = {"adapter_id": "refused", "adapter_source": "local", "max_new_tokens": 1}
    response = server.post("/generate", {"inputs": "hi", "parameters": parameters})
    assert response.status_code == 424
    assert "use_qalora = True: QA-LoRA is not supported" in response.text
    lines = [line for line in server.server.log.read_text().splitlines() if "local:refused" in line]
    assert any("use_qalora" in line for line in lines), "every refused load is logged"
