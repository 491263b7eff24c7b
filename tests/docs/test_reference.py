"""The reference pages' tables match the code: settings, fields, errors, limits, PEFT's config, messages."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping

import msgspec
import pytest
from docs.pages import ROOT, read, section, table
from openai.types import BatchCreateParams, EmbeddingCreateParams
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params
from prometheus_client import REGISTRY

from motet.api import grammar_checker as grammar
from motet.api.adapters import load_log
from motet.api.adapters.names import MAX_NAME
from motet.api.app import OPERATIONS
from motet.api.batches.objects import BatchRequest
from motet.api.generating import request_params as params
from motet.api.generating.prompts import MAX_TRUNCATED_CHARACTERS
from motet.api.lorax import tokens as lorax_tokens
from motet.api.lorax.requests import GenerateParameters
from motet.api.metrics.engine_metrics import EngineCollector
from motet.api.responses.conversations import MAX_CONVERSATION_BYTES
from motet.api.responses.requests import ResponseRequest
from motet.api.responses.store import MAX_STORED_BYTES
from motet.api.routes import embeddings
from motet.api.routes.embeddings import EmbeddingRequest
from motet.api.routes.openapi import openapi_document
from motet.api.schema import chat_messages, chat_request, chat_tools, completion_request, parsing, request_fields
from motet.api.schema import unsupported_fields as unsupported
from motet.core import chat_template as templates
from motet.core import error_codes, errors
from motet.core import sampling_params as sampling
from motet.core.messages import AdapterUse, EngineStats
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings, flag
from motet.engine import engine_core as core
from motet.engine.adapters import unsupported_features
from motet.engine.client import template_renderer, template_worker
from motet.plugins.output_formats import MAX_OPTIONS, MAX_SCHEMA_BYTES


def words(cell: str) -> list[str]:
    """The texts between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def shown_default(setting: dataclasses.Field[object]) -> str:
    """A default as the settings page writes it."""
    empty = setting.default in ("", dataclasses.MISSING)
    return "" if empty else f"`{setting.default}`"


def test_settings_page_matches_the_settings() -> None:
    expected = [
        [f"`{flag(s.name)}`", f"`MOTET_{s.name.upper()}`", f"`{s.name}`", shown_default(s)]
        for s in dataclasses.fields(Settings)
    ]
    assert [row[:4] for row in table(read("docs/settings.md"))] == expected


def test_settings_page_gives_choices_and_limits() -> None:
    meanings = {row[2].strip("`"): row[4] for row in table(read("docs/settings.md"))}
    missing = []
    for setting in dataclasses.fields(Settings):
        meaning = meanings[setting.name]
        missing += [f"{setting.name}: {c}" for c in setting.metadata.get("choices", ()) if f"`{c}`" not in meaning]
        if setting.metadata.get("low") and "high" in setting.metadata:
            limits = f"{setting.metadata['low']} to {setting.metadata['high']}"
            missing += [] if limits in meaning else [f"{setting.name}: {limits}"]
    assert missing == []


def test_api_page_has_every_route() -> None:
    routes = [f"{m.upper()} {path}" for path, methods in openapi_document(OPERATIONS)["paths"].items() for m in methods]
    assert [words(row[0])[0] for row in table(section("docs/api.md", "Routes"))] == routes


SURFACES: dict[str, tuple[type[msgspec.Struct], Mapping[str, object]]] = {
    "chat": (chat_request.ChatRequest, unsupported.CHAT),
    "completions": (completion_request.CompletionRequest, unsupported.COMPLETIONS),
    "responses": (ResponseRequest, unsupported.RESPONSES),
    "embeddings": (EmbeddingRequest, unsupported.EMBEDDINGS),
    "batches": (BatchRequest, {}),
}
SDK = {
    "chat": chat_params.CompletionCreateParamsBase,
    "completions": completion_params.CompletionCreateParamsBase,
    "responses": response_params.ResponseCreateParamsBase,
    "embeddings": EmbeddingCreateParams,
    "batches": BatchCreateParams,
}


OWN_METRICS = ("motet_", "vllm:")


def test_api_page_has_every_metric() -> None:
    engine = EngineCollector(EngineStats(0, 0, 1, 1, 0, 0, 0, 0), AdapterUse())
    loads = [family for metric in (load_log.STAGE_SECONDS, load_log.FAILURES) for family in metric.collect()]
    known = {family.name: family for family in (*REGISTRY.collect(), *loads, *engine.collect())}
    families = [family for name, family in known.items() if name.startswith(OWN_METRICS)]
    suffixes = {"counter": "_total", "info": "_info"}
    expected = sorted(family.name + suffixes.get(family.type, "") for family in families)
    assert sorted(name for row in table(section("docs/api.md", "Metrics")) for name in words(row[0])) == expected


def field_rows() -> dict[str, list[str]]:
    """The rows of the page on OpenAI's fields, by field."""
    rows = table(section("docs/openai.md", "Fields"))
    assert len({row[0] for row in rows}) == len(rows), "one row a field"
    return {row[0].strip("`"): row for row in rows}


def test_openai_page_has_every_supported_field() -> None:
    known: dict[str, list[str]] = {}
    for surface, (kind, refused) in SURFACES.items():
        for name in {*kind.__struct_fields__, *refused}:
            known.setdefault(name, []).append(surface)
    assert {name: row[1].split(", ") for name, row in field_rows().items()} == known


def test_openai_page_says_which_fields_are_refused() -> None:
    """If a field causes a 400, on all or on some routes, its row says so."""
    wrong = []
    for name, row in field_rows().items():
        refused = [s for s, (kind, table) in SURFACES.items() if name in table and name not in kind.__struct_fields__]
        taken = [s for s, (kind, _) in SURFACES.items() if name in kind.__struct_fields__]
        if refused and not taken and not row[2].startswith("a 400"):
            wrong.append(name)
        if refused and taken and f"{', '.join(refused).capitalize()}: a 400" not in row[2]:
            wrong.append(name)
        if not refused and row[2].startswith("a 400"):
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("surface", SDK)
def test_every_field_of_the_openai_package_is_known(surface: str) -> None:
    kind, refused = SURFACES[surface]
    assert set(SDK[surface].__annotations__) - {*kind.__struct_fields__, *refused} == set()


def test_lorax_page_has_every_parameter_and_route() -> None:
    page = read("docs/lorax.md")
    named = set(words(page[page.index("Every parameter") : page.index("As in LoRAX")]))
    assert named == set(GenerateParameters.__struct_fields__)
    routes = {word for row in table(page)[:9] for word in words(row[0])}
    ours = {f"{o.method.upper()} {o.path}" for o in OPERATIONS if o.tag in ("lorax", "tokens")}
    assert routes == ours | {"GET /health", "GET /metrics"}


def test_every_tool_parser_and_format_is_named() -> None:
    plugins = PluginRegistry.load(installed=False)
    page = read("docs/openai.md")
    for names in (plugins.tool_parsers.items, plugins.output_formats.items):
        assert [name for name in names if f"`{name}`" not in page] == []


def error_kinds(root: type[errors.MotetError]) -> Iterator[type[errors.MotetError]]:
    """`root` and everything below it."""
    yield root
    for kind in root.__subclasses__():
        yield from error_kinds(kind)


def test_api_page_has_every_kind_of_error() -> None:
    kinds = {(str(k.status), k.code, k.type) for k in error_kinds(errors.MotetError) if k.code != "startup_error"}
    rows = table(section("docs/api.md", "Errors"))
    assert {(row[0], row[1].strip("`"), row[2].strip("`")) for row in rows} == kinds


def test_api_page_has_every_exact_code() -> None:
    declared = {value for name, value in vars(error_codes).items() if name.isupper()}
    page = section("docs/api.md", "Errors")
    exact = {code for row in table(page.partition("More exact codes")[2]) for code in words(row[1])}
    kinds = {kind.code for kind in error_kinds(errors.MotetError)}
    assert exact == declared - kinds - {error_codes.ALREADY_REPORTED}


LIMITS = {
    "lists and objects, and values, in one body": f"{parsing.MAX_CONTAINERS}, {parsing.MAX_VALUES}",
    "choices in one request (prompts × `n`)": f"{request_fields.MAX_CHOICES}",
    "stop strings": f"{request_fields.MAX_STOP_STRINGS} of {request_fields.MAX_STOP_CHARACTERS} characters",
    "stop token ids": f"{request_fields.MAX_STOP_TOKEN_IDS}",
    "messages": f"{chat_messages.MAX_MESSAGES}",
    "content parts and tool calls of all messages": f"{chat_messages.MAX_CONTENT_PARTS}",
    "tools in one request": f"{chat_tools.MAX_TOOLS}",
    "characters of a custom tool's grammar": f"{chat_tools.MAX_TOOL_GRAMMAR_CHARACTERS}",
    "entries of `choice` in a `response_format`": f"{MAX_OPTIONS}",
    "`documents`, and variables in `chat_template_kwargs`": f"{chat_request.MAX_DOCUMENTS}, "
    f"{chat_request.MAX_TEMPLATE_VARIABLES}",
    "entries in `logit_bias`": f"{sampling.MAX_LOGIT_BIAS}",
    "`top_logprobs`": f"{sampling.MAX_TOP_LOGPROBS}",
    "logprobs in an answer that is not streamed, or in an echo, alternatives included": f"{params.MAX_LOGPROBS}",
    "characters of a model's name": f"{MAX_NAME}",
    "characters of a grammar, and seconds to compile it": f"{grammar.MAX_GRAMMAR_CHARACTERS}, {grammar.MAX_SECONDS:g}",
    "bytes of a JSON schema": f"{MAX_SCHEMA_BYTES}",
    "bytes of a chat template, and seconds to render it": f"{templates.MAX_TEMPLATE_BYTES}, "
    f"{template_renderer._SECONDS:g}",
    "bytes of a rendered prompt": f"{template_worker.MAX_OUTPUT_BYTES}",
    "characters of a prompt with `truncate_prompt_tokens`": f"{MAX_TRUNCATED_CHARACTERS}",
    "inputs of an embeddings request, and their tokens": f"{embeddings.MAX_INPUTS}, {embeddings.MAX_INPUT_TOKENS}",
    "characters and tokens that `/tokenize` and `/detokenize` take": f"{lorax_tokens.MAX_CHARACTERS}, "
    f"{lorax_tokens.MAX_TOKENS}",
    "bytes of a stored response, and of the items of all those that one continues": f"{MAX_STORED_BYTES}, "
    f"{MAX_CONVERSATION_BYTES}",
    "sequences that wait for the engine": f"{core.MAX_WAITING}",
    "sequences of one API key, while as many wait": f"{core.MAX_PER_OWNER}",
}


def test_api_page_gives_the_limits() -> None:
    assert dict(table(section("docs/api.md", "Limits"))) == LIMITS


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("**Neutral**", unsupported_features.NEUTRAL),
        ("**Honoured**", unsupported_features.SUPPORTED),
        ("**Refused**", unsupported_features.UNSUPPORTED),
    ],
)
def test_adapters_page_matches_pefts_fields(title: str, fields: set[str]) -> None:
    page = section("docs/adapters.md", "PEFT's config, field by field")
    rows = table(page[page.index(title) :])
    assert [row[0].strip("`") for row in rows] == sorted(fields, key=[row[0].strip("`") for row in rows].index)
    assert len(rows) == len(fields)


def messages() -> str:
    """Every string constant of the sources, one per line; each interpolated value is written as …."""
    texts = []
    for folder in ("core", "plugins", "engine", "api"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_troubleshooting_quotes_real_messages() -> None:
    known = messages()
    not_in_code = []
    for row in table(read("docs/troubleshooting.md")):
        not_in_code += [piece for piece in words(row[0])[0].split("…") if piece.strip() not in known]
    assert not_in_code == []
