"""Counts the launches, copies and waits of sampling alone on fake CUDA.

`python -m support.sampler_counts DIRECTORY CASE,CASE…` prints a JSON object: for each case, such as `everything-32` (32
rows), the counts of the second step, since the first one fills the table of tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from support import fake_cuda
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams
from motet.engine.sampling.sampler import Sampler
from motet.engine.schedule.priority import Precedence
from motet.engine.schedule.sequence import Sequence
from motet.engine.staging import StagingBuffer

VOCAB = 128_256
PARAMS = {
    "greedy": SamplingParams(max_tokens=9, temperature=0.0),
    "drawn": SamplingParams(max_tokens=9, top_k=50, top_p=0.9, min_p=0.01),
    "everything": SamplingParams(
        max_tokens=9,
        top_p=0.9,
        typical_p=0.9,
        repetition_penalty=1.2,
        presence_penalty=0.1,
        logit_bias={3: 1.0},
        min_tokens=9,
        eos_token_ids=(2,),
        logprobs=5,
    ),
}


def count(case: str, counts: fake_cuda.DeviceCounts) -> dict[str, object]:
    """The counts of one step. Of the rows with everything, every second one is greedy, and half have a grammar."""
    kind, rows = case.split("-")[0], int(case.split("-")[1])
    device = torch.device("cuda", 0)
    sampler, staging = Sampler(VOCAB, device), StagingBuffer(1 << 18, device)
    sequences = []
    for row in range(rows):
        params = PARAMS["greedy" if kind == "everything" and row % 2 else kind]
        request = AddRequest(str(row), (5, 6, 7), params)
        sequences.append(Sequence(request, b"", Precedence(0, 0, row), 0.0, 9, num_unread=1))
    for _ in range(2):
        counts.clear()
        staging.begin()
        batch = sampler.stage(sequences, staging)
        staging.send()
        logits = torch.empty(rows, VOCAB, device=device)
        with unset_fake_temporarily():  # masks are host memory
            masks = {row: torch.ones(VOCAB, dtype=torch.bool) for row in range(rows // 2) if kind == "everything"}
        sampled = sampler(logits, batch, masks)
        before = sum(counts.waits.values()) - counts.waits["event after the upload"]
        sampled.read()
    return {
        "kernels": counts.kernels,
        "launches": dict(counts.launches),
        "uploads": sum(counts.uploads.values()),
        "downloads": sum(counts.downloads.values()),
        "waits": dict(counts.waits),
        "waits_before_read": before,
    }


def main() -> None:
    """Count every case."""
    directory, counts = Path(sys.argv[1]), fake_cuda.DeviceCounts()
    fake_cuda.register_device_guard(directory)
    fake_cuda.install_stand_ins(counts)
    with FakeTensorMode(allow_non_fake_inputs=True), counts:
        found = {case: count(case, counts) for case in sys.argv[2].split(",")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
