"""The check that a teacher fits the images, before anything is trained from it."""

from __future__ import annotations

from fitcompress.errors import TeacherError
from fitcompress.evaluation.accuracy import Predictions, accuracy, is_near_chance

__all__ = ["check_teacher"]


def check_teacher(predictions: Predictions, name: str, split: str) -> None:
    """Stops a run, before it trains anything, whose teacher does not fit the images.

    Raises:
        TeacherError: the teacher's accuracy is near chance.
    """
    measured, num_classes = accuracy(predictions), predictions.logits_NK.shape[1]
    if measured is None or num_classes < 2 or not is_near_chance(measured, num_classes):
        return
    raise TeacherError(
        f"checking the teacher '{name}' on the {split} images: its top-1 accuracy is"
        f" {measured.top1:.1%} (n = {measured.n}), near chance for {num_classes} classes",
        code="teacher-near-chance",
        advice="Check the normalization (--mean, --std, --input-size) and the order of the classes"
        " (--class-map), or train the teacher longer (--teacher-epochs).",
        teacher=name,
        split=split,
        accuracy=measured.top1,
        num_images=measured.n,
        num_classes=num_classes,
    )
