"""`motet bench`: its workload, its report and its command line."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted_http import DONE, USAGE, Reply, TinyServer, serving, text

from motet.api.bench.client import Outcome
from motet.api.bench.report import as_text, make_report, percentile
from motet.api.bench.workload import DISTRIBUTIONS, TOKEN_IDS, Distribution, Workload
from motet.api.server.cli import build_parser, main
from motet.core.errors import StartupError

NAMES = ("a", "b", "c", "d")


def named(distribution: Distribution, requests: int = 4000, seed: int = 0) -> list[str]:
    workload = Workload("base", NAMES, distribution, seed=seed)
    return [workload.model_of(i) for i in range(requests)]


def test_fixed_distributions() -> None:
    assert named("none", 5) == ["base"] * 5
    assert named("identical", 5) == ["a"] * 5
    assert named("distinct", 6) == ["a", "b", "c", "d", "a", "b"]


def test_random_distributions_have_their_shape() -> None:
    uniform, zipf = Counter(named("uniform")), Counter(named("zipf"))
    assert all(900 < uniform[name] < 1100 for name in NAMES)
    shares = [zipf[name] / 4000 for name in NAMES]
    assert shares == pytest.approx([0.48, 0.24, 0.16, 0.12], abs=0.03)  # 1, 1/2, 1/3, 1/4 of their sum


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_seed_decides_everything(distribution: Distribution) -> None:
    one, same, other = (Workload("base", NAMES, distribution, seed=seed) for seed in (1, 1, 2))
    assert [one.body(i) for i in range(20)] == [same.body(i) for i in range(20)]
    assert [one.prompt(i) for i in range(20)] != [other.prompt(i) for i in range(20)]


def test_prompts_have_the_length_asked_for_and_share_no_beginning() -> None:
    words = [str(Workload("", prompt_tokens=50).prompt(i)).split() for i in range(50)]
    ids = [Workload("", prompt_tokens=50, prompt_form="ids").prompt(i) for i in range(50)]
    assert {len(prompt) for prompt in (*words, *ids)} == {50}
    assert all(token in TOKEN_IDS for prompt in ids for token in prompt)
    assert len({tuple(prompt[:5]) for prompt in (*words, *ids)}) == 100


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(StartupError, match="--distribution zipf needs --adapters"):
        Workload("base", (), "zipf")
    with pytest.raises(StartupError, match="--prompt-form ids"):
        Workload("base", chat=True, prompt_form="ids")


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_percentile_is_numpys(values: list[float], share: float) -> None:
    assert percentile(sorted(values), share) == pytest.approx(float(np.percentile(values, 100 * share)), abs=1e-6)


def test_report_adds_up() -> None:
    outcomes = [
        Outcome(10.0, 12.0, (10.5, 11.0, 11.75), prompt_tokens=7, output_tokens=6),
        Outcome(11.0, 14.0, (11.1, 11.2), prompt_tokens=8, output_tokens=4),
        Outcome(10.5, 15.0, error="HTTP 500: no"),
    ]
    report = make_report(outcomes, requests=5, concurrency=2, cpu_seconds=0.5)
    assert (report.completed, report.seconds, report.prompt_tokens, report.output_tokens) == (2, 5.0, 15, 10)
    assert (report.output_tokens_per_second, report.requests_per_second) == (2.0, 0.4)
    assert report.first_token_ms.p50 == pytest.approx(300)  # of 500 and 100
    assert report.between_tokens_ms.mean == pytest.approx(450)  # of 500, 750 and 100
    assert report.request_ms.p99 == pytest.approx(2990)
    assert report.client_cpu == pytest.approx(0.1)
    text = as_text(report)
    assert "1 × HTTP 500: no" in text
    assert "2 (--timeout was reached)" in text


def test_report_of_nothing() -> None:
    report = make_report([], requests=3, concurrency=1, cpu_seconds=0.0)
    assert (report.completed, report.output_tokens_per_second, report.request_ms.p99) == (0, 0.0, 0.0)
    assert "3 (--timeout was reached)" in as_text(report)


def bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["motet", "bench", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def test_no_server_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert bench(monkeypatch, "--url", f"http://127.0.0.1:{port}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"motet: --url http://127.0.0.1:{port}: no server answers there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--concurrency", "0"), "'0' is not a whole number in 1..4096"),
        (("--requests", "many"), "'many' is not a whole number"),
        (("--timeout", "nan"), "'nan' is not a positive number of seconds"),
        (("--distribution", "some"), "invalid choice: 'some'"),
        (("--url", "localhost:8080"), "--url localhost:8080: no server answers there"),
    ],
)
def test_a_wrong_flag_is_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_command_measures_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    models = b'{"data": [{"id": "the-base"}]}'

    def reply(body: dict[str, Any]) -> Reply:
        return Reply([text("a"), USAGE, DONE]) if body else Reply([models], content_type="application/json")

    async def run(*flags: str) -> TinyServer:
        async with serving(reply) as server:
            arguments = build_parser().parse_args(["bench", "--url", server.url, "--requests", "3", *flags])
            await asyncio.to_thread(vars(arguments).pop("run"), arguments)
            return server

    server = asyncio.run(run("--json"))
    report = json.loads(capsys.readouterr().out)
    assert (report["completed"], report["output_tokens"]) == (3, 27)
    assert [body["model"] for body in server.bodies[1:]] == ["the-base"] * 3
    server = asyncio.run(run("--adapters", "x,y", "--model", "other"))
    assert capsys.readouterr().out.startswith("3 of 3 requests completed in ")
    assert sorted(body["model"] for body in server.bodies[1:]) == ["x", "x", "y"]
