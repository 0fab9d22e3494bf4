"""Decoding images of all kinds, and detecting damaged files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fitcompress.data.images import (
    ArrayImages,
    DecodingError,
    FileImages,
    Subset,
    find_fault,
    read_rgb,
)
from fitcompress.errors import DataError

RAMP = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)
COLORS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)


def stored(image, image_format="PNG", **settings):
    file = io.BytesIO()
    image.save(file, image_format, **settings)
    file.seek(0)
    return file


def pixels_of(file):
    image = read_rgb(file)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_read_unchanged():
    np.testing.assert_array_equal(pixels_of(stored(Image.fromarray(COLORS))), COLORS)


def test_gray_becomes_three_equal_channels():
    pixels = pixels_of(stored(Image.fromarray(RAMP)))

    np.testing.assert_array_equal(pixels, np.repeat(RAMP[..., None], 3, axis=-1))


def test_transparency_is_dropped():
    alpha = np.where(RAMP > 100, 255, 0).astype(np.uint8)
    image = Image.fromarray(np.concatenate([COLORS, alpha[..., None]], axis=-1))

    np.testing.assert_array_equal(pixels_of(stored(image)), COLORS)


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])], ids=["no", "one", "table"])
def test_palette_gives_its_colors_without_a_warning(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    settings = {} if transparency is None else {"transparency": transparency}

    pixels = pixels_of(stored(image, **settings))

    np.testing.assert_array_equal(pixels, [[[10, 20, 30], [200, 100, 50]]])


def test_16_bit_gray_keeps_its_high_byte():
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)

    pixels = pixels_of(stored(Image.fromarray(values)))

    np.testing.assert_array_equal(pixels[..., 0], [[0, 0, 1, 128, 255]])


def test_float_gray_is_taken_as_zero_to_one():
    values = np.array([[-1.0, 0.0, 0.5, 1.0, 7.0]], dtype=np.float32)

    pixels = pixels_of(stored(Image.fromarray(values), "TIFF"))

    np.testing.assert_array_equal(pixels[..., 0], [[0, 0, 128, 255, 255]])


def test_black_and_white_and_cmyk_are_read():
    bits = stored(Image.fromarray(RAMP > 100))
    cmyk = stored(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "TIFF")

    np.testing.assert_array_equal(pixels_of(bits)[..., 1], np.where(RAMP > 100, 255, 0))
    assert (pixels_of(cmyk) == 255).all()


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_undone(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation

    pixels = pixels_of(stored(Image.fromarray(COLORS), exif=exif))

    np.testing.assert_array_equal(pixels, upright(COLORS))


def test_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (3, 3), color) for color in ("red", "blue")]

    pixels = pixels_of(stored(frames[0], "GIF", save_all=True, append_images=frames[1:]))

    assert pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".webp", ".tif"])
def test_sound_file_has_no_fault_and_tells_its_size(tmp_path, write_images, suffix):
    (path,) = write_images(tmp_path, 1, size=(30, 20), suffix=suffix)

    assert find_fault(path) == ("", (30, 20))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95], ids=["empty", "half", "most"])
def test_truncated_file_has_a_fault(tmp_path, write_images, suffix, share):
    (path,) = write_images(tmp_path, 1, size=(30, 20), suffix=suffix)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    assert find_fault(path)[0]


def test_scrambled_png_has_a_fault(tmp_path, write_images):
    (path,) = write_images(tmp_path, 1, size=(30, 20))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)

    assert find_fault(path)[0]


def test_text_under_an_image_name_has_a_fault(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("not an image")

    assert "cannot identify" in find_fault(path)[0]


def test_jpeg_followed_by_other_bytes_has_no_fault(tmp_path, write_images):
    (path,) = write_images(tmp_path, 1, suffix=".jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 100)

    assert find_fault(path)[0] == ""


def test_file_that_broke_after_the_scan_is_named(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"")
    images = FileImages((path,), np.array([0]), (1, 1), 0)

    with pytest.raises(DataError) as caught:
        images.load(0)

    assert caught.value.code == "image-undecodable"
    assert str(path) in caught.value.message


def test_a_decoding_error_can_be_reworded():
    error = DecodingError("Traceback ...\ndecoding image 'x.png': truncated")

    again = error.reworded(f"in a worker: {error}")

    assert (again.message, again.code) == (
        "decoding image 'x.png': truncated",
        "image-undecodable",
    )
    assert again.advice == error.advice


def test_subset_is_in_the_order_of_its_indices():
    images = ArrayImages(np.arange(5, dtype=np.uint8).reshape(5, 1, 1), np.arange(5) * 10)
    subset = Subset(Subset(images, np.array([4, 2, 0])), np.array([2, 0]))

    assert subset.labels.tolist() == [0, 40]
    assert [subset.load(i).getpixel((0, 0)) for i in range(2)] == [(0, 0, 0), (4, 4, 4)]
    assert (len(subset), subset.num_bytes, subset.image_size) == (2, 2, (1, 1))
