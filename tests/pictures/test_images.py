"""Pictures in and out: hostile files, every pixel mode, masks, sizes, and the metadata inside."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import time
import zlib
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from gguf_imagegen.pictures import data_urls, decode, encode, infotext, masks
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.errors import InvalidImage, InvalidRequest

MAX_PIXELS = 1 << 24
FORMATS: tuple[encode.ImageFormat, ...] = ("png", "jpeg", "webp")


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def decoded(data: bytes) -> Image.Image:
    return decode.decode(data, max_pixels=MAX_PIXELS, param="image")


def gradient(width: int, height: int) -> bytes:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8).tobytes()


def png(width: int, height: int, bits: int, color_type: int, rows: bytes) -> bytes:
    """A PNG made by hand, so that it can hold what no encoder would write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def near(image: Image.Image, at: tuple[int, int], expected: tuple[int, ...], tolerance: int = 6) -> bool:
    pixel = image.getpixel(at)
    assert isinstance(pixel, tuple)
    return len(pixel) == len(expected) and all(
        abs(a - b) <= tolerance for a, b in zip(pixel, expected, strict=True)
    )


# Reading


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_each_readable_format(format: str) -> None:
    image = decoded(saved(Image.new("RGB", (40, 24), (200, 30, 60)), format))
    assert (image.mode, image.size) == ("RGB", (40, 24))
    assert near(image, (20, 12), (200, 30, 60))


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA"])
def test_other_formats_are_refused(format: str) -> None:
    with pytest.raises(InvalidImage, match="not a PNG"):
        decoded(saved(Image.new("RGB", (32, 32)), format))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(format: str, orientation: int) -> None:
    upright = Image.new("RGB", (64, 32), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 32, 16))
    how = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(how[orientation]) if orientation in how else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = decoded(saved(stored, format, exif=exif))
    assert image.size == (64, 32)
    assert near(image, (8, 4), (255, 0, 0), 30)
    assert near(image, (56, 28), (0, 0, 255), 30)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format: str) -> None:
    image = decoded(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format))
    assert image.mode == "RGB"
    assert near(image, (8, 8), (255, 0, 0))


@pytest.mark.parametrize(
    ("sample", "expected"), [(0, 0), (255, 1), (0x8000, 128), (0xFF00, 254), (65535, 255)]
)
def test_16_bit_grey_png_is_scaled(sample: int, expected: int) -> None:
    image = decoded(png(16, 16, 16, 0, (b"\0" + struct.pack(">16H", *[sample] * 16)) * 16))
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == (expected,) * 3


def test_16_bit_rgba_png() -> None:
    row = b"\0" + struct.pack(">4H", 65535, 0x8000, 0, 0x4000) * 16
    image = decoded(png(16, 16, 16, 6, row * 16))
    assert image.mode == "RGBA"
    assert near(image, (3, 3), (255, 128, 0, 64), 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P"])
def test_plain_modes(mode: str) -> None:
    image = decoded(saved(Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)))
    assert image.mode == ("RGBA" if "A" in mode else "RGB")
    assert near(decode.flatten(image), (0, 0), (255, 255, 255), 0)


def test_32_bit_samples_are_refused_with_words() -> None:
    with pytest.raises(InvalidImage, match="32-bit samples"):
        decoded(saved(Image.new("F", (16, 16), 0.5), "TIFF"))


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(0, (0, 0, 8, 16))
    image = decoded(saved(palette, transparency=transparency))
    assert image.mode == "RGBA"
    assert decode.has_transparency(image)
    assert image.getpixel((2, 2)) == (10, 20, 30, 0)
    assert image.getpixel((12, 2)) == (200, 100, 50, 255)


def test_animated_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    image = decoded(saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50))
    assert image.getpixel((5, 5)) == (255, 0, 0)


# Refusing


@pytest.mark.parametrize("side", [5_000, 10_000, 30_000, 100_000])
def test_bombs_are_refused_by_their_header(side: int) -> None:
    bomb = png(side, side, 8, 2, bytes(10_000_000))
    assert len(bomb) < 20_000
    start = time.process_time()
    with pytest.raises(InvalidImage, match="pixels"):
        decoded(bomb)
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (7, 7), (2000, 8), (8, 65)])
def test_slivers_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match=r"too small|too narrow"):
        decoded(saved(Image.new("RGB", size)))


def test_aspect_limit_is_a_parameter() -> None:
    data = saved(Image.new("RGB", (8, 80)))
    assert decode.decode(data, max_pixels=MAX_PIXELS, param="image", max_aspect=10).size == (8, 80)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.8])
def test_truncated_files_are_refused(format: str, share: float) -> None:
    data = saved(Image.frombytes("RGB", (64, 64), gradient(64, 64)), format)
    with pytest.raises(InvalidImage):
        decoded(data[: int(len(data) * share)])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_without_its_last_bytes_is_whole_or_refused(format: str) -> None:
    data = saved(Image.frombytes("RGB", (64, 64), gradient(64, 64)), format)
    whole = decoded(data).tobytes()
    for missing in range(1, 60):
        with contextlib.suppress(InvalidImage):  # a trailer may be missing, a pixel may not
            assert decoded(data[:-missing]).tobytes() == whole


@pytest.mark.parametrize("data", [b"", b"hello, this is no picture", b"<svg/>", b"%PDF-1.4", b"\0" * 1000])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(InvalidImage) as caught:
        decode.decode(data, max_pixels=MAX_PIXELS, param="image[2]")
    assert caught.value.param == "image[2]"
    assert caught.value.message == "Invalid image"


@given(position=st.integers(0, 10_000), value=st.integers(0, 255), format=st.sampled_from(FORMATS))
def test_a_damaged_byte_is_an_image_or_invalid(position: int, value: int, format: encode.ImageFormat) -> None:
    data = bytearray(encode.encode(gradient(16, 16), 16, 16, format=format, parameters="a cat"))
    data[position % len(data)] = value
    for read in (decoded, decode.read_parameters):
        with contextlib.suppress(InvalidImage):
            read(bytes(data))


# Data URLs


@given(st.binary(max_size=200))
def test_data_urls_and_bare_base64(data: bytes) -> None:
    plain, urlsafe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    folded = "\r\n ".join(plain[i : i + 7] for i in range(0, len(plain), 7))
    for text in (plain, urlsafe, plain.rstrip("="), f" {folded}\n"):
        assert data_urls.decode_data_url(text, "image") == data
        assert data_urls.decode_data_url(f"data:image/png;base64,{text}", "image") == data
    percent = "".join(f"%{byte:02x}" for byte in data)
    assert data_urls.decode_data_url(f"data:,{percent}", "image") == data


@pytest.mark.parametrize("url", ["http://a.example/x.png", "HTTPS://a.example/x.png", "file:///etc/passwd"])
def test_nothing_is_fetched(url: str) -> None:
    with pytest.raises(InvalidRequest, match="fetches no URLs") as caught:
        data_urls.decode_data_url(url, "image")
    assert caught.value.param == "image"


@pytest.mark.parametrize("text", ["nobody.png", "not base64!", "data:image/png;base64,***", "é", "a"])
def test_bad_base64(text: str) -> None:
    with pytest.raises(InvalidImage, match="as a file, as base64 or as a data: URL") as caught:
        data_urls.decode_data_url(text, "image")
    assert caught.value.param == "image"


def test_a_data_url_without_data() -> None:
    with pytest.raises(InvalidImage, match="comma"):
        data_urls.decode_data_url("data:image/png", "image")


# Shaping


def test_flatten_lays_alpha_on_the_background() -> None:
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    assert decode.flatten(clear).getpixel((0, 0)) == (255, 255, 255)
    assert decode.flatten(clear, (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)
    assert decode.flatten(Image.new("RGBA", (8, 8), (9, 8, 7, 255))).getpixel((0, 0)) == (9, 8, 7)


@given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 90), st.integers(8, 90))
def test_fit_is_exact(width: int, height: int, out_width: int, out_height: int) -> None:
    fitted = decode.fit(Image.new("RGBA", (width, height), (5, 6, 7, 255)), out_width, out_height)
    raw = decode.to_raw(fitted)
    assert (raw.width, raw.height, raw.channels) == (out_width, out_height, 3)
    assert raw.data == bytes([5, 6, 7]) * (out_width * out_height)


def test_fit_crops_the_centre_and_keeps_what_already_fits() -> None:
    image = Image.new("RGB", (96, 32), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 32))
    assert decode.fit(image, 32, 32).getcolors() == [(1024, (0, 0, 255))]
    assert decode.fit(image, 96, 32).tobytes() == image.tobytes()


def test_centre_crop() -> None:
    rgb = gradient(104, 136)
    expected = Image.frombytes("RGB", (104, 136), rgb).crop((2, 3, 102, 133)).tobytes()
    assert encode.centre_crop(rgb, 104, 136, 100, 130) == expected
    with pytest.raises(ValueError, match="cannot crop"):
        encode.centre_crop(rgb, 104, 136, 105, 130)


@given(
    st.integers(8, 4000),
    st.integers(8, 4000),
    st.sampled_from([512**2, 768**2, 1024**2]),
    st.sampled_from([8, 16, 32, 64]),
)
def test_edit_size(width: int, height: int, budget: int, multiple: int) -> None:
    out_width, out_height = decode.edit_size((width, height), budget, multiple, 2048)
    assert out_width % multiple == out_height % multiple == 0
    assert multiple <= min(out_width, out_height) <= max(out_width, out_height) <= 2048
    if max(width, height) <= 3 * min(width, height):
        assert abs(out_width * height - out_height * width) <= multiple * (width + height)
        assert 0.8 <= out_width * out_height / budget <= 1.25


def test_edit_size_of_usual_inputs() -> None:
    assert decode.edit_size((3000, 3000), 1024**2, 64, 2048) == (1024, 1024)
    assert decode.edit_size((1920, 1080), 1024**2, 16, 2048) == (1360, 768)
    assert decode.edit_size((800, 100), 1024**2, 64, 1024) == (1024, 128)


# Masks


def half_mask(mode: str, left: object, right: object, size: tuple[int, int] = (64, 64)) -> Image.Image:
    mask = Image.new(mode, size, right)  # type: ignore[arg-type]
    mask.paste(left, (0, 0, size[0] // 2, size[1]))  # type: ignore[arg-type]
    return mask


LEFT_REPAINTED = (b"\xff" * 16 + b"\0" * 16) * 32


@pytest.mark.parametrize(
    "mask",
    [
        half_mask("RGB", (255, 255, 255), (0, 0, 0)),
        half_mask("RGB", (255, 255, 255), (0, 0, 0), (128, 128)),
        half_mask("RGB", (140, 140, 140), (120, 120, 120)),
        half_mask("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
        half_mask("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)),
        half_mask("RGBA", (0, 0, 0, 0), (255, 255, 255, 255)),
        half_mask("RGBA", (0, 0, 0, 0), (0, 0, 0, 255), (64, 65)),
    ],
)
def test_both_mask_conventions(mask: Image.Image) -> None:
    result = masks.mask_from(mask, Image.new("RGB", (64, 64)), (32, 32))
    assert result == RawImage(32, 32, 1, LEFT_REPAINTED)


def test_the_image_can_be_its_own_mask() -> None:
    image = half_mask("RGBA", (9, 9, 9, 0), (9, 9, 9, 255))
    assert masks.mask_from(None, image, (32, 32)) == RawImage(32, 32, 1, LEFT_REPAINTED)
    assert masks.mask_from(None, Image.new("RGBA", (64, 64), (9, 9, 9, 255)), (32, 32)) is None
    assert masks.mask_from(None, Image.new("RGBA", (64, 64), (9, 9, 9, 250)), (32, 32)) is None
    assert masks.mask_from(None, Image.new("RGB", (64, 64)), (32, 32)) is None


def test_a_sent_mask_wins_over_the_image() -> None:
    image = half_mask("RGBA", (9, 9, 9, 255), (9, 9, 9, 0))
    result = masks.mask_from(half_mask("RGB", (255, 255, 255), (0, 0, 0)), image, (32, 32))
    assert result == RawImage(32, 32, 1, LEFT_REPAINTED)


def test_mask_is_cropped_as_the_image_is() -> None:
    mask = Image.new("RGB", (96, 32))
    mask.paste((255, 255, 255), (32, 0, 64, 32))
    result = masks.mask_from(mask, Image.new("RGB", (96, 32)), (32, 32))
    assert result is not None
    assert set(result.data) == {255}


def test_mask_of_another_aspect() -> None:
    with pytest.raises(InvalidRequest, match="64x32 but the image is 64x64") as caught:
        masks.check_mask_aspect((64, 32), (64, 64))
    assert caught.value.param == "mask"


@pytest.mark.parametrize("mask", [Image.new("RGB", (64, 64)), Image.new("RGBA", (64, 64), (0, 0, 0, 255))])
def test_mask_that_selects_nothing(mask: Image.Image) -> None:
    with pytest.raises(InvalidRequest, match="selects nothing"):
        masks.mask_from(mask, Image.new("RGB", (64, 64)), (32, 32))


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_composite_keeps_and_repaints_exactly(width: int, height: int, data: st.DataObject) -> None:
    count = width * height
    generated = data.draw(st.binary(min_size=3 * count, max_size=3 * count))
    original = data.draw(st.binary(min_size=3 * count, max_size=3 * count))
    mask = bytes(data.draw(st.lists(st.sampled_from([0, 255]), min_size=count, max_size=count)))
    result = masks.composite(
        generated, width, height, RawImage(width, height, 3, original), RawImage(width, height, 1, mask)
    )
    assert len(result) == 3 * count
    for i, repaint in enumerate(mask):
        source = generated if repaint else original
        assert result[3 * i : 3 * i + 3] == source[3 * i : 3 * i + 3]


# Writing


@pytest.mark.parametrize("compression", [None, 0, 37, 100])
def test_png_is_lossless(compression: int | None) -> None:
    data = encode.encode(gradient(48, 32), 48, 32, format="png", compression=compression)
    assert decoded(data).tobytes() == gradient(48, 32)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_compression_is_quality(format: encode.ImageFormat) -> None:
    rgb = gradient(128, 96)
    worst, middle, best = (
        encode.encode(rgb, 128, 96, format=format, compression=quality) for quality in (0, 60, 100)
    )
    assert len(worst) < len(middle) < len(best)
    error = np.frombuffer(decoded(best).tobytes(), np.uint8).astype(int) - np.frombuffer(rgb, np.uint8)
    assert np.abs(error).mean() < 3


@pytest.mark.parametrize("format", FORMATS)
def test_the_bytes_are_what_the_content_type_says(format: encode.ImageFormat) -> None:
    data = encode.encode(gradient(16, 16), 16, 16, format=format)
    assert Image.open(io.BytesIO(data)).get_format_mimetype() == encode.content_type(format)


@pytest.mark.parametrize("format", FORMATS)
def test_preview_is_small(format: encode.ImageFormat) -> None:
    data = encode.encode_preview(gradient(1024, 512), 1024, 512, format=format, max_side=256)
    assert decoded(data).size == (256, 128)
    assert decoded(encode.encode_preview(gradient(64, 64), 64, 64, format=format)).size == (64, 64)


# Metadata

PROMPT = 'a cat 🐈, "quoted": Straße, 東京\nsecond line'


def example(
    prompt: str = PROMPT,
    negative_prompt: str = "blurry, 🚫\nugly",
    extra: Mapping[str, object] = infotext.NOTHING_MORE,
) -> str:
    return infotext.text_of(
        infotext.settings_of(
            prompt=prompt,
            negative_prompt=negative_prompt,
            steps=20,
            sampler="Euler",
            schedule="Karras",
            cfg_scale=7.0,
            seed=5,
            width=512,
            height=768,
            model="/srv/models/sd15.q8_0.gguf",
            model_hash="abcdef0123",
            version="0.1.0",
            extra=extra,
        )
    )


def test_parameters_text_is_the_known_one() -> None:
    assert example("a cat", "dog", {"Note": "x, y", "Absent": None}) == (
        "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler, Schedule type: Karras, CFG scale: 7, "
        'Seed: 5, Size: 512x768, Model: sd15.q8_0.gguf, Model hash: abcdef0123, Note: "x, y", Version: 0.1.0'
    )
    assert "Negative prompt" not in example("a cat", "")


def test_parameters_hold_no_path() -> None:
    assert "/srv" not in example()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prompt", ["plain", "Straße", PROMPT])
def test_parameters_survive_in_the_file(format: encode.ImageFormat, prompt: str) -> None:
    data = encode.encode(gradient(16, 16), 16, 16, format=format, parameters=example(prompt))
    assert decode.read_parameters(data) == example(prompt)
    assert decode.read_parameters(encode.encode(gradient(16, 16), 16, 16, format=format)) is None


@pytest.mark.parametrize("format", FORMATS)
def test_awkward_parameters_never_spoil_the_image(format: encode.ImageFormat) -> None:
    for text in ("lone \ud800 surrogate", "x" * 100_000, "nul \0 inside"):
        assert decoded(encode.encode(gradient(16, 16), 16, 16, format=format, parameters=text)).size == (
            16,
            16,
        )


def test_read_parameters_of_no_image() -> None:
    with pytest.raises(InvalidImage):
        decode.read_parameters(b"text")


def test_parse_parameters() -> None:
    parsed = infotext.parse_parameters(
        example(extra={"Hires upscaler": 'Latent, "nearest"\nnew', "Eta": 0.5})
    )
    assert parsed["Prompt"] == PROMPT
    assert parsed["Negative prompt"] == "blurry, 🚫\nugly"
    assert parsed["Size"] == "512x768"
    assert parsed["CFG scale"] == "7"
    assert parsed["Hires upscaler"] == 'Latent, "nearest"\nnew'
    assert (parsed["Eta"], parsed["Version"]) == ("0.5", "0.1.0")


def test_an_upscaled_picture_has_no_prompt() -> None:
    """The only line that extras write, of two pairs, is no prompt; words with a colon are."""
    parsed = infotext.parse_parameters("Postprocess upscale by: 2, Postprocess upscaler: double")
    assert parsed == {
        "Prompt": "", "Negative prompt": "", "Postprocess upscale by": "2", "Postprocess upscaler": "double",
    }  # fmt: skip
    assert infotext.parse_parameters("a cat, mood: happy")["Prompt"] == "a cat, mood: happy"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_survives(value: str) -> None:
    value = value.strip()
    assert infotext.parse_parameters(example("a cat", "", {"Note": value}))["Note"] == value


@given(st.text())
def test_any_text_can_be_parsed(text: str) -> None:
    assert {"Prompt", "Negative prompt"} <= infotext.parse_parameters(text).keys()


@pytest.mark.parametrize("unit", ["a", " ", 'ab:"', "ab:\\", '\\"ab:"', "ab: "])
def test_parsing_hostile_text_is_quick(unit: str) -> None:
    start = time.process_time()
    infotext.parse_parameters(unit * 50_000)
    assert time.process_time() - start < 2
