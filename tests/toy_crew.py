"""A stage as one of several processes, for the tests that train together.

    python toy_crew.py CHECKPOINT RESULT STAGE ACCUMULATE BATCH_SIZE EPOCHS

trains (or resumes) and writes losses and trained parameters to RESULT.<rank>.
"""

from __future__ import annotations

import os
import sys

import torch
from toy_training import SPEC, Lower, make_distill, make_net, make_views, run_distill

from fitcompress.data import Preprocess
from fitcompress.regressors import make_regressor
from fitcompress.training import HintObjective


def make_hints():
    torch.manual_seed(3)
    regressor, _ = make_regressor((8, 3, 3), (4, 3, 3), non_negative_hint=True, when_equal=True)
    return HintObjective(
        Lower(make_net(8, seed=1)),
        Lower(make_net(4, seed=2)),
        [regressor],
        teacher_preprocess=Preprocess(SPEC),
        student_preprocess=Preprocess(SPEC),
    )


def main(checkpoint: str, result: str, stage: str, accumulate: str, size: str, epochs: str) -> None:
    torch.set_num_threads(1)
    objective = make_distill() if stage == "stage2" else make_hints()
    objective.teacher.requires_grad_(False)  # as a frozen teacher is
    outcome, objective = run_distill(
        checkpoint,
        objective=objective,
        train_data=make_views(49, mixup=0.2),
        held_out_data=make_views(12, seed=1, augment="none"),
        stage=stage,
        accumulate=int(accumulate),
        batch_size=int(size),
        epochs=int(epochs),
        resume=True,
    )
    content = {
        "losses": [record["losses"] for record in outcome.history],
        "held_out": [record["held_out"] for record in outcome.history],
        "num_images": outcome.num_images,
        "parameters": dict(objective.trained.named_parameters()),
        "buffers": dict(objective.trained.named_buffers()),
    }
    torch.save(content, f"{result}.{os.environ.get('RANK', '0')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
