"""lorax-client against a running server: `python lorax_surface.py URL`. Prints one line for each thing that works.

Runs in an environment of its own, which has lorax-client and not this project.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable

from lorax import AsyncClient, Client
from lorax.errors import GenerationError, NotFoundError, ValidationError
from lorax.types import MergedAdapters

URL = sys.argv[1]
PROMPT = "Once upon a time"
SCHEMA = {
    "type": "object",
    "properties": {"sea": {"enum": ["North Sea", "Baltic"]}},
    "required": ["sea"],
    "additionalProperties": False,
}
client = Client(URL)


def raised(kind: type[Exception], call: Callable[[], object]) -> str:
    """What `call` says when it raises `kind`."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def generate() -> None:
    base = client.generate(PROMPT, max_new_tokens=12)
    again = client.generate(PROMPT, max_new_tokens=12)
    assert base.generated_text
    assert base.generated_text == again.generated_text, "greedy by default"
    assert base.details.finish_reason == "length"
    assert base.details.generated_tokens == len(base.details.tokens) == 12
    assert base.details.prompt_tokens == 4
    assert base.details.seed is None
    assert "".join(token.text for token in base.details.tokens) == base.generated_text
    assert all(token.logprob <= 0 and not token.special for token in base.details.tokens)
    assert client.generate(PROMPT, max_new_tokens=4, details=False).details is None
    full = client.generate(PROMPT, max_new_tokens=4, return_full_text=True)
    assert full.generated_text.startswith(PROMPT)


def adapters() -> None:
    base = client.generate(PROMPT, max_new_tokens=12).generated_text
    voices = {
        name: client.generate(PROMPT, adapter_id=name, adapter_source=None, max_new_tokens=12).generated_text
        for name in ("demo:pirate", "demo:terse", "pirate")
    }
    assert voices["demo:pirate"] == voices["pirate"] != base
    assert voices["demo:terse"] != base


def stream() -> None:
    whole = client.generate(PROMPT, adapter_id="pirate", max_new_tokens=12)
    events = list(client.generate_stream(PROMPT, adapter_id="pirate", max_new_tokens=12))
    assert "".join(event.token.text for event in events) == whole.generated_text
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert all(event.generated_text is None for event in events[:-1])
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details.generated_tokens == 12
    assert events[-1].details.prompt_tokens == 4


def sampling() -> None:
    options = {"do_sample": True, "max_new_tokens": 12, "temperature": 1.5, "top_p": 0.95, "top_k": 50}
    first, again, other = (client.generate(PROMPT, seed=seed, **options) for seed in (1, 1, 2))
    assert first.generated_text == again.generated_text != other.generated_text
    assert first.details.seed == 1
    unseeded = client.generate(PROMPT, typical_p=0.9, repetition_penalty=1.2, max_new_tokens=12)
    seed = unseeded.details.seed
    repeated = client.generate(PROMPT, typical_p=0.9, repetition_penalty=1.2, max_new_tokens=12, seed=seed)
    assert repeated.generated_text == unseeded.generated_text


def endings() -> None:
    text = client.generate(PROMPT, max_new_tokens=12).generated_text
    word = text.split()[3]
    stopped = client.generate(PROMPT, max_new_tokens=12, stop_sequences=[word])
    assert stopped.details.finish_reason == "stop_sequence"
    assert stopped.generated_text == text[: text.index(word)]
    assert client.generate(PROMPT, max_new_tokens=5, ignore_eos_token=True).details.generated_tokens == 5
    short = client.generate(f"Leave this out. {PROMPT}", truncate=4, max_new_tokens=12)
    assert short.details.prompt_tokens == 4


def details() -> None:
    answer = client.generate(PROMPT, max_new_tokens=4, decoder_input_details=True, return_k_alternatives=3)
    assert [token.text for token in answer.details.prefill] == ["Once", " upon", " a", " time"]
    assert answer.details.prefill[0].logprob is None
    assert all(token.logprob < 0 for token in answer.details.prefill[1:])
    for token in answer.details.tokens:
        assert len(token.alternative_tokens) == 3
        assert token.alternative_tokens[0].id == token.id, "greedy takes the first"
    several = client.generate(PROMPT, best_of=3, do_sample=True, temperature=1.5, max_new_tokens=8)
    others = several.details.best_of_sequences
    means = [sum(t.logprob for t in s.tokens) / len(s.tokens) for s in (several.details, *others)]
    assert len(others) == 2
    assert means[0] == max(means)


def formats() -> None:
    asked = {"type": "json_object", "schema": SCHEMA}
    for adapter in (None, "pirate"):
        answer = client.generate("The sea:", adapter_id=adapter, response_format=asked, max_new_tokens=40)
        assert json.loads(answer.generated_text)["sea"] in ("North Sea", "Baltic"), answer.generated_text


def merged() -> None:
    def mixed(ids: list[str], weights: list[float]) -> str:
        merge = MergedAdapters(ids=ids, weights=weights, merge_strategy="linear", density=0.0)
        return client.generate(PROMPT, merged_adapters=merge, max_new_tokens=12).generated_text

    alone = client.generate(PROMPT, adapter_id="pirate", max_new_tokens=12).generated_text
    base = client.generate(PROMPT, max_new_tokens=12).generated_text
    assert mixed(["demo:pirate"], [1.0]) == alone
    assert mixed(["demo:pirate", "demo:terse"], [1.0, 0.0]) == alone
    assert mixed(["demo:pirate", "demo:pirate"], [0.5, -0.5]) == base
    ties = MergedAdapters(ids=["demo:pirate"], weights=[1.0], merge_strategy="ties", density=0.5)
    assert "only linear" in raised(ValidationError, lambda: client.generate(PROMPT, merged_adapters=ties))


def errors() -> None:
    assert "nobody" in raised(GenerationError, lambda: client.generate(PROMPT, adapter_id="demo:nobody"))
    assert "max_new_tokens" in raised(ValidationError, lambda: client.generate(PROMPT, max_new_tokens=10**6))
    raised(ValidationError, lambda: client.generate(PROMPT, watermark=True))
    raised(GenerationError, lambda: list(client.generate_stream(PROMPT, adapter_id="demo:nobody")))
    raised(NotFoundError, lambda: client.classify(PROMPT))
    raised(NotFoundError, lambda: client.classify_batch([PROMPT]))


def embed() -> None:
    vector = client.embed(PROMPT).embeddings
    assert len(vector) == 576
    assert abs(sum(x * x for x in vector) - 1) < 1e-4


def asynchronous() -> None:
    async def main() -> None:
        several = AsyncClient(URL)
        names = [None, "pirate", "terse", None]
        answers = await asyncio.gather(*(several.generate(PROMPT, adapter_id=n, max_new_tokens=12) for n in names))
        alone = [client.generate(PROMPT, adapter_id=name, max_new_tokens=12) for name in names]
        assert [a.generated_text for a in answers] == [a.generated_text for a in alone], "company changes nothing"
        streamed = [event async for event in several.generate_stream(PROMPT, adapter_id="pirate", max_new_tokens=12)]
        assert streamed[-1].generated_text == alone[1].generated_text
        assert len((await several.embed(PROMPT)).embeddings) == 576
        try:
            await several.generate(PROMPT, adapter_id="demo:nobody")
        except GenerationError:
            return
        raise AssertionError("no GenerationError")

    asyncio.run(main())


CHECKS = (generate, adapters, stream, sampling, endings, details, formats, merged, errors, embed, asynchronous)

if __name__ == "__main__":
    for check in CHECKS:
        check()
        print(check.__name__, flush=True)
