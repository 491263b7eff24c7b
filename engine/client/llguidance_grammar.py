"""Converts a GrammarSpec to llguidance's grammar syntax, for the API's check and the engine's matcher."""

from __future__ import annotations

from llguidance import LLMatcher, LLParserLimits

from motet.core.output_format import GrammarSpec

LIMITS = LLParserLimits(initial_lexer_fuel=250_000, step_max_items=10_000)
"""Limits on the cost of one grammar: a mask takes at most a third of a second, not a second as with the defaults."""


def grammar_source(spec: GrammarSpec) -> str:
    """`spec` in llguidance's syntax. Raises ValueError if its text cannot be parsed."""
    match spec.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(spec.text)
        case "lark":
            return LLMatcher.grammar_from_lark(spec.text)
        case "regex":
            return LLMatcher.grammar_from_regex(spec.text)
