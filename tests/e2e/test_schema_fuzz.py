"""Valid and invalid requests generated from /openapi.json: a real server never answers 5xx or undocumented shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.server import serving
from support.tiny_chat_model import write_chat_model

from motet.api.app import OPERATIONS

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ROUTES = [(operation.method, operation.path) for operation in OPERATIONS]
FEW, MANY = 300, 10_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    """The OpenAPI schema of a server with a tiny model."""
    model = write_chat_model(tmp_path_factory.mktemp("tiny") / "model")
    with serving("--model", str(model), "--max-context", "128") as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def fuzz(schema: schemathesis.BaseSchema, method: str, path: str, cases: int) -> None:
    """`cases` requests to one route, two thirds of them valid."""
    operation = schema[path][method]
    kinds = [operation.as_strategy(mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(kinds[0], *kinds))
    def ask(case: Case) -> None:
        response = case.call(timeout=60)
        case.validate_response(response, checks=CHECKS)

    ask()


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[f"{method} {path}" for method, path in ROUTES])
def test_a_few_requests(tiny: schemathesis.BaseSchema, method: str, path: str) -> None:
    fuzz(tiny, method, path, -(-FEW // len(ROUTES)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[f"{method} {path}" for method, path in ROUTES])
def test_many_requests(tiny: schemathesis.BaseSchema, method: str, path: str) -> None:
    fuzz(tiny, method, path, -(-MANY // len(ROUTES)))
