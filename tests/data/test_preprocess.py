"""Preprocessing of uint8 batches, compared with torchvision and with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from fitcompress.data.preprocess import Preprocess
from fitcompress.errors import RecipeError
from fitcompress.interface import InputSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spec(channels=3, size=(8, 8)):
    return InputSpec(shape=(channels, *size), mean=MEAN[:channels], std=STD[:channels])


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)


@pytest.mark.integration
def test_normalizes_as_torchvision_does(images):
    expected = F.normalize(F.to_dtype(images, torch.float32, scale=True), MEAN, STD)

    output = Preprocess(spec())(images)

    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)  # float32, values below 3


def test_extreme_pixels_by_hand():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)

    output = Preprocess(spec())(images)

    assert output[0, 0, 0, 0].item() == pytest.approx(-0.485 / 0.229)
    assert output[1, 2, 0, 0].item() == pytest.approx((1 - 0.406) / 0.225)


@pytest.mark.parametrize("size", [(5, 5), (16, 12)], ids=["smaller", "larger"])
def test_resizes_other_sizes_as_torchvision_does(images, size):
    resized = F.resize(F.to_dtype(images, torch.float32, scale=True), list(size), antialias=True)

    output = Preprocess(spec(size=size))(images)

    torch.testing.assert_close(output, F.normalize(resized, MEAN, STD), rtol=0, atol=1e-5)


def test_gray_network_gets_the_luma_of_color_images(images):
    network_spec = InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1.0,))
    image = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32)) / 255

    output = Preprocess(network_spec)(images)

    assert output.shape == (4, 1, 8, 8)
    torch.testing.assert_close(output[0, 0], expected, rtol=0, atol=0.51 / 255)  # Pillow rounds


def test_color_network_gets_gray_images_in_three_channels():
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)

    output = Preprocess(spec())(images)

    torch.testing.assert_close(output, Preprocess(spec())(images.expand(-1, 3, -1, -1)))


def test_has_no_state_and_follows_to():
    module = Preprocess(spec())

    assert not module.state_dict()
    assert not list(module.parameters())
    assert (
        module.to(torch.float64)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).dtype == torch.float64
    )


@pytest.mark.parametrize(
    ("shape", "mean", "std", "code"),
    [
        pytest.param((4, 8, 8), (0.0,) * 4, (1.0,) * 4, "normalization-mismatch", id="channels"),
        pytest.param((3, 8, 8), (0.5,), (0.5,), "normalization-mismatch", id="one mean for three"),
        pytest.param((3, 8, 8), MEAN, (1.0, 0.0, 1.0), "std-not-positive", id="zero std"),
    ],
)
def test_impossible_specifications_are_refused(shape, mean, std, code):
    with pytest.raises(RecipeError) as caught:
        Preprocess(InputSpec(shape=shape, mean=mean, std=std))

    assert caught.value.code == code


def test_interpolation_comparison_can_fail(images):
    nearest = F.resize(images, [16, 12], interpolation=v2.InterpolationMode.NEAREST)
    wrong = F.normalize(F.to_dtype(nearest, torch.float32, scale=True), MEAN, STD)

    assert (Preprocess(spec(size=(16, 12)))(images) - wrong).abs().max() > 0.1
