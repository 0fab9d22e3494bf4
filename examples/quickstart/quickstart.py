"""The full pipeline in Python: recipe, run, report, loading the student. Under a minute.

python quickstart.py [OUT]
"""

from __future__ import annotations

import sys

import fitcompress

SETTINGS = {
    # A tiny timm model with random weights: a copy is fine-tuned on the built-in images first.
    "teacher.source": "test_resnet",
    "teacher.pretrained": False,
    "teacher.epochs": 2,
    "student.depth_mult": 2,
    "student.width_mult": 0.5,
    "data.source": "builtin",
    "data.limit": 2000,
    "stage1.epochs": 1,
    "stage2.epochs": 2,
    "run.device": "cpu",
}


def main(out: str) -> None:
    recipe = fitcompress.resolve_recipe(settings={**SETTINGS, "run.out": out})
    report = fitcompress.distill(recipe)
    print(report.render("text"))

    # This works in any process, on any machine, without the teacher. Loading runs no code.
    student = fitcompress.load(out)
    print("the student takes images of", student.interface.input.shape)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
