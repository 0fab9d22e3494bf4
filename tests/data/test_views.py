"""Views: plain ones compared with timm, augmented ones with torchvision, and purity."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms.v2 import functional as F

from fitcompress.data.image_ops import plain_view
from fitcompress.data.rng import Stream, random_bits, to_beta, to_uniform
from fitcompress.data.views import Batch, make_dataset
from fitcompress.errors import RecipeError


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize(
    "native", [(40, 60), (61, 37), (20, 20), (9, 50)], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_plain_view_is_that_of_timms_evaluation(spec_of, native, crop_pct, interpolation):
    image = noise(*native)
    settings = {"interpolation": interpolation, "crop_pct": crop_pct}
    transform = create_transform((3, 32, 32), use_prefetcher=True, **settings)

    view = plain_view(image, spec_of(3, 32, 32, **settings))

    np.testing.assert_array_equal(view, np.asarray(transform(image)))


def test_image_of_the_networks_size_is_not_changed(spec_of):
    image = noise(32, 32)

    view = plain_view(image, spec_of(3, 32, 32, crop_pct=0.875))

    np.testing.assert_array_equal(view, np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("native", [(30, 90), (90, 30), (17, 23)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
def test_plain_view_of_an_oblong_network_covers_it(spec_of, native, crop_pct):
    white = Image.new("RGB", (native[1], native[0]), "white")

    view = plain_view(white, spec_of(3, 24, 40, crop_pct=crop_pct))

    assert view.shape == (3, 24, 40)
    assert (view == 255).all()  # a crop beyond the image would be padded with black


def test_gray_network_gets_one_channel(spec_of):
    image = noise(20, 20)

    view = plain_view(image, spec_of(1, 20, 20))

    np.testing.assert_array_equal(view, np.asarray(image.convert("L"))[None])


def test_unknown_interpolation_is_refused(spec_of):
    with pytest.raises(RecipeError) as caught:
        plain_view(noise(9, 9), spec_of(3, 8, 8, interpolation="cubic"))

    assert (caught.value.code, caught.value.facts["got"]) == ("interpolation-unknown", "cubic")


@pytest.mark.parametrize(("augment", "reach"), [("flip", 0), ("crop", 4), ("shift", 4)])
def test_moved_views_are_torchvisions_pad_crop_and_flip(array_images, spec_of, augment, reach):
    images = array_images(num=40, size=(32, 32))
    views = make_dataset(images, spec_of(3, 32, 32), augment=augment, seed=5)
    views.set_epoch(3)
    uniforms = to_uniform(random_bits(5, Stream.VIEW, range(40), epoch=3, num=3))

    batch = views.batch(range(40))

    for i, (u_down, u_right, u_flip) in enumerate(uniforms):
        top, left = (int(u * (2 * reach + 1)) for u in (u_down, u_right))
        image = torch.from_numpy(images.pixels[i]).permute(2, 0, 1)
        expected = F.crop(F.pad(image, [reach] * 4, padding_mode="reflect"), top, left, 32, 32)
        flips = augment != "shift" and u_flip < 0.5
        expected = F.horizontal_flip(expected) if flips else expected
        assert torch.equal(batch.images[i], expected)


@pytest.mark.parametrize(("side", "reach"), [(32, 4), (28, 4), (8, 1), (224, 28)])
def test_crop_reaches_an_eighth_of_the_side_both_ways(array_images, spec_of, side, reach):
    ramp = np.tile(np.arange(side, dtype=np.uint8), (side, 1))
    images = array_images(num=1)
    images.pixels.resize((1, side, side, 3), refcheck=False)
    images.pixels[0] = ramp[..., None]
    views = make_dataset(images, spec_of(3, side, side), augment="crop", seed=0)
    centres = set()
    for epoch in range(40 * reach):
        views.set_epoch(epoch)
        row = views[0][0][0, 0].tolist()
        row = row if row[side // 2] < row[side // 2 + 1] else row[::-1]
        centres.add(row[side // 2] - side // 2)

    assert (min(centres), max(centres)) == (-reach, reach)


def test_the_reach_of_a_shift_can_be_set(array_images, spec_of):
    """Two pixels of 28, as Hinton et al. jitter MNIST."""
    images = array_images(num=1)
    images.pixels.resize((1, 28, 28, 3), refcheck=False)
    images.pixels[0] = np.tile(np.arange(28, dtype=np.uint8), (28, 1))[..., None]
    views = make_dataset(images, spec_of(3, 28, 28), augment="shift", seed=0, padding=2 / 28)
    centres = set()
    for epoch in range(60):
        views.set_epoch(epoch)
        centres.add(int(views[0][0][0, 0, 14]) - 14)
    assert centres == {-2, -1, 0, 1, 2}


def test_augment_none_gives_plain_views_in_every_epoch(array_images, spec_of):
    images = array_images(size=(20, 30))
    spec = spec_of(3, 16, 16)
    views = make_dataset(images, spec, augment="none", seed=0)

    for epoch in (0, 1):
        views.set_epoch(epoch)
        for i in (0, 7):
            np.testing.assert_array_equal(views[i][0].numpy(), plain_view(images.load(i), spec))


@pytest.mark.parametrize(
    ("native", "augment"), [((28, 28), "crop"), ((64, 64), "crop"), ((40, 65), "strong")]
)
def test_auto_chooses_by_native_size(array_images, spec_of, native, augment):
    images = array_images(num=2, size=native)

    assert make_dataset(images, spec_of(3, 224, 224), augment="auto", seed=0).augment == augment


@pytest.mark.parametrize("augment", ["flip", "shift", "crop", "strong"])
class TestPurity:
    """The view of a sample is a function of (seed, sample id, epoch)."""

    def views(self, array_images, spec_of, augment, **settings):
        images = array_images(num=12, size=(30, 26))
        defaults = {"augment": augment, "seed": 1}
        return make_dataset(images, spec_of(3, 24, 24), **(defaults | settings))

    def test_of_batch_and_order(self, array_images, spec_of, augment):
        views = self.views(array_images, spec_of, augment)
        together = views.batch(range(12)).images
        backwards = views.batch(range(11, -1, -1)).images
        alone = torch.stack([views[i][0] for i in range(12)])

        assert torch.equal(together, backwards.flip(0))
        assert torch.equal(together, alone)

    def test_of_global_random_state_which_it_leaves_alone(self, array_images, spec_of, augment):
        views = self.views(array_images, spec_of, augment)
        first = views.batch(range(12)).images
        torch.manual_seed(99)
        random.seed(99)
        states = torch.get_rng_state(), random.getstate()

        assert torch.equal(views.batch(range(12)).images, first)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]

    def test_of_the_cache_and_of_pickling(self, array_images, spec_of, augment):
        views = self.views(array_images, spec_of, augment)
        first = views.batch(range(12)).images
        uncached = self.views(array_images, spec_of, augment, cache_bytes=0)

        assert torch.equal(views.batch(range(12)).images, first)
        assert torch.equal(uncached.batch(range(12)).images, first)
        assert torch.equal(pickle.loads(pickle.dumps(views)).batch(range(12)).images, first)

    @pytest.mark.parametrize("other", ["seed", "epoch"])
    def test_but_seed_and_epoch_change_it(self, array_images, spec_of, augment, other):
        views = self.views(array_images, spec_of, augment)
        changed = self.views(array_images, spec_of, augment, seed=2 if other == "seed" else 1)
        changed.set_epoch(1 if other == "epoch" else 0)

        assert not torch.equal(views.batch(range(12)).images, changed.batch(range(12)).images)
        changed.set_epoch(0)
        same = torch.equal(views.batch(range(12)).images, changed.batch(range(12)).images)
        assert same == (other == "epoch")


def test_strong_views_have_the_networks_size_and_channels(array_images, spec_of):
    images = array_images(num=3, size=(80, 60))

    batch = make_dataset(images, spec_of(1, 32, 40), augment="strong", seed=0).batch([0, 2])

    assert (batch.images.shape, batch.images.dtype) == ((2, 1, 32, 40), torch.uint8)


def test_items_and_batches_carry_labels_and_ids(array_images, spec_of):
    views = make_dataset(array_images(num=6), spec_of(3, 16, 16), augment="none", seed=0)

    image, label, sample_id = views[4]
    batch = views.batch([5, 1, 3])

    assert (image.dtype, image.shape, label, sample_id) == (torch.uint8, (3, 16, 16), 1, 4)
    assert (batch.labels.tolist(), batch.ids.tolist()) == ([2, 1, 0], [5, 1, 3])
    assert batch.labels.dtype == batch.ids.dtype == torch.int64
    assert (len(views), len(batch)) == (6, 3)
    assert batch.mix_labels is None and batch.mix_lam is None


def test_images_are_decoded_once_while_they_fit_in_the_cache(array_images, spec_of):
    class Counted:
        def __init__(self, images):
            self.images, self.num_loads = images, 0
            self.labels, self.image_size, self.num_bytes = images.labels, images.image_size, 0

        def __len__(self):
            return len(self.images)

        def load(self, index):
            self.num_loads += 1
            return self.images.load(index)

    num_bytes = 24 * 3 * 16 * 16
    for cache_bytes, num_loads in ((num_bytes, 24), (num_bytes - 1, 48)):
        images = Counted(array_images(num=24))
        spec = spec_of(3, 16, 16)
        views = make_dataset(images, spec, augment="crop", seed=0, cache_bytes=cache_bytes)
        for epoch in range(2):
            views.set_epoch(epoch)
            views.batch(range(24))
        assert images.num_loads == num_loads


def test_mixup_mixes_each_image_with_its_partner(array_images, spec_of):
    images = array_images(num=30)
    plain = make_dataset(images, spec_of(3, 16, 16), augment="none", seed=2)
    mixed = make_dataset(images, spec_of(3, 16, 16), augment="none", seed=2, mixup=0.4)
    bits = random_bits(2, Stream.MIX, range(30), epoch=0, num=2)
    partners = [int(u * 30) for u in to_uniform(bits[:, 0])]
    lam = to_beta(bits[:, 1], 0.4)

    batch = mixed.batch(range(30))

    np.testing.assert_allclose(batch.mix_lam, lam, rtol=1e-6)  # float64 to float32
    assert batch.mix_labels.tolist() == [images.labels[j] for j in partners]
    assert batch.labels.tolist() == images.labels.tolist()
    own = plain.batch(range(30)).images.double()
    others = plain.batch(partners).images.double()
    weight = torch.from_numpy(lam).view(-1, 1, 1, 1)
    expected = own * weight + others * (1 - weight)
    assert (batch.images.double() - expected).abs().max() <= 0.5 + 1e-3  # rounded to whole pixels


def test_mixup_partner_does_not_depend_on_the_batch_and_changes_with_the_epoch(
    array_images, spec_of
):
    views = make_dataset(array_images(), spec_of(3, 16, 16), augment="crop", seed=0, mixup=0.2)
    together, alone = views.batch(range(24)), views.batch([7])
    views.set_epoch(1)
    later = views.batch([7])

    assert torch.equal(together.images[7:8], alone.images)
    assert torch.equal(together.mix_lam[7:8], alone.mix_lam)
    assert not torch.equal(later.mix_lam, alone.mix_lam)


def test_batch_moves_with_all_its_tensors(array_images, spec_of):
    views = make_dataset(array_images(), spec_of(3, 16, 16), augment="none", seed=0, mixup=0.2)

    moved = views.batch([0, 1]).to("meta", non_blocking=True)

    assert isinstance(moved, Batch)
    fields = (moved.images, moved.labels, moved.ids, moved.mix_labels, moved.mix_lam)
    assert all(tensor.device.type == "meta" for tensor in fields)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"augment": "crops"}, "setting-choice-unknown"),
        ({"mixup": -0.1}, "setting-out-of-bounds"),
    ],
)
def test_wrong_settings_are_refused(array_images, spec_of, settings, code):
    with pytest.raises(RecipeError) as caught:
        make_dataset(
            array_images(), spec_of(3, 8, 8), **({"augment": "none", "seed": 0} | settings)
        )

    assert caught.value.code == code
    assert caught.value.facts["setting"] == f"data.{next(iter(settings))}"


def test_networks_of_other_channels_are_refused(array_images, spec_of):
    with pytest.raises(RecipeError) as caught:
        make_dataset(array_images(), spec_of(4, 8, 8), augment="none", seed=0)

    assert (caught.value.code, caught.value.facts["got"]) == ("channels-unsupported", 4)


@pytest.mark.parametrize("augment, mixup", [("none", 0), ("flip", 0), ("crop", 0), ("crop", 0.3)])
def test_views_on_a_device_are_the_same_and_decode_no_more(array_images, spec_of, augment, mixup):
    images = array_images(num=24)
    ways = {"augment": augment, "seed": 1, "mixup": mixup}
    views, moved = (make_dataset(images, spec_of(3, 16, 16), **ways) for _ in range(2))
    moved.move_to(torch.device("cpu"))
    assert not moved.is_on_device  # nothing is known yet
    moved.batch(range(13))
    moved.move_to(torch.device("cpu"))
    assert moved.is_on_device
    moved.images = None
    for epoch in range(3):
        views.set_epoch(epoch)
        moved.set_epoch(epoch)
        ids = [5, 0, 23, 5, 17]
        own, other = views.batch(ids), moved.batch(ids)
        assert torch.equal(own.images, other.images)
        assert torch.equal(own.labels, other.labels)
        assert torch.equal(views[3][0], moved[3][0])


def test_views_that_are_not_cached_do_not_move_to_a_device(array_images, spec_of):
    for settings in ({"augment": "strong"}, {"augment": "crop", "cache_bytes": 10}):
        views = make_dataset(array_images(num=6), spec_of(3, 16, 16), seed=0, **settings)
        views.batch(range(6))
        views.move_to(torch.device("cpu"))
        assert not views.is_on_device
