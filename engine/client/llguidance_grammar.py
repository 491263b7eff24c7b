"""A GrammarSpec as llguidance's own grammar text; for the API's check and for the engine's matcher alike."""

from __future__ import annotations

from llguidance import LLMatcher, LLParserLimits

from motet.core.output_formats import GrammarSpec

LIMITS = LLParserLimits(initial_lexer_fuel=250_000, step_max_items=10_000)
"""What one grammar may cost: at the defaults, a mask of a bad one takes a second, and now a third of that at most."""


def grammar_source(spec: GrammarSpec) -> str:
    """`spec` in llguidance's syntax. Raises ValueError if its text cannot be read at all."""
    match spec.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(spec.text)
        case "lark":
            return LLMatcher.grammar_from_lark(spec.text)
        case "regex":
            return LLMatcher.grammar_from_regex(spec.text)
