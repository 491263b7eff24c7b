"""The version, the tokenizer's facts, and the paths of health probes."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from support.api_caller import Caller, drive
from support.scripted_api import CONTEXT, TEMPLATE

from motet.api.http.api_keys import key_line
from motet.api.routes.health import HEALTH_PATHS, LIVE_PATHS, READY_PATHS
from motet.core.settings import Settings


def test_version_and_tokenizer(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        assert await (await caller.client.get("/version")).get_json() == {"version": version("motet")}
        assert await (await caller.client.get("/tokenizer_info")).get_json() == {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "unk_token": None,
            "pad_token": None,
            "chat_template": TEMPLATE,
        }

    drive(tmp_path, scenario)


def test_a_model_without_a_template_has_none(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        assert (await (await caller.client.get("/tokenizer_info")).get_json())["chat_template"] is None

    drive(tmp_path, scenario, template=None)


def test_probes_need_no_key_under_any_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("alice", "sk-alice", False))

    async def scenario(caller: Caller) -> None:
        for paths in (HEALTH_PATHS, READY_PATHS, LIVE_PATHS):
            answers = [await (await caller.client.get(path)).get_json() for path in paths]
            assert all(answer == answers[0] for answer in answers)
            assert answers[0]["status"] == "ok"
        caller.api.engine.ready = False
        statuses = [(await caller.client.get(path)).status_code for path in (*HEALTH_PATHS, *READY_PATHS, *LIVE_PATHS)]
        assert statuses == [503] * (len(HEALTH_PATHS) + len(READY_PATHS)) + [200] * len(LIVE_PATHS)

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file)))
