"""Samples the next token of every row: penalties, bias, masks, temperature, then a draw. Rows are independent.

A row's draw depends only on its own seed and output position, its penalties only on its own tokens. Logprobs are the
model's, before any of these changes. N is rows, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from motet.core.messages import AddRequest
from motet.core.sampling_params import MAX_TOP_LOGPROBS, SamplingParams, uniform
from motet.engine.sampling.top_k_top_p import draw_tokens
from motet.engine.schedule.sequence import Sequence
from motet.engine.staging import StagingBuffer


@dataclass(frozen=True)
class SampledToken:
    """The token that one row sampled; `logprob` and `top` are set if the request has logprobs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class SamplingBatch:
    """The rows of a step that sample a token, with what the device needs to know about them."""

    rows: list[Sequence]


@dataclass(frozen=True)
class SampledRows:
    """The sampled ids [N] int32, on the device; `read` waits for them."""

    ids: Tensor
    _tokens: list[SampledToken]

    def read(self) -> list[SampledToken]:
        """The sampled tokens, in the order of the rows."""
        return self._tokens


class _History:
    """The distinct tokens of a request with penalties, and their counts in the output (0: only in the prompt)."""

    def __init__(self, request: AddRequest, output: list[int], device: torch.device) -> None:
        ids = np.unique([*request.prompt, *output])
        counts = np.bincount(np.searchsorted(ids, np.array(output, np.int64)), minlength=len(ids))
        self._places = {int(id): place for place, id in enumerate(ids)}
        self._ids = torch.from_numpy(ids).to(device)
        self._counts = torch.from_numpy(counts).float().to(device)

    def add(self, token: int) -> None:
        """Count a sampled token."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):  # full: double the room
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
            self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1

    def penalise(self, row_logits: Tensor, p: SamplingParams) -> None:
        """Lower logits [V] in place: Keskar et al., "CTRL", 2019 (repetition); OpenAI (presence and frequency)."""
        size = len(self._places)
        ids, counts = self._ids[:size], self._counts[:size]
        seen = row_logits[ids]
        if p.repetition_penalty != 1:
            seen = torch.where(seen > 0, seen / p.repetition_penalty, seen * p.repetition_penalty)
        row_logits[ids] = seen - (p.frequency_penalty * counts + p.presence_penalty * (counts > 0))


@dataclass
class Sampler:
    """Samples tokens, and stores token counts and biases of requests between steps until `forget`."""

    vocab_size: int
    _histories: dict[str, _History] = field(default_factory=dict)
    _biases: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def stage(self, rows: list[Sequence], staging: StagingBuffer) -> SamplingBatch:
        """Put what the device needs to sample a token for each of `rows`."""
        return SamplingBatch(rows)

    @torch.inference_mode()
    def __call__(self, logits: Tensor, batch: SamplingBatch, masks: dict[int, Tensor]) -> SampledRows:
        """Begin to sample a token per row of logits [N, V] (fp32, changed in place).

        masks[j] (bool [V]) has the ids that row j's grammar allows.
        """
        rows = batch.rows
        params = [row.request.params for row in rows]
        reported = _reported_logprobs(logits, params)
        self._penalise(logits, rows)
        for j, p in enumerate(params):
            if p.logit_bias:
                ids, values = self._bias(rows[j].id, p, logits.device)
                logits[j, ids] += values
        for j, mask in masks.items():
            logits[j].masked_fill_(~mask.to(logits.device), -torch.inf)
        for j, p in enumerate(params):
            if rows[j].sampled_index < p.min_tokens:
                self._exclude_ending(logits[j], rows[j].ending_ids)
        tokens = _next_tokens(logits, params, [row.sampled_index for row in rows])
        sampled: list[SampledToken] = []
        for j, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if history := self._histories.get(row.id):
                history.add(token)
            if j in reported:
                logprobs, top = reported[j]
                sampled.append(SampledToken(token, float(logprobs[token]), top))
            else:
                sampled.append(SampledToken(token))
        return SampledRows(torch.tensor(tokens, dtype=torch.int32, device=logits.device), sampled)

    def warm_up(self) -> None:
        """Compile the kernels, so that no request waits for it."""
        draw_tokens(torch.ones(1, 8), [SamplingParams(max_tokens=1)], [0.0])

    def forget(self, id: str) -> None:
        """Drop the state of a request that has ended."""
        self._histories.pop(id, None)
        self._biases.pop(id, None)

    def _bias(self, id: str, p: SamplingParams, device: torch.device) -> tuple[Tensor, Tensor]:
        if id not in self._biases:
            ids = torch.tensor(list(p.logit_bias), device=device)
            self._biases[id] = ids, torch.tensor(list(p.logit_bias.values()), device=device)
        return self._biases[id]

    def _exclude_ending(self, row_logits: Tensor, ending_ids: frozenset[int]) -> None:
        """Exclude the ids that end the output, unless a grammar allows no others."""
        ending = [id for id in ending_ids if id < self.vocab_size]
        allowed = row_logits[ending]
        row_logits[ending] = -torch.inf
        if bool(torch.isneginf(row_logits).all()):
            row_logits[ending] = allowed

    def _penalise(self, logits: Tensor, rows: list[Sequence]) -> None:
        for j, row in enumerate(rows):
            p = row.request.params
            if p.repetition_penalty == 1 and not p.presence_penalty and not p.frequency_penalty:
                continue
            history = self._histories.get(row.id)
            if history is None:
                history = self._histories[row.id] = _History(row.request, row.output, logits.device)
            history.penalise(logits[j], p)


def _reported_logprobs(
    logits: Tensor, params: list[SamplingParams]
) -> dict[int, tuple[Tensor, tuple[tuple[int, float], ...]]]:
    """For each row with logprobs: the model's logprobs [V], and the top ids with theirs as pairs."""
    with_logprobs = [j for j, p in enumerate(params) if p.logprobs is not None]
    if not with_logprobs:
        return {}
    logprobs = torch.log_softmax(logits[with_logprobs], dim=-1)
    # The count is fixed, since the order of ties depends on it.
    most = min(MAX_TOP_LOGPROBS, logits.shape[1])
    best = torch.topk(logprobs, most, dim=-1) if any(params[j].logprobs for j in with_logprobs) else None
    reported: dict[int, tuple[Tensor, tuple[tuple[int, float], ...]]] = {}
    for i, j in enumerate(with_logprobs):
        count = params[j].logprobs or 0
        pairs = zip(best.indices[i, :count].tolist(), best.values[i, :count].tolist(), strict=True) if best else ()
        reported[j] = logprobs[i], tuple(pairs)
    return reported


def _next_tokens(logits: Tensor, params: list[SamplingParams], positions: list[int]) -> list[int]:
    """The next id of every row: argmax where temperature is 0, else the draw at its output position."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    drawing = [j for j, p in enumerate(params) if p.temperature > 0]
    if not drawing:
        return tokens
    # Subtracting the maximum first keeps tiny temperatures from overflowing; in fp32 the tiniest would be 0.
    smallest = torch.finfo(torch.float32).tiny
    temperatures = torch.tensor([max(params[j].temperature, smallest) for j in drawing], device=logits.device)
    warped = logits[drawing]
    warped = (warped - warped.amax(dim=-1, keepdim=True)) / temperatures[:, None]
    probabilities = torch.softmax(warped, dim=-1)
    draws = [uniform(params[j].seed, positions[j]) for j in drawing]
    for j, token in zip(drawing, draw_tokens(probabilities, [params[j] for j in drawing], draws), strict=True):
        tokens[j] = token
    return tokens
