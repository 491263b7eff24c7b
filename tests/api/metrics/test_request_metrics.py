"""Request metrics: latencies, adapters and keys, with a bounded number of labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.api_caller import CHAT, MESSAGES, Caller, drive

from motet.api.http.api_keys import key_line
from motet.api.metrics import bounded_labels
from motet.api.metrics.bounded_labels import MIN_REQUESTS, BoundedLabels
from motet.api.metrics.request_timing import GAP_BUCKETS, Timing
from motet.core.messages import TokenEvent
from motet.core.settings import Settings
from motet.engine.client.text_stream import TextDelta

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def exposition(caller: Caller, **headers: str) -> Samples:
    text = (await (await caller.client.get("/metrics", headers=headers)).get_data()).decode()
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    assert key in after, key
    return after[key] - before.get(key, 0)


def test_requests_and_tokens_are_counted_by_adapter_key_and_outcome(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("alice", "sk-alice", False))
    headers = {"authorization": "Bearer sk-alice"}

    async def scenario(caller: Caller) -> None:
        before = await exposition(caller, **headers)
        for stream in (False, True):
            body = {"messages": MESSAGES, "model": "shelf:one", "stream": stream}
            await (await caller.post(CHAT, body, **headers)).get_data()
        prompt = len(caller.api.engine.submits[-1].prompt)
        await caller.answer(CHAT, {"messages": MESSAGES, "max_tokens": 2}, **headers)
        await caller.post(CHAT, {"messages": MESSAGES, "model": "shelf:invented"}, **headers)
        await caller.post(CHAT, {"messages": MESSAGES, "model": "shelf:broken"}, **headers)
        after = await exposition(caller, **headers)

        assert grown(before, after, "motet_adapter_requests_total", adapter="shelf:one", outcome="stop") == 2
        assert grown(before, after, "motet_adapter_requests_total", adapter="base", outcome="length") == 1
        assert grown(before, after, "motet_adapter_prompt_tokens_total", adapter="shelf:one") == 2 * prompt
        assert grown(before, after, "motet_adapter_completion_tokens_total", adapter="shelf:one") == 14
        assert grown(before, after, "motet_key_requests_total", key="alice", outcome="refused") == 2
        assert grown(before, after, "motet_key_completion_tokens_total", key="alice") == 16
        assert not any("invented" in value or "broken" in value for _, labels in after for _, value in labels)
        for stream, count in (("true", 1), ("false", 2)):
            for name in ("time_to_first_token", "queue_time", "end_to_end_latency"):
                assert grown(before, after, f"motet_{name}_seconds_count", stream=stream) == count, name
        # six letters and the end token, so six gaps
        assert grown(before, after, "motet_inter_token_latency_seconds_count", stream="true") == 6
        assert grown(before, after, "motet_inter_token_latency_seconds_bucket", stream="true", le="+Inf") == 6
        assert grown(before, after, "motet_inter_token_latency_seconds_sum", stream="true") > 0

        (routing,) = [labels for name, labels in after if name == "vllm:lora_requests_info"]
        assert dict(routing)["running_lora_adapters"] == "shelf:one"
        assert set(dict(routing)) == {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file)))


def test_gaps_are_counted_by_sequence_and_tokens_that_come_at_once_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("motet.api.metrics.request_timing.time.perf_counter", lambda: now)
    timing = Timing(began=0.0, checked=0.0)

    def take(at: float, index: int, tokens: int, more: bool = False, finish: str | None = None) -> None:
        nonlocal now
        now = at
        event = TokenEvent("x", 1, queue_seconds=0.25)
        timing.add(index, TextDelta("t", (event,) * tokens, finish, more=more))  # type: ignore[arg-type]

    take(1.0, 0, 1)
    take(1.5, 1, 1)
    take(1.54, 0, 2, more=True)
    take(1.54, 0, 4)
    take(1.7, 1, 1, finish="length")
    take(3.6, 0, 1, finish="stop")
    assert (timing.tokens, timing.first, timing.queue_seconds, timing.finish) == (10, 1.0, 0.25, "length")
    counts = dict(zip((*GAP_BUCKETS, None), timing.gaps, strict=True))
    assert {bound: count for bound, count in counts.items() if count} == {0.1: 6, 0.25: 1, 2.5: 1}
    assert timing.gap_seconds == pytest.approx(0.54 + 0.2 + 2.06)


def test_the_busiest_values_keep_their_names() -> None:
    forgotten: list[str] = []
    labels = BoundedLabels(2, forgotten.append)
    assert [labels.label(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]
    assert {labels.label("rare") for _ in range(MIN_REQUESTS - 1)} == {"other"}
    assert [labels.label("c") for _ in range(MIN_REQUESTS - 1)][-1] == "c"
    assert forgotten == ["b"]
    assert labels.label("b") == "other"
    fixed = BoundedLabels(1)
    assert {fixed.label("a"), *(fixed.label("c") for _ in range(100))} == {"a", "other"}


def test_many_values_take_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = BoundedLabels(4, lambda name: None)
    for number in range(10_000):
        labels.label(f"adapter-{number}")
    assert len(labels._candidates) <= 4 * bounded_labels.CANDIDATES
    for _ in range(100):
        labels.label("adapter-0")
    monkeypatch.setattr(labels, "_halved", -1e9)
    labels.label("new")
    assert labels._named["adapter-0"] == 50
