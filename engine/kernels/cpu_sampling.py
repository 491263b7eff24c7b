"""The CPU kernels of sampling: penalties and biases, and the draw, in a fixed number of passes over the vocabulary.

Nothing is sorted. The draw finds a cut by rank or by mass by counting in buckets of the floats' bits, which order
positive floats like their values: 2048 buckets, then 1024 inside one of them, then 1024 inside one of those.

A table has a row for each request with penalties or a bias: `sizes` [R] int32 entries of distinct token `ids` [R, W]
int32, with `counts` [R, W] fp32 in the output (0: only in the prompt; NOT_SEEN: in neither) and `biases` [R, W] fp32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange

from motet.engine.kernels.cpu import row_kernel

ABSENT = -1
"""The key of an excluded element."""

LARGEST = 0x7F7FFFFF
"""The bits of the largest finite float32."""

NOT_SEEN = -1.0
"""The count of a token that is in a table for its bias only."""

_helper = njit


@_helper
def _crossing(keys, weights, counting, target, strict):
    """(key, weight above): where the weights, summed from the largest key down, first pass `target`.

    "Pass" is > where `strict`, else >=. `counting` lets each element weigh 1. The weight above is that of all larger
    keys. If the sum never passes `target`, the key is the smallest one.
    """
    above = 0.0
    prefix = 0
    for level in range(3):
        shift = 20 - 10 * level
        buckets = np.zeros(2048 if level == 0 else 1024, np.float64)
        for j in range(keys.shape[0]):
            key = keys[j]
            if key >= 0 and (level == 0 or key >> (shift + 10) == prefix):
                buckets[(key >> shift) - (prefix << 10)] += 1.0 if counting else weights[j]
        crossed = -1
        for offset in range(buckets.shape[0]):
            bucket = buckets.shape[0] - 1 - offset
            if buckets[bucket] > 0.0:
                if crossed >= 0:
                    above += buckets[crossed]
                crossed = bucket
                reached = above + buckets[bucket]
                if reached > target or (not strict and reached >= target):
                    break
        prefix = (prefix << 10) + max(crossed, 0)
    return prefix, above


@_helper
def _keep(keys, weights, counting, cut, target):
    """Zero the weight of every element after the `cut` of `_crossing`.

    Of the elements with its key, by id, those stay before which the sum has not reached `target`, and the first one.
    """
    key, reached = cut
    first = True
    for j in range(keys.shape[0]):
        if keys[j] == key and (first or reached < target):
            reached += 1.0 if counting else weights[j]
            first = False
        elif keys[j] <= key:
            weights[j] = 0.0


@_helper
def _order(keys, bits, weights):
    """Set `keys` so that the largest weight has the largest key; elements without weight are excluded."""
    for j in range(keys.shape[0]):
        keys[j] = bits[j] if weights[j] > 0.0 else ABSENT


@_helper
def _total(weights):
    total = 0.0
    for j in range(weights.shape[0]):
        total += weights[j]
    return total


@_helper
def _truncate(keys, bits, weights, top_k, top_p, min_p):
    """Apply top_k, then top_p of the rest, then min_p. The most likely element stays."""
    best = weights.max()
    left = 1.0
    if top_k > 0:
        _order(keys, bits, weights)
        cut = _crossing(keys, weights, True, float(top_k), False)
        _keep(keys, weights, True, cut, float(top_k))
        left = _total(weights)
    if top_p < 1.0:
        _order(keys, bits, weights)
        target = top_p * left
        cut = _crossing(keys, weights, False, target, False)
        _keep(keys, weights, False, cut, target)
    if min_p > 0.0:
        for j in range(weights.shape[0]):
            if weights[j] < min_p * best:
                weights[j] = 0.0


@_helper
def _keep_typical(keys, weights, mass):
    """Meister et al., "Locally typical sampling", TACL 2023: keep the elements nearest to the mean information."""
    total = _total(weights)
    entropy = 0.0
    for j in range(weights.shape[0]):
        if weights[j] > 0.0:
            p = weights[j] / total
            entropy -= p * math.log(p)
    distances = np.empty(weights.shape[0], np.float32)
    for j in range(weights.shape[0]):
        distances[j] = abs(-math.log(weights[j] / total) - entropy) if weights[j] > 0.0 else 0.0
    bits = distances.view(np.int32)
    for j in range(keys.shape[0]):
        keys[j] = LARGEST - bits[j] if weights[j] > 0.0 else ABSENT
    cut = _crossing(keys, weights, False, mass * total, False)
    _keep(keys, weights, False, cut, math.inf)  # all elements at the same distance stay


@_helper
def _first_past(weights, target):
    """The first id whose running sum is above `target`; the last one that has weight, if none is."""
    running = 0.0
    last = 0
    for j in range(weights.shape[0]):
        if weights[j] > 0.0:
            running += weights[j]
            last = j
            if running > target:
                break
    return last


@_helper
def _best_first(keys, bits, weights, target):
    """As `_first_past`, with the ids in the order of their weight, and equal ones by id."""
    _order(keys, bits, weights)
    key, running = _crossing(keys, weights, False, target, True)
    last = 0
    for j in range(keys.shape[0]):
        if keys[j] == key:
            running += weights[j]
            last = j
            if running > target:
                break
    return last


def _volume(probabilities: Any, *_: Any) -> int:
    return int(probabilities.size)


@row_kernel(_volume, fastmath=False)
def draw_rows(probabilities, top_k, cuts, draws, out):
    """out[N] (int32): the id that each row of probabilities [N, V] gives for draws[N] (fp64 in [0, 1)).

    top_k [N] is int32 (0: off); cuts [N, 3] fp64 are top_p, min_p and typical_p. `probabilities` is overwritten. Where
    top_k, top_p or min_p is set, the ids are in the order of their probability (equal ones by id), else by id. Where a
    draw is negative, `out` stays as it is.
    """
    bits = probabilities.view(np.int32)
    for i in prange(probabilities.shape[0]):
        if draws[i] >= 0.0:
            weights = probabilities[i]
            keys = np.empty(weights.shape[0], np.int32)
            truncated = top_k[i] > 0 or cuts[i, 0] < 1.0 or cuts[i, 1] > 0.0
            if truncated:
                _truncate(keys, bits[i], weights, top_k[i], cuts[i, 0], cuts[i, 1])
            if cuts[i, 2] < 1.0:
                _keep_typical(keys, weights, cuts[i, 2])
            target = draws[i] * _total(weights)
            if truncated:
                out[i] = _best_first(keys, bits[i], weights, target)
            else:
                out[i] = _first_past(weights, target)


def _entries(logits: Any, rows: Any, places: Any, penalties: Any, ids: Any, *_: Any) -> int:
    return int(rows.size * ids.shape[1])


@row_kernel(_entries, fastmath=False)
def adjust_rows(logits, rows, places, penalties, ids, counts, biases, sizes):
    """Penalise and bias rows[M] of logits [N, V] in place, by the rows places[M] of the table.

    penalties [M, 3] fp32 are the repetition penalty (Keskar et al., "CTRL", 2019), and OpenAI's presence and frequency
    penalties.
    """
    for i in prange(rows.shape[0]):
        line, place = logits[rows[i]], places[i]
        repetition, presence, frequency = penalties[i, 0], penalties[i, 1], penalties[i, 2]
        for j in range(sizes[place]):
            value, count = line[ids[place, j]], counts[place, j]
            if count >= 0:
                value = value / repetition if value > 0 else value * repetition
                value -= frequency * count + (presence if count > 0 else np.float32(0))
            line[ids[place, j]] = value + biases[place, j]


def _searched(sampled: Any, rows: Any, places: Any, ids: Any, *_: Any) -> int:
    return int(rows.size * ids.shape[1])


@row_kernel(_searched, fastmath=False)
def count_rows(sampled, rows, places, ids, counts, biases, sizes):
    """Count sampled[rows[M]] (int32) in the rows places[M] of the table, which have room for an entry more."""
    for i in prange(rows.shape[0]):
        token, place = sampled[rows[i]], places[i]
        size = sizes[place]
        entry = 0
        while entry < size and ids[place, entry] != token:
            entry += 1
        if entry == size:
            ids[place, entry], counts[place, entry], biases[place, entry] = token, 0, 0
            sizes[place] = size + 1
        counts[place, entry] = max(counts[place, entry], np.float32(0)) + np.float32(1)
