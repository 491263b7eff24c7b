"""An adapter with tokens of its own: every route uses them, and requests for the base model do not."""

from __future__ import annotations

from pathlib import Path

from support.adapter_tokenizers import write_config, write_renamed
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive
from support.lorax_calls import post

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>{{ eos_token }}"
USERS = {256: "<|user|>", 257: "<|assistant|>"}
ONE = "shelf:one"


def adapter(root: Path) -> Path:
    """Adapter `one`, which calls the base's <|im_start|> <|user|> and its <|im_end|> <|assistant|>."""
    directory = write_renamed(root / "model", root / "shelf" / "one", USERS, {"eos_token": None})
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def test_prompts_of_every_route(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        adapter(tmp_path)
        h, i = caller.api.services.tokenizer.encode("hi", add_special_tokens=False)
        prompt = (256, h, i, 257)
        chat = await caller.answer(CHAT, {"model": ONE, "messages": MESSAGES})
        assert chat["system_fingerprint"] == caller.api.services.fingerprint, "it is the server's, not the adapter's"
        assert caller.api.engine.submits[-1].prompt == prompt
        await caller.answer("/v1/responses", {"model": ONE, "input": "hi", "store": False})
        assert caller.api.engine.submits[-1].prompt == prompt
        text = "<|user|>hi<|assistant|>"
        await caller.answer(COMPLETIONS, {"model": ONE, "prompt": text})
        assert caller.api.engine.submits[-1].prompt == prompt
        await caller.answer("/v1/embeddings", {"model": ONE, "input": text})
        assert caller.api.engine.submits[-1].prompt == prompt
        _, listed, _ = await post(caller, "/tokenize", {"model": ONE, "messages": MESSAGES, "return_token_strs": True})
        assert (listed["tokens"], "".join(listed["token_strs"])) == (list(prompt), text)
        _, spans, _ = await post(caller, "/tokenize", {"model": ONE, "inputs": text})
        assert [span["id"] for span in spans] == list(prompt)
        assert (await post(caller, "/detokenize", {"model": ONE, "tokens": list(prompt)}))[1] == {"prompt": text}
        body = {"model": ONE, "max_tokens": 5, "messages": MESSAGES}
        await caller.answer("/v1/messages", body)
        assert caller.api.engine.submits[-1].prompt == prompt
        counted = await caller.answer("/v1/messages/count_tokens", {"model": ONE, "messages": MESSAGES})
        assert counted == {"input_tokens": 4}
        parameters = {"adapter_id": "one", "adapter_source": "shelf", "apply_chat_template": True, "max_new_tokens": 1}
        await post(caller, "/generate", {"inputs": "hi", "parameters": parameters})
        assert caller.api.engine.submits[-1].prompt == prompt
        for raw, given in ((True, text), (False, "hi")):
            await caller.answer("/api/generate", {"model": ONE, "prompt": given, "raw": raw, "stream": False})
            assert caller.api.engine.submits[-1].prompt == prompt
        assert len((await post(caller, "/tokenize", {"prompt": text}))[1]["tokens"]) == len(text)  # the base's

    drive(tmp_path, scenario)


def test_answers_and_stops(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        adapter(tmp_path)
        caller.api.engine.script = lambda request: "ab<|im_start|>cd"
        body = {"model": ONE, "messages": MESSAGES, "logprobs": True}
        [choice] = (await caller.answer(CHAT, body))["choices"]
        assert choice["message"]["content"] == "abcd"
        assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a", "b", "<|user|>", "c", "d"]
        [choice] = (await caller.answer(CHAT, {**body, "stop": "<|user|>"}))["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("ab", "stop")
        [choice] = (await caller.answer(CHAT, {**body, "model": "", "stop": "<|user|>"}))["choices"]
        assert choice["message"]["content"] == "abcd"

    drive(tmp_path, scenario)


def test_its_end_token_ends_its_answers(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        write_config(tmp_path / "model", tmp_path / "shelf" / "one", eos_token="<|im_start|>")
        write_renamed(tmp_path / "model", tmp_path / "shelf" / "two", {256: "<end>"}, {"eos_token": "<end>"})
        for name in (ONE, "shelf:two"):
            await caller.answer(COMPLETIONS, {"model": name, "prompt": "x"})
            assert caller.api.engine.submits[-1].params.eos_token_ids == (7, 256, 257)
        await caller.answer(COMPLETIONS, {"prompt": "x"})
        assert caller.api.engine.submits[-1].params.eos_token_ids == (257,)

    drive(tmp_path, scenario)


def test_grammars_where_tokens_of_text_were_renamed(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        adapter(tmp_path)
        body = {"model": ONE, "messages": MESSAGES, "response_format": {"type": "json_object"}}
        await caller.answer(CHAT, body)  # no text is written with <|im_start|>
        listed = {"70": {"content": "<x>"}}
        write_config(tmp_path / "model", tmp_path / "shelf" / "two", added_tokens_decoder=listed)
        code = await caller.error(CHAT, {**body, "model": "shelf:two"})
        assert code == (400, "unsupported_parameter", "response_format")
        await caller.answer(CHAT, {"model": "shelf:two", "messages": MESSAGES})

    drive(tmp_path, scenario)


def test_a_token_that_the_model_lacks(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        write_renamed(tmp_path / "model", tmp_path / "shelf" / "one", {258: "<|tool|>"})
        response = await caller.post(CHAT, {"model": ONE, "messages": MESSAGES})
        error = (await response.get_json())["error"]
        assert (response.status_code, error["param"]) == (422, "model")
        assert "'<|tool|>' with id 258" in error["message"]

    drive(tmp_path, scenario)
