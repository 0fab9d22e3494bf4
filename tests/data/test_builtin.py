"""The built-in set: counts, balance, and every pixel."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from fitcompress.data.builtin import builtin_class_names, builtin_name, load_builtin

FOLDER = resources.files("fitcompress.data") / "fashion_mnist"
SOURCE = Path("/usr/share/datasets/fashion-mnist")
EXAMPLE = Path(__file__).parents[2] / "examples" / "make_builtin_data.py"
# Computed from the idx files, not from the mosaics: first training image of each class, in turn.
FIRST_TEN_SHA256 = "2affdbad4122a9ea681b4bd1de81af3e6b5d684775bdb879d0a5ad3fb871015b"
TRAIN_SHA256 = "8c79dc55d30fe46f5e6f9b91a6aaec87320aeee072c52c74154310c10c02ada9"
TEST_SHA256 = "c7e1fe27495cab70780e88a7377793ff5dc187dbdef6bc4ead382112bfba8bdc"

needs_source = pytest.mark.skipif(
    not SOURCE.is_dir(), reason="the complete Fashion-MNIST is not installed on this machine"
)
needs_example = pytest.mark.skipif(
    not EXAMPLE.is_file(), reason="the examples are not beside the tests"
)


def sha256(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def read_idx(name):
    raw = gzip.decompress((SOURCE / f"{name}-ubyte.gz").read_bytes())
    return raw[16:] if raw[3] == 3 else raw[8:]


@pytest.mark.parametrize(("split", "num_per_class"), [("train", 1000), ("test", 200)])
def test_classes_are_balanced_and_take_turns(split, num_per_class):
    images = load_builtin(split)

    assert images.pixels.shape == (10 * num_per_class, 28, 28)
    assert images.pixels.dtype == np.uint8
    assert np.bincount(images.labels).tolist() == [num_per_class] * 10
    assert images.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert (images.image_size, images.num_bytes) == ((28, 28), 10 * num_per_class * 28 * 28)


def test_no_image_comes_twice():
    pixels = np.concatenate([load_builtin(split).pixels for split in ("train", "test")])

    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == 12000


def test_pixels_are_those_of_the_source():
    train, test = load_builtin("train"), load_builtin("test")

    assert sha256(train.pixels[:10]) == FIRST_TEN_SHA256
    assert sha256(train.pixels) == TRAIN_SHA256
    assert sha256(test.pixels) == TEST_SHA256


def test_checksum_notices_one_changed_pixel():
    pixels = load_builtin("train").pixels.copy()
    pixels[5000, 14, 14] ^= 1

    assert sha256(pixels) != TRAIN_SHA256


@needs_source
@pytest.mark.parametrize(("split", "stem"), [("train", "train"), ("test", "t10k")])
def test_every_image_is_in_the_source_with_its_label(split, stem):
    raw, labels = read_idx(f"{stem}-images-idx3"), read_idx(f"{stem}-labels-idx1")
    label_of = {raw[i * 784 : (i + 1) * 784]: labels[i] for i in range(len(labels))}

    images = load_builtin(split)

    found = [label_of[image.tobytes()] for image in images.pixels]
    np.testing.assert_array_equal(found, images.labels)


@needs_source
@needs_example
def test_packing_again_chooses_the_same_images(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import make_builtin_data as packing

    index = json.loads((FOLDER / "index.json").read_text())
    for split, (stem, num_per_class) in packing.SPLITS.items():
        labels = packing.read_idx(SOURCE / f"{stem}-labels-idx1-ubyte.gz")
        chosen = packing.choose_images(labels, num_per_class)
        pixels = packing.read_idx(SOURCE / f"{stem}-images-idx3-ubyte.gz")[chosen]

        assert sha256(pixels) == index["splits"][split]["pixels_sha256"]
        by_turns = pixels.reshape(10, num_per_class, 28, 28).swapaxes(0, 1).reshape(-1, 28, 28)
        np.testing.assert_array_equal(by_turns, load_builtin(split).pixels)


@needs_example
def test_mosaic_holds_each_image_in_its_place(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import make_builtin_data as packing

    images = np.random.default_rng(0).integers(0, 256, (300, 4, 5), dtype=np.uint8)

    mosaic = packing.build_mosaic(images)

    assert mosaic.shape == (12, 500)
    np.testing.assert_array_equal(mosaic[4:8, 10:15], images[102])


def test_files_are_small_and_carry_their_licence():
    sizes = [item.stat().st_size for item in Path(str(FOLDER)).iterdir()]
    licence = (FOLDER / "LICENSE").read_text()

    assert sum(sizes) < 6e6
    assert "MIT" in licence and "2017 Zalando SE" in licence


def test_names():
    assert len(set(builtin_class_names())) == 10
    assert builtin_class_names()[9] == "Ankle boot"
    assert "Fashion-MNIST" in builtin_name()


def test_pixels_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        load_builtin("test").pixels[0] = 0


def test_whole_set_loads_in_under_two_seconds_of_a_fresh_process():
    program = (
        "from fitcompress.data.builtin import load_builtin\n"
        "import time\n"
        "start = time.process_time()\n"
        "load_builtin('train'), load_builtin('test')\n"
        "print(time.process_time() - start)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert float(answer.stdout) < 2
