"""Chooses the chat template of a request: the adapter's or the base model's, from the first plugin that has one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from motet.api.adapters.registry import ServedAdapter
from motet.api.services import Services
from motet.core import error_codes
from motet.core.chat_template import ChatTemplate, TemplateContext
from motet.core.errors import InvalidRequest, Unavailable

TEMPLATE_SECONDS = 5.0
"""Time limit for reading a template's files: an adapter's directory may be on a mount that hangs."""


async def find_template(services: Services, adapter: ServedAdapter | None) -> ChatTemplate:
    """The chat template of the adapter, else of the base. Raises InvalidRequest if neither has one."""
    context = TemplateContext(
        base_directory=Path(services.model().directory),
        adapter_directory=adapter.directory if adapter else None,
        adapter_source=adapter.ref.source if adapter else None,
        adapter_id=adapter.ref.id if adapter else None,
    )
    finders = tuple(services.plugins.chat_templates.items.values())

    def find() -> ChatTemplate | None:
        return next((template for finder in finders if (template := finder.find(context)) is not None), None)

    try:
        async with asyncio.timeout(TEMPLATE_SECONDS):
            template = await services.templates.run(context.adapter_directory, find)
    except TimeoutError:
        raise Unavailable(
            f"the chat template's files did not respond within {TEMPLATE_SECONDS:g} s; check the adapter's mount",
            param="model",
            code=error_codes.SOURCE_UNAVAILABLE,
        ) from None
    if template is None:
        raise InvalidRequest(
            "neither the adapter nor the base model has a chat template; use /v1/completions, or add "
            "chat_template.jinja to the adapter's or the model's directory",
            param="messages",
            code=error_codes.NO_CHAT_TEMPLATE,
        )
    return template
