"""Frameworks over the openai package against a running server: `python frameworks_surface.py URL`.

Prints one line for each thing that works. Runs in an environment of its own, which has them and not this project.
Nothing is set but the base URL, a key and the model; the schemas are such that a small model's answers end.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any, Literal

from agents import Agent as OpenAIAgent
from agents import (
    MaxTurnsExceeded,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents import ModelSettings as AgentSettings
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticResponses
from pydantic_ai.providers.openai import OpenAIProvider

URL = f"{sys.argv[1]}/v1"
MODEL = "pirate"
WEATHER = "What is the weather like in Oslo?"


class Sea(BaseModel):
    """A sea."""

    name: Literal["North Sea", "Baltic"]
    deep: bool


def weather(city: Literal["Bergen", "Oslo"]) -> str:
    """The weather in a city."""
    return f"rain in {city}"


def langchain() -> None:
    for responses in (False, True):
        longer, chat = (
            ChatOpenAI(
                base_url=URL, api_key="none", model=MODEL, max_tokens=count, temperature=0, use_responses_api=responses
            )
            for count in (60, 16)
        )
        assert chat.invoke("Hello").usage_metadata["output_tokens"] > 0
        assert "".join(str(chunk.text) for chunk in chat.stream("Hello"))
        calling = longer.bind_tools([tool(weather)], tool_choice="required", parallel_tool_calls=False, strict=True)
        call = calling.invoke(WEATHER)
        assert call.tool_calls[0]["args"]["city"] in ("Bergen", "Oslo")
        result = ToolMessage(weather("Oslo"), tool_call_id=call.tool_calls[0]["id"])
        assert chat.invoke([HumanMessage(WEATHER), call, result]).usage_metadata
        for method in ("json_schema", "function_calling"):
            assert isinstance(longer.with_structured_output(Sea, method=method).invoke("Name a sea."), Sea)


def langchain_takes_back_a_call_that_was_cut() -> None:
    short = ChatOpenAI(base_url=URL, api_key="none", model=MODEL, max_tokens=22, temperature=0)
    cut = short.bind_tools([tool(weather)], tool_choice="required").invoke(WEATHER)
    calls = [*cut.tool_calls, *cut.invalid_tool_calls]
    results = [ToolMessage("that was no JSON", tool_call_id=call["id"]) for call in calls]
    assert short.invoke([HumanMessage(WEATHER), cut, *results]).usage_metadata


def langchain_embeddings() -> None:
    vectors = OpenAIEmbeddings(
        base_url=URL, api_key="none", model=MODEL, check_embedding_ctx_length=False
    ).embed_documents(["the sea", "a ship"])
    assert [len(vector) for vector in vectors] == [576, 576]


def agents() -> None:
    set_tracing_disabled(True)
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        asyncio.run(agents_on(kind))


async def agents_on(kind: Any) -> None:
    model = kind(model=MODEL, openai_client=AsyncOpenAI(base_url=URL, api_key="none", max_retries=0))
    settings = AgentSettings(max_tokens=60, temperature=0)
    plain = OpenAIAgent("plain", model=model, output_type=Sea, model_settings=settings)
    assert isinstance((await Runner.run(plain, "Name a sea.")).final_output, Sea)
    settings = AgentSettings(max_tokens=60, temperature=0, tool_choice="weather", parallel_tool_calls=False)
    tools = [function_tool(weather)]
    calling = OpenAIAgent("calling", model=model, tools=tools, output_type=Sea, model_settings=settings)
    run = Runner.run_streamed(calling, WEATHER, max_turns=2)
    with suppress(MaxTurnsExceeded):  # on the second turn the model may call again, or name a sea
        async for _ in run.stream_events():
            pass
    assert [type(item).__name__ for item in run.new_items][:2] == ["ToolCallItem", "ToolCallOutputItem"]


def pydantic() -> None:
    provider = OpenAIProvider(openai_client=AsyncOpenAI(base_url=URL, api_key="none", max_retries=0))
    for kind in (OpenAIChatModel, PydanticResponses):
        for output in (Sea, NativeOutput(Sea)):
            agent = Agent(
                kind(MODEL, provider=provider), output_type=output, model_settings={"max_tokens": 60, "temperature": 0}
            )
            assert isinstance(agent.run_sync("Name a sea.").output, Sea)
        both = Agent(
            kind(MODEL, provider=provider),
            output_type=NativeOutput(Sea),
            tools=[weather],
            model_settings={"max_tokens": 60, "temperature": 0, "tool_choice": "none"},
        )
        first = both.run_sync("Name a sea.")
        assert isinstance(first.output, Sea)
        assert isinstance(both.run_sync("Another.", message_history=first.all_messages()).output, Sea)


CHECKS = (langchain, langchain_takes_back_a_call_that_was_cut, langchain_embeddings, agents, pydantic)

if __name__ == "__main__":
    for check in CHECKS:
        check()
        print(check.__name__, flush=True)
