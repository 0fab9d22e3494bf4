"""Data sets by timm's names: torchvision's, and others if their packages are installed."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from fitcompress.data.bundle import load_data
from fitcompress.data.timm_sets import is_timm_source, load_timm_splits
from fitcompress.errors import DataError
from fitcompress.events import ignore
from fitcompress.recipe.schema import DataRecipe


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion_root(tmp_path):
    """A Fashion-MNIST of 30 + 10 images, as torchvision expects it on disk."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, num in (("train", 30), ("t10k", 10)):
        images = np.arange(num, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
        write_idx(raw / f"{stem}-images-idx3-ubyte", images)
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(num) % 10)
    return tmp_path


@pytest.mark.parametrize("source", ["hfds/x", "torch/cifar10", "TFDS/x", "wds//x", "hfids/a/b"])
def test_known_prefixes_are_data_sets(source):
    assert is_timm_source(source)


@pytest.mark.parametrize("source", ["builtin", "images/torch", "torch", "./wds/x", "/hfds/x"])
def test_other_names_are_not(source):
    assert not is_timm_source(source)


def test_torchvision_set_gives_both_splits_and_class_names(fashion_root):
    train, evaluation, split, names = load_timm_splits(f"torch/fashion_mnist?root={fashion_root}")

    assert (len(train), len(evaluation), split) == (30, 10, "validation")
    assert train.labels.tolist() == [i % 10 for i in range(30)]
    assert names[9] == "Ankle boot"
    assert (train.image_size, train.num_bytes) == ((28, 28), 30 * 28 * 28)
    assert train.load(7).getpixel((3, 3)) == (7, 7, 7)
    assert evaluation.load(9).getpixel((0, 0)) == (9, 9, 9)


def test_torchvision_set_becomes_a_bundle(fashion_root):
    source = f"torch/fashion_mnist?root={fashion_root}"

    bundle = load_data(DataRecipe(source=source), seed=0, emit=ignore)

    assert (len(bundle.train), len(bundle.held_out), len(bundle.evaluation)) == (27, 3, 10)
    assert bundle.num_classes == 10


def test_folder_through_torchvision_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 6)).save(folder / "x.png", exif=exif)

    train, _, _, names = load_timm_splits(f"torch/image_folder?root={tmp_path}")

    assert names == ("a", "b")
    assert train.labels.tolist() == [0, 1]
    assert train.image_size == (4, 6)
    assert train.load(0).size == (6, 4)


def test_image_broken_in_a_data_set_is_a_data_error(tmp_path, class_folders):
    root = class_folders(tmp_path, a=2, b=2)
    train, _, _, _ = load_timm_splits(f"torch/image_folder?root={root}")
    (root / "b" / "001.png").write_bytes(b"")

    with pytest.raises(DataError) as caught:
        train.load(3)

    assert caught.value.code == "image-undecodable"
    assert "image 3 of a data set" in caught.value.message


def test_unknown_data_set_and_setting_are_refused():
    with pytest.raises(DataError) as caught:
        load_timm_splits("torch/nope?root=.")
    assert caught.value.code == "dataset-not-found"
    assert "Unknown torchvision dataset nope" in caught.value.message
    with pytest.raises(DataError) as caught:
        load_timm_splits("torch/cifar10?roof=/data")
    assert caught.value.code == "dataset-setting-unknown"
    assert caught.value.facts["setting"] == "roof"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)

    with pytest.raises(DataError) as caught:
        load_timm_splits("tfds/mnist")

    assert caught.value.code == "dataset-package-missing"
    assert "pip install tensorflow-datasets" in caught.value.advice


def test_missing_webdataset_is_named(monkeypatch, tmp_path):
    from timm.data.readers import reader_wds

    monkeypatch.setattr(reader_wds, "wds", None)

    with pytest.raises(DataError) as caught:
        load_timm_splits(f"wds/{tmp_path}")

    assert caught.value.code == "dataset-package-missing"
    assert caught.value.facts["package"] == "webdataset"


class Stream:
    """Stands for timm's data set of a source that can only be read in order."""

    def __init__(self, num):
        self.num = num

    def set_loader_cfg(self, num_workers=None):
        pass

    def __getitem__(self, index):
        raise AssertionError("a stream has no indices")

    def __iter__(self):
        for i in range(self.num):
            yield Image.new("L", (6, 4), i), i % 2


@pytest.fixture
def streams(monkeypatch):
    """timm's factory makes "train" of 12 images and "test" of 4; its calls are recorded."""
    calls = []

    def create(name, **settings):
        calls.append((name, settings))
        sizes = {"train": 12, "test": 4}
        if settings["split"] not in sizes:
            raise ValueError(f"Unknown split {settings['split']!r}")
        return Stream(sizes[settings["split"]])

    monkeypatch.setattr("timm.data.create_dataset", create)
    return calls


def test_stream_is_read_once_into_memory(streams):
    train, evaluation, split, names = load_timm_splits("tfds/x")

    assert (len(train), len(evaluation), split, names) == (12, 4, "test", ())
    assert train.load(5).getpixel((0, 0)) == (5, 5, 5)
    assert train.load(1).getpixel((0, 0)) == (1, 1, 1)
    assert train.labels.tolist() == [0, 1] * 6
    assert (train.image_size, train.num_bytes) == ((4, 6), 12 * 4 * 6 * 3)
    assert len(streams) == 2


def test_stream_too_big_for_memory_is_refused(streams, monkeypatch):
    monkeypatch.setattr("fitcompress.data.timm_sets._MAX_STREAM_BYTES", 5 * 4 * 6 * 3)

    with pytest.raises(DataError) as caught:
        load_timm_splits("tfds/x")

    assert caught.value.code == "stream-too-large"


def test_settings_reach_timm(streams):
    load_timm_splits(
        "hfids/a/b?root=/r&train_split=test&eval_split=train&target_key=fine&input_key=p"
    )

    (name, settings), (_, second) = streams
    assert name == "hfids/a/b"
    assert (settings["root"], settings["split"], second["split"]) == ("/r", "test", "train")
    assert (settings["target_key"], settings["input_key"]) == ("fine", "p")


def test_webdataset_takes_its_name_as_its_folder(streams):
    load_timm_splits("wds//data/shards")

    assert streams[0][1]["root"] == "/data/shards"


def test_missing_evaluation_split_is_an_error_only_if_it_was_requested(streams, monkeypatch):
    monkeypatch.setattr("fitcompress.data.timm_sets._EVALUATION_SPLITS", ("validation", "val"))

    assert load_timm_splits("tfds/x")[1:3] == (None, "")
    with pytest.raises(DataError) as caught:
        load_timm_splits("tfds/x?eval_split=validation")
    assert (caught.value.code, caught.value.facts["split"]) == ("dataset-not-found", "validation")


def test_labels_that_are_not_a_class_index_are_refused(monkeypatch):
    pairs = LabeledSet([(1, 2), (3, 4)])
    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **settings: pairs)

    with pytest.raises(DataError) as caught:
        load_timm_splits("torch/pairs?root=.")

    assert (caught.value.code, caught.value.facts["got"]) == ("label-not-class-index", "(1, 2)")


def test_webdataset_shards_are_read(tmp_path):
    pytest.importorskip("webdataset", reason="webdataset is not installed")
    splits = {}
    for split, num in (("train", 12), ("validation", 4)):
        name = f"{split}-0000.tar"
        with tarfile.open(tmp_path / name, "w") as archive:
            for i in range(num):
                file = io.BytesIO()
                Image.new("RGB", (5, 4), (i, 0, 0)).save(file, "PNG")
                for suffix, content in (("png", file.getvalue()), ("cls", str(i % 3).encode())):
                    info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        entry = {"name": split, "num_samples": num, "filenames": [name], "shard_lengths": [num]}
        splits[split] = entry
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))

    train, evaluation, split, _ = load_timm_splits(f"wds/{tmp_path}")

    assert (len(train), len(evaluation), split) == (12, 4, "validation")
    assert train.labels.tolist() == [i % 3 for i in range(12)]
    assert train.load(11).getpixel((0, 0)) == (11, 0, 0)


def test_hugging_face_folder_is_read(tmp_path, class_folders):
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    for split in ("train", "test"):
        class_folders(tmp_path / "images" / split, a=3, b=4)

    source = f"hfds/{tmp_path / 'images'}?root={tmp_path / 'cache'}"
    train, evaluation, split, names = load_timm_splits(source)

    assert (len(train), len(evaluation), split, names) == (7, 7, "test", ("a", "b"))
    assert train.labels.tolist() == [0] * 3 + [1] * 4
    with Image.open(tmp_path / "images" / "train" / "b" / "000.png") as image:
        np.testing.assert_array_equal(np.asarray(train.load(3)), np.asarray(image))


class LabeledSet:
    """A data set with random access and these labels."""

    def __init__(self, targets):
        self.targets = targets

    def __getitem__(self, index):
        return Image.new("L", (2, 2)), self.targets[index]


def test_unlabeled_evaluation_split_is_skipped(monkeypatch):
    splits = {"train": [0, 1], "test": [-1, -1, -1], "validation": [1, 0]}
    monkeypatch.setattr(
        "timm.data.create_dataset", lambda name, split, **settings: LabeledSet(splits[split])
    )

    _, evaluation, split, _ = load_timm_splits("hfds/x")

    assert (split, evaluation.labels.tolist()) == ("validation", [1, 0])


def test_empty_split_is_refused(monkeypatch):
    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **settings: LabeledSet([]))

    with pytest.raises(DataError) as caught:
        load_timm_splits("hfds/x")

    assert (caught.value.code, caught.value.facts["split"]) == ("dataset-empty", "train")


def test_empty_stream_is_refused(monkeypatch):
    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **settings: Stream(0))

    with pytest.raises(DataError) as caught:
        load_timm_splits("tfds/x")

    assert caught.value.code == "dataset-empty"
