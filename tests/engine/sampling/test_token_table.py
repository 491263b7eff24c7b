"""The device's table of tokens over many steps: it counts what the host has not read yet, grows, and reuses rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampling_checks import CPU, random_logits, row, sample

from motet.core.sampling_params import SamplingParams
from motet.engine.sampling import token_table
from motet.engine.sampling.sampler import Sampler
from motet.engine.sampling.token_table import TokenTable
from motet.engine.schedule.sequence import Sequence
from motet.engine.staging import StagingBuffer

VOCAB = 40
PARAMS = [
    {"repetition_penalty": 1.4},
    {"presence_penalty": 0.7, "logit_bias": {3: 2.0, 39: -1.5}},
    {"frequency_penalty": -0.3, "temperature": 0.0},
    {"logit_bias": {0: 1.0, 7: 3.0}},
    {},
]
STAGING = StagingBuffer(1 << 16, CPU)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(5, 25))
def test_late_reads_and_reused_rows_change_nothing(seed: int, steps: int) -> None:
    """Each step is launched before the last one's tokens are read, as with overlap; requests come and go."""
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_table, "FIRST_ROWS", 1)
        patch.setattr(token_table, "FIRST_WIDTH", 2)
        sampler, started = Sampler(VOCAB, CPU), 0
        running: list[Sequence] = []
        truth: dict[str, list[int]] = {}
        unread: list[tuple[Sequence, int]] = []
        for step in range(steps):
            if not running or (len(running) < 5 and rng.random() < 0.4):
                params = SamplingParams(max_tokens=99, seed=started, **PARAMS[started % len(PARAMS)])  # type: ignore[arg-type]
                prompt = tuple(int(t) for t in rng.integers(0, VOCAB, int(rng.integers(1, 30))))
                running.append(row(params, prompt, id=f"r{started}"))
                running[-1].num_unread = 0
                truth[running[-1].id] = []
                started += 1
            rows = [s for s in running if rng.random() < 0.8]
            for sequence in rows:
                sequence.num_unread += 1
            logits = random_logits(seed + step, len(rows), VOCAB, spread=1.0)
            STAGING.begin()
            launched = sampler(logits.clone(), sampler.stage(rows, STAGING), {}) if rows else None
            for sequence, token in unread:
                sequence.output.append(token)
                sequence.num_unread -= 1
            tokens = [s.token for s in launched.read()] if launched else []
            unread = list(zip(rows, tokens, strict=True))
            for j, sequence in enumerate(rows):
                known = row(sequence.request.params, sequence.request.prompt, tuple(truth[sequence.id]))
                assert tokens[j] == sample(Sampler(VOCAB, CPU), logits[j : j + 1].clone(), [known], {})[0].token
                truth[sequence.id].append(tokens[j])
            if running and rng.random() < 0.3:  # it ends while its last token is unread
                sampler.forget(running.pop(int(rng.integers(len(running)))).id)


def test_rows_are_reused_and_an_empty_table_is_dropped() -> None:
    table = TokenTable(VOCAB, CPU)
    rows = [row(SamplingParams(max_tokens=9, presence_penalty=1.0), id=str(i)) for i in range(3)]
    assert table.places(rows) == [0, 1, 2]
    table.forget("1")
    table.forget("1")
    late = row(SamplingParams(max_tokens=9, logit_bias=dict.fromkeys(range(30), 1.0)), id="late")
    assert table.places([rows[2], late]) == [2, 1]
    for id in ("0", "2", "late"):
        table.forget(id)
    assert table._entries.numel() == 0
    assert table.places([rows[2]]) == [0]


def test_only_tokens_that_may_change_are_entries() -> None:
    """The prompt matters to the repetition penalty alone."""
    table = TokenTable(VOCAB, CPU)
    repetition = SamplingParams(max_tokens=9, repetition_penalty=1.1)
    frequency = SamplingParams(max_tokens=9, frequency_penalty=1.0)
    rows = [row(p, (1, 2, 2), (5, 5), id=str(i)) for i, p in enumerate((repetition, frequency))]
    table.places(rows)
    ids, counts, _, sizes = table._table
    assert sizes[:2].tolist() == [3, 1]
    assert (ids[0, :3].tolist(), counts[0, :3].tolist()) == ([1, 2, 5], [0.0, 0.0, 2.0])
    assert (ids[1, :1].tolist(), counts[1, :1].tolist()) == ([5], [2.0])
