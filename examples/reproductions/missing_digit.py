"""Hinton et al., section 3: a digit that the student never saw.

    python missing_digit.py --teacher teachers/hinton --mnist mnist --out runs/missing

Distills a 2 x 800 student on the MNIST training images without the threes, from soft targets alone,
and counts its errors on all test images: unchanged, with the bias of class 3 raised by 3.5 as in
the paper, and raised by what is best on the test images. The last number is a diagnosis, not a
result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torchvision.datasets import MNIST

import fitcompress

DIGIT = 3
SHIFTS = [step / 4 for step in range(41)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of torchvision's MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs/missing"))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    others = write_others(given.mnist, given.out / "others")
    print("| seed | errors | on threes | bias + 3.5 | on threes | best bias | errors |")
    print("|---|---|---|---|---|---|---|")
    for seed in range(given.seeds):
        print(row(seed, distilled(given.teacher, others, given.out / f"seed{seed}", seed), given))


def write_others(mnist: Path, folder: Path) -> Path:
    """Write the training images of the other digits into one folder without labels."""
    if not folder.is_dir():
        part = folder.with_name("others.part")
        part.mkdir(parents=True, exist_ok=True)
        training = MNIST(mnist)
        for number, label in enumerate(training.targets.tolist()):
            if label != DIGIT:
                Image.fromarray(training.data[number].numpy()).save(part / f"{number:05}.png")
        part.rename(folder)
    return folder


def distilled(teacher: str, images: Path, out: Path, seed: int) -> torch.nn.Module:
    recipe = fitcompress.resolve_recipe(
        config=Path(__file__).with_name("hinton.toml"),
        settings={
            "teacher.source": teacher,
            "data.source": str(images),
            "run.out": str(out),
            "run.seed": seed,
            "run.timing": "none",
        },
    )
    fitcompress.distill(recipe, resume=True)
    return fitcompress.load(out)


def row(seed: int, student: torch.nn.Module, given: argparse.Namespace) -> str:
    test = MNIST(given.mnist, train=False)
    spec = student.interface.images
    images = (test.data[:, None].float() / 255 - spec.mean[0]) / spec.std[0]
    with torch.no_grad():
        logits = student(images)
    labels, is_digit = test.targets, test.targets == DIGIT

    def errors(shift: float) -> tuple[int, int]:
        shifted = logits.clone()
        shifted[:, DIGIT] += shift
        wrong = shifted.argmax(1) != labels
        return int(wrong.sum()), int((wrong & is_digit).sum())

    best = min(SHIFTS, key=lambda shift: errors(shift)[0])
    own, raised = errors(0.0), errors(3.5)
    cells = (seed, *own, *raised, best, errors(best)[0])
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
