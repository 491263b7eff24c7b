"""Lists models in the shape of Anthropic's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from motet.api.anthropic.objects import AnthropicModel, AnthropicModelList
from motet.api.schema.openai_objects import ModelCard
from motet.core.errors import InvalidRequest

DEFAULT_LIMIT = 20
MAX_LIMIT = 1000


def anthropic_model(card: ModelCard) -> AnthropicModel:
    """The same model in Anthropic's shape."""
    return AnthropicModel(
        id=card.id,
        display_name=card.alias or card.id,
        created_at=datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        max_input_tokens=card.max_model_len,
        max_tokens=card.max_model_len,
    )


def anthropic_page(cards: Sequence[ModelCard], query: Mapping[str, str]) -> AnthropicModelList:
    """The page of models that `limit`, `after_id` and `before_id` select. Raises InvalidRequest."""
    limit = query.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= MAX_LIMIT):
        raise InvalidRequest(f"limit must be a number from 1 to {MAX_LIMIT}", param="limit")
    first = _index(cards, query, "after_id") + 1 if "after_id" in query else 0
    last = _index(cards, query, "before_id") if "before_id" in query else len(cards)
    if "before_id" in query and "after_id" not in query:  # the ones just before it
        first = max(last - int(limit), 0)
        has_more = first > 0
    else:
        has_more = last - first > int(limit)
        last = min(last, first + int(limit))
    data = [anthropic_model(card) for card in cards[first:last]]
    ids = [model.id for model in data]
    return AnthropicModelList(
        data=data, has_more=has_more, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None
    )


def _index(cards: Sequence[ModelCard], query: Mapping[str, str], name: str) -> int:
    place = next((index for index, card in enumerate(cards) if card.id == query[name]), None)
    if place is None:
        raise InvalidRequest(f"{name}: no model in the list has this id", param=name)
    return place
