"""Grammars on the real tokenizer: whatever is drawn from the allowed ids, what comes out is of the language."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.scripted_api import write_model
from tokenizers import Tokenizer

from motet.core.errors import InvalidRequest
from motet.core.output_format import GrammarSpec
from motet.engine.sampling.grammar_masks import GrammarCompiler, Matcher
from motet.plugins.output_formats import JsonObject

VOCAB, PADDED, EOS = 49152, 49160, 2
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "ü"]}, "maxItems": 3},
        "count": {"type": "integer", "minimum": -5, "maximum": 1200},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler(smollm2_directory: Path) -> Iterator[GrammarCompiler]:
    """Over a model whose logits are wider than its tokenizer, as padded vocabularies are."""
    compiler = GrammarCompiler(smollm2_directory, PADDED, (EOS,))
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def tokenizer(smollm2_directory: Path) -> Tokenizer:
    """The model's own."""
    return Tokenizer.from_file(str(smollm2_directory / "tokenizer.json"))


def start(compiler: GrammarCompiler, spec: GrammarSpec) -> Matcher:
    """A fresh matcher."""
    return compiler.compile(spec).result(60).start()


def object_grammar(schema: dict[str, Any] | None = None) -> GrammarSpec:
    """What `response_format` {"type": "json_object"} becomes."""
    return JsonObject().grammar({"type": "json_object", "schema": schema})


def walk(matcher: Matcher, rng: np.random.Generator, closers: list[int], patience: int) -> list[int]:
    """Random allowed ids until the end; after `patience` of them, those that close something come first."""
    ids: list[int] = []
    while not matcher.complete():
        allowed = matcher.allowed()
        assert allowed.shape == (PADDED,)
        assert allowed.dtype == torch.bool
        choices = allowed.nonzero().flatten().tolist()
        assert choices, "there is always a way on"
        if len(ids) >= patience:
            choices = [id for id in closers if allowed[id]] or choices
        # Half of the time one of the first ids, which are the short tokens: random long ones seldom close anything.
        pick = int(rng.integers(len(choices) if rng.random() < 0.5 else min(len(choices), 50)))
        id = choices[pick]
        if id == EOS:
            break
        ids.append(id)
        matcher.advance(id)
        assert len(ids) < 1000
    return ids


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["any object", "schema"])
def test_random_allowed_tokens_are_json(
    compiler: GrammarCompiler, tokenizer: Tokenizer, schema: dict[str, Any] | None, seed: int
) -> None:
    closers = [tokenizer.token_to_id(text) for text in ('"', "}", "]", ":", "0")] + [EOS]
    ids = walk(start(compiler, object_grammar(schema)), np.random.default_rng(seed), closers, patience=40)
    text = tokenizer.decode(ids, skip_special_tokens=False)
    value = json.loads(text)
    assert isinstance(value, dict)
    if schema is not None:
        assert {"name", "count"} <= set(value) <= {"name", "count", "tags"}
        assert len(value["name"]) <= 12
        assert -5 <= value["count"] <= 1200
        assert set(value.get("tags", ())) <= {"a", "b", "ü"}


@pytest.mark.parametrize("seed", range(6))
def test_the_end_may_come_exactly_when_the_text_is_whole(
    compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int
) -> None:
    """Replayed token by token: the end-of-text id is allowed where, and only where, what is there parses."""
    rng = np.random.default_rng(seed)
    closers = [tokenizer.token_to_id(text) for text in ('"', "}", "]", ":", "0")]
    ids = walk(start(compiler, object_grammar()), rng, closers, patience=20)
    matcher = start(compiler, object_grammar())
    for count, id in enumerate(ids):
        assert bool(matcher.allowed()[EOS]) == parses(tokenizer.decode(ids[:count], skip_special_tokens=False))
        matcher.advance(id)
    assert matcher.complete() or matcher.allowed()[EOS]


def parses(text: str) -> bool:
    """Whether this is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_disallowed_tokens_fail_the_request_alone(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    spec = GrammarSpec("regex", "yes|no")
    broken, untouched = start(compiler, spec), start(compiler, spec)
    before = untouched.allowed()
    maybe = tokenizer.token_to_id("may")
    assert not before[maybe]
    with pytest.raises(InvalidRequest, match="grammar failed") as caught:
        broken.advance(maybe)
    assert caught.value.param == "response_format"
    assert torch.equal(untouched.allowed(), before)


def test_a_grammar_that_panics_is_compiled_afresh_for_who_comes_next(tmp_path: Path) -> None:
    """As llguidance does where the end of the text is a token that has text, too: here the quotation mark."""
    directory = write_model(tmp_path)
    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode('{ "name" : "').ids
    compiler = GrammarCompiler(directory, 258, (ids[-1],))
    spec = object_grammar({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    for _ in range(2):
        matcher = start(compiler, spec)
        for id in ids[:-1]:
            assert matcher.allowed()[id]
            matcher.advance(id)
        assert matcher.allowed()[ids[-1]]
        with pytest.raises(InvalidRequest, match="panic: lexer"):
            matcher.advance(ids[-1])
    compiler.close()


def test_matchers_of_one_grammar_advance_apart(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    spec = GrammarSpec("lark", 'start: "a" ("b" | "c") "d"')
    first, second = start(compiler, spec), start(compiler, spec)
    opening = second.allowed()
    first.advance(tokenizer.token_to_id("a"))
    assert torch.equal(second.allowed(), opening)
    assert not torch.equal(first.allowed(), opening)


def test_ids_beyond_the_tokenizer_and_specials_are_never_allowed(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    allowed = start(compiler, GrammarSpec("regex", "(.|\n)*")).allowed()
    assert not allowed[VOCAB:].any()
    specials = [id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special and id != EOS]
    assert len(specials) > 3
    assert not allowed[specials].any()
    assert allowed[EOS]
    assert int(allowed.sum()) > 40_000


def test_regex(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    pattern = r"[0-9]{3}-[a-f]{2}"
    for seed in range(5):
        ids = walk(start(compiler, GrammarSpec("regex", pattern)), np.random.default_rng(seed), [EOS], patience=20)
        assert re.fullmatch(pattern, tokenizer.decode(ids))


@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec("regex", "(unclosed"),
        GrammarSpec("lark", "start: nowhere"),
        GrammarSpec("lark", "nonsense {{{"),
        GrammarSpec("json_schema", '{"type": "starship"}'),
        GrammarSpec("json_schema", "not json"),
        GrammarSpec("json_schema", '{"$ref": "https://example.com/elsewhere.json"}'),
    ],
    ids=lambda spec: spec.text[:20],
)
def test_bad_grammars_are_refused(compiler: GrammarCompiler, spec: GrammarSpec) -> None:
    future = compiler.compile(spec)
    with pytest.raises(InvalidRequest, match="not valid") as caught:
        future.result(60)
    assert "\n" not in caught.value.message
    assert caught.value.param == "response_format"


def test_a_vast_grammar_costs_its_own_request_alone(compiler: GrammarCompiler) -> None:
    """Its first mask is made while compiling, so the step does not wait for it; when it grows too large it ends."""
    matcher = start(compiler, GrammarSpec("regex", "(a{1000}){1000}{1000}"))
    began = time.perf_counter()

    def go_on() -> None:
        for _ in range(50):
            matcher.advance(int(matcher.allowed().nonzero()[-1]))

    with pytest.raises(InvalidRequest, match=r"grammar (failed|is refused)") as caught:
        go_on()
    assert time.perf_counter() - began < 1.0
    assert "\n" not in caught.value.message


def test_many_grammars_are_forgotten_again(compiler: GrammarCompiler) -> None:
    """The cache is bounded, and what fell out of it compiles again."""
    for number in range(140):
        start(compiler, GrammarSpec("regex", f"a{number}"))
    assert len(compiler._compiled) <= 128
    assert start(compiler, GrammarSpec("regex", "a0")).allowed().any()
