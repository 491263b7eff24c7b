"""The engine's statistics: log lines and counts of installations, adapter names, and the summary line."""

from __future__ import annotations

import pytest
from support.log_lines import log_lines

from motet.core.messages import INSTALL_BUCKETS, AddRequest, LoraEntry, PreparedAdapter
from motet.core.sampling_params import SamplingParams
from motet.engine import stat_logger as module
from motet.engine.schedule.adapter_slots import AdapterSlots
from motet.engine.schedule.batch import SchedulerConfig
from motet.engine.schedule.kv_block_manager import BlockManager
from motet.engine.schedule.plan import InstallAdapter
from motet.engine.schedule.scheduler import Scheduler
from motet.engine.stat_logger import MAX_NAMES, SUMMARY_SECONDS, StatLogger


def adapter(name: str) -> PreparedAdapter:
    entries = (LoraEntry(0, "q_proj", 8, 1.0),)
    return PreparedAdapter("id", f"fingerprint-of-{name}", ("file",), entries, 1000, name=f"local:{name}")


def submit(id: str, model: str, fingerprint: str | None) -> AddRequest:
    return AddRequest(id, (1, 2, 3), SamplingParams(max_tokens=4), fingerprint, model=model)


class LoggedScheduler:
    """A scheduler with one adapter slot, its statistics, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.scheduler = Scheduler(BlockManager(8, 4), AdapterSlots(1, {"q_proj": 4}), SchedulerConfig(64, 8, 32))
        self.stats = StatLogger(self.scheduler)

    def request(self, id: str, model: str, name: str) -> None:
        prepared = adapter(name)
        self.scheduler.register(prepared)
        request = submit(id, model, prepared.fingerprint)
        self.stats.record_name(request)
        self.scheduler.add(request, b"client", self.now)

    def step(self, install_seconds: float = 0.05) -> None:
        """Schedule a step, and finish the installation that it starts, if any."""
        self.scheduler.schedule(self.now)
        commands = self.scheduler.take_commands()
        self.stats.record_commands(commands)
        self.now += install_seconds
        for command in commands:
            if isinstance(command, InstallAdapter):
                self.stats.record_install(command.fingerprint)
                self.scheduler.slots.mark_ready(command.fingerprint)


def test_installations_and_evictions_are_logged_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = LoggedScheduler(monkeypatch)
    with log_lines() as lines:
        logged.request("1", "one", "one")
        logged.step(0.05)
        logged.scheduler.finish("1")
        logged.request("2", "two", "two")
        logged.step(60.0)
    moves = [(line["message"], line["adapter"], line.get("seconds"), line["generation"]) for line in lines]
    generation = "fingerprint-"
    assert moves == [
        ("adapter installed", "local:one", 0.05, generation),
        ("adapter evicted", "local:one", None, generation),
        ("adapter installed", "local:two", 60.0, generation),
    ]
    assert lines[0]["bytes"] == 1000
    use = logged.stats.adapter_use()
    assert (sum(use.installs), use.installs[INSTALL_BUCKETS.index(0.1)], use.installs[-1]) == (2, 1, 1)
    assert use.install_seconds == pytest.approx(60.05)
    assert logged.scheduler.slots.evictions == 1


def test_a_failed_installation_is_one_error_line(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = LoggedScheduler(monkeypatch)
    logged.request("1", "one", "one")
    logged.scheduler.schedule(logged.now)
    logged.stats.record_commands(logged.scheduler.take_commands())
    with log_lines() as lines:
        logged.stats.record_install(adapter("one").fingerprint, "OutOfMemoryError on rank 1")
    (line,) = lines
    assert (line["level"], line["adapter"]) == ("error", "local:one")
    assert line["message"] == "adapter installation failed: OutOfMemoryError on rank 1"
    assert sum(logged.stats.adapter_use().installs) == 0


def test_adapters_have_the_names_in_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = LoggedScheduler(monkeypatch)
    logged.request("1", "one", "one")
    logged.step()
    logged.request("2", "local:one", "one")
    logged.step()
    logged.request("3", "two", "two")
    logged.stats.record_name(submit("base", "smollm2", None))
    use = logged.stats.adapter_use()
    assert set(use.resident) == {"one", "local:one"}
    assert "two" in use.waiting
    assert "smollm2" not in (*use.resident, *use.waiting)
    for number in range(10):
        logged.stats.record_name(submit("x", f"alias-{number}", adapter("one").fingerprint))
    assert len(logged.stats.adapter_use().resident) == MAX_NAMES


def test_a_summary_is_logged_while_sequences_run(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = LoggedScheduler(monkeypatch)
    with log_lines() as lines:
        logged.stats.log_summary(logged.now + 1)
        logged.stats.log_summary(logged.now + SUMMARY_SECONDS)
        assert lines == []  # nothing ran
        logged.request("1", "one", "one")
        logged.step()
        logged.scheduler.schedule(logged.now)
        logged.stats.prompt_tokens, logged.stats.generated_tokens = 300, 600
        logged.stats.log_summary(logged.now + 1.5 * SUMMARY_SECONDS)
        assert [line["message"] for line in lines] == ["adapter installed"]  # not yet
        logged.stats.log_summary(100.0 + 2 * SUMMARY_SECONDS)
        logged.scheduler.finish("1")
        logged.stats.log_summary(100.0 + 3 * SUMMARY_SECONDS)
    (line,) = [line for line in lines if line["message"] == "engine summary"]
    assert (line["running"], line["waiting"], line["adapters_resident"]) == (1, 0, 1)
    assert (line["prompt_tokens_per_second"], line["generated_tokens_per_second"]) == (10.0, 20.0)
    assert 0 < line["cache_use"] <= 1
