"""GET /openapi.json says what the routes do, and GET /docs shows it without the internet."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.scripted_api import scripted_api

from motet.api.app import OPERATIONS, create_app
from motet.api.http.api_keys import key_line
from motet.api.http.auth import PUBLIC_PATHS
from motet.api.routes.openapi import openapi_document
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.openai_objects import ChatCompletion, Completion, ErrorBody, ModelList
from motet.api.schema.parsing import parse_chat, parse_completion
from motet.core.settings import Settings

DOCUMENT = openapi_document(OPERATIONS)
SCHEMAS = DOCUMENT["components"]["schemas"]


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def test_it_names_exactly_the_routes_there_are(tmp_path: Path) -> None:
    async def served() -> set[tuple[str, str]]:
        async with scripted_api(tmp_path) as api:
            return {
                (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
                for rule in create_app(api.services).url_map.iter_rules()
                for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
                if not rule.endpoint.startswith("not_offered.")  # they say only that there is nothing
            }

    documented = {(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert documented == asyncio.run(served())


def test_every_reference_leads_somewhere() -> None:
    references = {node["$ref"] for node in walk(DOCUMENT) if "$ref" in node}
    assert references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(SCHEMAS)


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_every_field_of_a_request_is_described(kind: type[msgspec.Struct]) -> None:
    properties = SCHEMAS[kind.__name__]["properties"]
    assert set(properties) == set(kind.__struct_fields__)
    assert [name for name, field in properties.items() if not field.get("description")] == []


@pytest.mark.parametrize(
    ("path", "parse"), [("/v1/chat/completions", parse_chat), ("/v1/completions", parse_completion)]
)
def test_the_examples_are_valid_requests(path: str, parse: Any) -> None:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert parse(content["example"]).ignored == ()
    name = content["schema"]["$ref"].rpartition("/")[2]
    for field, schema in SCHEMAS[name]["properties"].items():
        for example in schema.get("examples", ()):
            parse({**content["example"], **({"stream": True} if field == "stream_options" else {}), field: example})


def test_limits_in_the_document_are_the_limits_in_force() -> None:
    temperature = SCHEMAS["ChatRequest"]["properties"]["temperature"]["anyOf"][0]
    assert (temperature["minimum"], temperature["maximum"]) == (0, 2)
    assert SCHEMAS["ChatRequest"]["required"] == ["model", "messages"]
    assert SCHEMAS["CompletionRequest"]["required"] == ["model", "prompt"]


def test_answers_have_the_documented_fields(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_api(tmp_path) as api:
            client = create_app(api.services).test_client()
            messages = [{"role": "user", "content": "hi"}]
            for path, body, kind in (
                (
                    "/v1/chat/completions",
                    {"messages": messages, "logprobs": True, "return_token_ids": True},
                    ChatCompletion,
                ),
                ("/v1/completions", {"prompt": "hi", "logprobs": 1}, Completion),
                ("/v1/completions", {"prompt": 1}, ErrorBody),
            ):
                response = await client.post(path, json={"model": "", **body})
                answer = json.loads(await response.get_data())
                msgspec.convert(answer, kind)
                assert set(answer) == set(SCHEMAS[kind.__name__]["properties"])
                assert str(response.status_code) in DOCUMENT["paths"][path]["post"]["responses"]
            listed = json.loads(await (await client.get("/v1/models")).get_data())
            msgspec.convert(listed, ModelList)

    asyncio.run(main())


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_api(tmp_path) as api:
            client = create_app(api.services).test_client()
            served = await client.get("/openapi.json")
            assert json.loads(await served.get_data()) == json.loads(msgspec.json.encode(DOCUMENT))
            response = await client.get("/docs")
            page = (await response.get_data()).decode()
            assert response.content_type == "text/html; charset=utf-8"
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert not re.search(r"https?://|src=|@import|<link", page)
            assert 'fetch("openapi.json")' in page

    asyncio.run(main())


@pytest.mark.parametrize(("keys", "refused"), [(False, 403), (True, 401)])
def test_what_access_refuses_is_documented_for_every_route(tmp_path: Path, keys: bool, refused: int) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("alice", "sk-alice", False))

    def fits(answer: dict[str, Any], schema: dict[str, Any]) -> bool:
        kinds = [reference["$ref"].rpartition("/")[2] for reference in schema.get("anyOf", [schema])]
        return any(set(answer) == set(SCHEMAS[kind]["properties"]) for kind in kinds)

    async def main() -> None:
        async with scripted_api(tmp_path / "api", Settings(api_keys=str(file)) if keys else None) as api:
            client = create_app(api.services).test_client()
            for operation in OPERATIONS:
                path = re.sub(r"\{\w+\}", "x", operation.path)
                response = await client.open(path, method=operation.method.upper(), headers={"host": "evil.example"})
                documented = DOCUMENT["paths"][operation.path][operation.method]["responses"]
                if operation.method == "get" and operation.path in PUBLIC_PATHS:
                    assert response.status_code in (200, 503)
                    assert not {"401", "403"} & set(documented)
                    continue
                assert response.status_code == refused
                schema = documented[str(refused)]["content"]["application/json"]["schema"]
                assert fits(json.loads(await response.get_data()), schema), operation.path

    asyncio.run(main())


def test_every_body_may_come_too_slowly() -> None:
    operations = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert all(("408" in operation["responses"]) == ("requestBody" in operation) for operation in operations)


def test_generated_clients_have_names_and_know_where_a_key_goes() -> None:
    operations = [(path, method, entry) for path, ms in DOCUMENT["paths"].items() for method, entry in ms.items()]
    names = [entry["operationId"] for _, _, entry in operations]
    assert len(set(names)) == len(names)
    assert {"post_v1_chat_completions", "get_v1_models_model", "post_root"} <= set(names)
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert [name for entry in DOCUMENT["security"] for name in entry] == list(schemes)
    assert {} in DOCUMENT["security"]  # a server may have no keys
    opened = {path for path, method, entry in operations if entry.get("security") == []}
    assert opened == set(PUBLIC_PATHS)


def test_what_can_be_tried_again_says_when() -> None:
    for operation in (entry for path in DOCUMENT["paths"].values() for entry in path.values()):
        for status, answer in operation["responses"].items():
            assert ("retry-after" in answer["headers"]) == (status in ("429", "503"))
