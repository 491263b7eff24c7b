"""The draw against sorting, penalties and counts against their definition, and the draw's times."""

from __future__ import annotations

import torch
from gpu.measuring import Bench, Table, microseconds, relative_error, require
from support.draw_reference import draw, draw_by_sorting
from torch import Tensor

from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams, uniform
from motet.engine.sampling.sampler import Sampler
from motet.engine.sampling.sampling_batch import draw_parameters
from motet.engine.sampling.top_k_top_p import draw_tokens
from motet.engine.schedule.priority import Precedence
from motet.engine.schedule.sequence import Sequence
from motet.engine.staging import StagingBuffer

CUTS = {
    "none": SamplingParams(max_tokens=1),
    "top_k 50": SamplingParams(max_tokens=1, top_k=50),
    "top_p 0.9": SamplingParams(max_tokens=1, top_p=0.9),
    "top_k 2000, top_p 0.99, min_p 0.001": SamplingParams(max_tokens=1, top_k=2000, top_p=0.99, min_p=0.001),
    "typical_p 0.9": SamplingParams(max_tokens=1, typical_p=0.9),
}
PENALISED = SamplingParams(
    max_tokens=9,
    temperature=0.0,
    repetition_penalty=1.3,
    presence_penalty=0.5,
    frequency_penalty=-0.25,
    logit_bias={1: 3.0},
)


def run(bench: Bench) -> None:
    """Print the tables. Raises AssertionError if an id differs, or a penalised token, after all were computed."""
    torch.manual_seed(8)
    size = 500 if bench.tiny else 128_256
    table = Table("the draw with", "rows", "ids that differ from sorting", "µs")
    differing = 0
    for rows in (1, 7) if bench.tiny else (1, 32, 128):
        for name, params in CUTS.items():
            # Wide enough that the cuts keep thousands of tokens.
            probabilities = torch.softmax(torch.randn(rows, size, device=bench.device) * 2, -1)
            draws = [uniform(9, row) for row in range(rows)]
            drawn = draw(probabilities.clone(), [params] * rows, draws)
            expected = draw_by_sorting(probabilities.clone(), [params] * rows, draws)
            wrong = sum(a != b for a, b in zip(drawn, expected, strict=True))
            table.row(name, rows, wrong, microseconds(_seconds(bench, probabilities, params, draws)))
            differing += wrong
    error = _penalty_error(bench, size)
    print(f"\nPenalties, bias and counts over eight steps: the largest error is {error:.1e}.")
    require(differing == 0, f"{differing} ids differ from sorting")
    require(error < 1e-5, f"the largest error of penalties is {error}")


def _seconds(bench: Bench, probabilities: Tensor, params: SamplingParams, draws: list[float]) -> float:
    staging = StagingBuffer(1 << 16, bench.device)
    staging.begin()
    parameters = draw_parameters(None, [params] * len(draws), draws, staging)
    staging.send()
    ids = torch.empty(len(draws), dtype=torch.int32, device=bench.device)
    return bench.seconds(lambda: draw_tokens(probabilities, parameters, ids))


def _penalty_error(bench: Bench, size: int) -> float:
    """The largest error of the logits of two sequences that are penalised over eight steps."""
    sampler, staging, error = Sampler(size, bench.device), StagingBuffer(1 << 16, bench.device), 0.0
    prompts = [(2, 3, 3), tuple(range(0, size, 2))]
    rows = [
        Sequence(AddRequest(str(i), prompt, PENALISED), b"", Precedence(0, 0, i), 0.0, 9, num_unread=1)
        for i, prompt in enumerate(prompts)
    ]
    logits = torch.randn(2, size, device=bench.device) * 3
    for _ in range(8):
        expected = torch.stack([_penalised(logits[i].cpu(), row) for i, row in enumerate(rows)])
        staging.begin()
        batch = sampler.stage(rows, staging)
        staging.send()
        changed = logits.clone()
        tokens = sampler(changed, batch, {}).read()
        error = max(error, relative_error(changed.cpu(), expected))
        for row, token in zip(rows, tokens, strict=True):
            row.output.append(token.token)
    return error


def _penalised(logits: Tensor, row: Sequence) -> Tensor:
    """A row of logits with the penalties and the bias of PENALISED, in float64."""
    p, values = PENALISED, logits.double()
    counts = torch.bincount(torch.tensor(row.output, dtype=torch.long), minlength=len(logits))
    is_seen = counts > 0
    is_seen[list(row.request.prompt)] = True
    penalty = p.repetition_penalty
    values = torch.where(is_seen, torch.where(values > 0, values / penalty, values * penalty), values)
    values -= counts * p.frequency_penalty + (counts > 0) * p.presence_penalty
    for id, bias in p.logit_bias.items():
        values[id] += bias
    return values
