"""Training: one engine for every stage, and the objectives that give the stages their meaning.

Layer: above data, losses and regressors; below the pipeline. `train` is a loop that knows no stage;
`objectives` say what is minimised; `checkpoint` and `interrupts` make that a run can be stopped
anywhere and goes on to the same bits.
"""

from fitcompress.training.checkpoint import read_checkpoint
from fitcompress.training.device import (
    has_bf16,
    resolve_device,
    resolve_precision,
    used_threads,
)
from fitcompress.training.engine import train
from fitcompress.training.hint_objectives import HintMatcher, HintObjective, JointObjective
from fitcompress.training.hint_targets import (
    HintTargets,
    LabelHints,
    MatchedMoments,
    RandomHints,
    ShuffledHints,
)
from fitcompress.training.interrupts import Interrupted, stop_on_signals
from fitcompress.training.objectives import (
    DistillObjective,
    Objective,
    SupervisedObjective,
    TeachingObjective,
)
from fitcompress.training.result import StageResult
from fitcompress.training.statistics import (
    HintStatistics,
    estimate_hint_statistics,
    reestimate_batch_norms,
    standardise_hints,
)

__all__ = [
    "DistillObjective",
    "HintMatcher",
    "HintObjective",
    "HintStatistics",
    "HintTargets",
    "Interrupted",
    "JointObjective",
    "LabelHints",
    "MatchedMoments",
    "Objective",
    "RandomHints",
    "ShuffledHints",
    "StageResult",
    "SupervisedObjective",
    "TeachingObjective",
    "estimate_hint_statistics",
    "has_bf16",
    "read_checkpoint",
    "reestimate_batch_norms",
    "resolve_device",
    "resolve_precision",
    "standardise_hints",
    "stop_on_signals",
    "train",
    "used_threads",
]
