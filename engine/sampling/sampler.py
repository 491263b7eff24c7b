"""Chooses the next token of every row: one vectorised pass whose rows do not see each other.

A row's draw depends on its own seed and output position alone, its penalties on its own tokens. Reported
logprobs are the model's, before any warping. N is rows, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from motet.core.messages import Submit
from motet.core.sampling import MAX_TOP_LOGPROBS, SamplingParams, uniform
from motet.engine.sequence import Sequence

CANDIDATES = (1024, 8192)
"""top_k, top_p and min_p look at so many best tokens first, then, and at all only when those do not settle it."""


@dataclass(frozen=True)
class Choice:
    """What one row sampled; `logprob` and `top` are filled where the request asked."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class _History:
    """A penalised request's tokens as vectors over V: seen anywhere (bool), and counts in the output (fp32)."""

    seen: Tensor
    counts: Tensor


@dataclass
class Sampler:
    """Keeps what requests with penalties or biases need between steps; `forget` drops one's."""

    vocab_size: int
    _histories: dict[str, _History] = field(default_factory=dict)
    _biases: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @torch.inference_mode()
    def __call__(self, logits: Tensor, rows: list[Sequence], masks: dict[int, Tensor]) -> list[Choice]:
        """One Choice a row for logits [N, V] (fp32, changed in place); masks[j] (bool [V]) are row j's allowed ids."""
        params = [row.request.params for row in rows]
        reported = _report(logits, params)
        self._penalise(logits, rows)
        for j, p in enumerate(params):
            if p.logit_bias:
                ids, values = self._bias(rows[j].id, p, logits.device)
                logits[j, ids] += values
        for j, mask in masks.items():
            logits[j].masked_fill_(~mask.to(logits.device), -torch.inf)
        for j, p in enumerate(params):
            if len(rows[j].output) < p.min_tokens:
                self._refuse_ending(logits[j], p)
        tokens = _choose(logits, params, [len(row.output) for row in rows])
        chosen: list[Choice] = []
        for j, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if history := self._histories.get(row.id):
                history.seen[token] = True
                history.counts[token] += 1
            if j in reported:
                logprobs, top = reported[j]
                chosen.append(Choice(token, float(logprobs[token]), top))
            else:
                chosen.append(Choice(token))
        return chosen

    def forget(self, id: str) -> None:
        """A request has ended."""
        self._histories.pop(id, None)
        self._biases.pop(id, None)

    def _bias(self, id: str, p: SamplingParams, device: torch.device) -> tuple[Tensor, Tensor]:
        if id not in self._biases:
            ids = torch.tensor(list(p.logit_bias), device=device)
            self._biases[id] = ids, torch.tensor(list(p.logit_bias.values()), device=device)
        return self._biases[id]

    def _refuse_ending(self, line: Tensor, p: SamplingParams) -> None:
        """Rule out the ids that end the text, unless nothing else is left: a grammar's end comes first."""
        ending = [id for id in p.ending_ids() if id < self.vocab_size]
        kept = line[ending]
        line[ending] = -torch.inf
        if bool(torch.isneginf(line).all()):
            line[ending] = kept

    def _penalise(self, logits: Tensor, rows: list[Sequence]) -> None:
        """Repetition penalty as Keskar et al., "CTRL", 2019; presence and frequency as OpenAI documents them."""
        for j, row in enumerate(rows):
            p = row.request.params
            if p.repetition_penalty == 1 and not p.presence_penalty and not p.frequency_penalty:
                continue
            history = self._histories.get(row.id)
            if history is None:
                history = self._histories[row.id] = self._new_history(row.request, row.output, logits.device)
            line = logits[j]
            if p.repetition_penalty != 1:
                penalised = torch.where(line > 0, line / p.repetition_penalty, line * p.repetition_penalty)
                line.copy_(torch.where(history.seen, penalised, line))
            line -= p.frequency_penalty * history.counts + p.presence_penalty * (history.counts > 0)

    def _new_history(self, request: Submit, output: list[int], device: torch.device) -> _History:
        seen = torch.zeros(self.vocab_size, dtype=torch.bool, device=device)
        seen[torch.tensor([*request.prompt, *output], dtype=torch.long, device=device)] = True
        written = torch.tensor(output, dtype=torch.long, device=device)
        return _History(seen, torch.bincount(written, minlength=self.vocab_size).float())


def _report(logits: Tensor, params: list[SamplingParams]) -> dict[int, tuple[Tensor, tuple[tuple[int, float], ...]]]:
    """For the rows that want logprobs: all of the model's logprobs [V], and the best few as pairs."""
    asking = [j for j, p in enumerate(params) if p.logprobs is not None]
    if not asking:
        return {}
    logprobs = torch.log_softmax(logits[asking], dim=-1)
    # Always as many, since how ties come out depends on the number asked for.
    most = min(MAX_TOP_LOGPROBS, logits.shape[1])
    best = torch.topk(logprobs, most, dim=-1) if any(params[j].logprobs for j in asking) else None
    reported: dict[int, tuple[Tensor, tuple[tuple[int, float], ...]]] = {}
    for i, j in enumerate(asking):
        count = params[j].logprobs or 0
        pairs = zip(best.indices[i, :count].tolist(), best.values[i, :count].tolist(), strict=True) if best else ()
        reported[j] = logprobs[i], tuple(pairs)
    return reported


def _choose(logits: Tensor, params: list[SamplingParams], positions: list[int]) -> list[int]:
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
    for i, j in enumerate(drawing):
        draw = uniform(params[j].seed, positions[j])
        tokens[j] = _draw(probabilities[i], params[j], draw)
    return tokens


def _draw(probabilities: Tensor, p: SamplingParams, draw: float) -> int:
    """The id at which the truncated distribution's CDF passes `draw`; best ids first if it is truncated.

    As in transformers, top_p is of what top_k has left, typical_p of what the others have, and the likeliest id
    always stays, but for typical_p.
    """
    if p.top_k == 0 and p.top_p >= 1 and p.min_p == 0:
        return _invert(_typical(probabilities, p.typical_p), draw)
    size = len(probabilities)
    for width in (*(min(max(count, p.top_k), size) for count in CANDIDATES), size):
        values, ids = torch.topk(probabilities, width)
        mass = values.double()
        before = mass.cumsum(0) - mass  # mass of the better ids
        left = mass[: p.top_k].sum() if p.top_k else 1.0
        keep = (before < p.top_p * left) & (values >= p.min_p * values[0])
        keep[0] = True
        if p.top_k:
            keep[p.top_k :] = False
        if width == size or 0 < p.top_k <= width or not bool(keep[-1]):
            return int(ids[_invert(_typical(values * keep, p.typical_p), draw)])
    raise AssertionError("unreachable: the widest pass always answers")


def _typical(weights: Tensor, mass: float) -> Tensor:
    """`weights` [n] without those that are not locally typical: whose information is far from the mean.

    Meister et al., "Locally typical sampling", TACL 2023. The typical ones have a share of `mass` or more.
    """
    if mass >= 1:
        return weights
    p = weights.double() / weights.double().sum()
    information = -p.log()
    distance = (information - torch.nansum(p * information)).abs()
    nearest, order = distance.sort()
    last = min(int((p[order].cumsum(0) < mass).sum()), len(p) - 1)
    return weights * (distance <= nearest[last])


def _invert(weights: Tensor, draw: float) -> int:
    """The index where the running sum of `weights` [n] first exceeds `draw` times its total."""
    running = weights.double().cumsum(0)
    index = int(torch.searchsorted(running, draw * running[-1], right=True))
    return min(index, len(weights) - 1)
