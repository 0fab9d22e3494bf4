"""A stage as one of several processes, for the tests that train together."""

from __future__ import annotations

import os

import torch
from helpers.toy_training import SPEC, Lower, make_distill, make_net, make_views, run_distill

from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.hint_objectives import HintMatcher, HintObjective
from fitcompress.distillation.regressors import make_regressor
from fitcompress.training import distributed, fsdp


def make_hints():
    torch.manual_seed(3)
    regressor, _ = make_regressor((8, 3, 3), (4, 3, 3), non_negative_hint=True, when_equal=True)
    return HintObjective(
        Lower(make_net(8, seed=1)),
        Lower(make_net(4, seed=2)),
        HintMatcher([regressor]),
        teacher_preprocess=Preprocess(SPEC),
        student_preprocess=Preprocess(SPEC),
    )


def spy_on_shards() -> list[dict[str, float]]:
    """For each objective that is sharded from now on: the share of each weight of student and
    teacher that this process holds. Layers of 64 weights are gathered on their own.
    """
    seen, shard_objective = [], distributed.shard_objective

    def spy(*arguments):
        copy = shard_objective(*arguments)
        shares = {
            name: weight.to_local().numel() / weight.numel()
            for network in (copy.trained, copy.teacher)
            for name, weight in network.named_parameters()
        }
        seen.append(shares)
        return copy

    fsdp._LEAST_PARAMETERS, distributed.shard_objective = 64, spy
    return seen


def main(
    checkpoint: str, result: str, stage: str, accumulate: str, size: str, epochs: str, sharded: str
) -> None:
    """Trains or resumes, and writes losses and trained parameters to `result`.<rank>."""
    torch.set_num_threads(1)
    sharing = spy_on_shards()
    objective = make_distill() if stage == "stage2" else make_hints()
    objective.teacher.requires_grad_(False)  # like a frozen teacher
    outcome, objective = run_distill(
        checkpoint,
        objective=objective,
        data=(make_views(49, mixup=0.2), make_views(12, seed=1, augment="none")),
        stage=stage,
        accumulate=int(accumulate),
        batch_size=int(size),
        epochs=int(epochs),
        resume=True,
        shard=bool(int(sharded)),
    )
    content = {
        "losses": [record["losses"] for record in outcome.history],
        "held_out": [record["held_out"] for record in outcome.history],
        "num_images": outcome.num_images,
        "parameters": dict(objective.trained.named_parameters()),
        "buffers": dict(objective.trained.named_buffers()),
        "sharing": sharing,
    }
    torch.save(content, f"{result}.{os.environ.get('RANK', '0')}")
