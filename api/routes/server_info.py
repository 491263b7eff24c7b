"""GET /version and GET /tokenizer_info, in vLLM's shapes."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import msgspec
from msgspec import Meta
from quart import Blueprint, Response

from motet.api.generating.chat_template_choice import find_template
from motet.api.http.json_response import json_response
from motet.api.schema.operations import Operation
from motet.api.services import Services
from motet.core.errors import InvalidRequest


class ServerVersion(msgspec.Struct, frozen=True):
    """Motet's version."""

    version: str


class TokenizerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The base model's tokenizer; lm-eval's remote tokenizer reads it, and uses /tokenize and /detokenize."""

    tokenizer_class: Annotated[str, Meta(description="The class of transformers that loads a tokenizer.json.")] = (
        "PreTrainedTokenizerFast"
    )
    model_max_length: Annotated[int, Meta(description="The context, in tokens.")]
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    chat_template: str | None


OPERATIONS = (
    Operation("get", "/version", "The server's version", "server", ServerVersion),
    Operation("get", "/tokenizer_info", "The base model's tokenizer", "server", TokenizerInfo, statuses=(503,)),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("server_info", __name__)

    @blueprint.get("/version")
    async def server_version() -> Response:
        return json_response(ServerVersion(version("motet")))

    @blueprint.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        tokens = services.tokenizer.special_tokens
        info = TokenizerInfo(
            model_max_length=services.model().max_context,
            bos_token=tokens.get("bos_token"),
            eos_token=tokens.get("eos_token"),
            unk_token=tokens.get("unk_token"),
            pad_token=tokens.get("pad_token"),
            chat_template=await _template(services),
        )
        return json_response(info)

    return blueprint


async def _template(services: Services) -> str | None:
    try:
        return (await find_template(services, None)).text
    except InvalidRequest:
        return None
