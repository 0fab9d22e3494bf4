"""Write a traced archive, as a colleague might hand it over: a network without its code.

python make_teacher.py [FILE]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import fitcompress


def main(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = fitcompress.resolve_recipe(
            settings={
                "teacher.source": "test_resnet",
                "teacher.pretrained": False,
                "teacher.epochs": 3,
                "data.source": "builtin",
                "data.limit": 3000,
                "run.device": "cpu",
                "run.out": f"{folder}/teacher",
            }
        )
        teacher = fitcompress.load(fitcompress.train_teacher("test_resnet", recipe))

    spec = teacher.interface.input
    torch.jit.trace(teacher, torch.zeros(1, *spec.shape)).save(path)
    size, mean, std = (",".join(map(str, values)) for values in (spec.shape, spec.mean, spec.std))
    print(f"{path} takes: --input-size {size} --mean {mean} --std {std}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "teacher.pt"))
