"""Thumbnails: small, made once, kept beside their pictures, and gone with them."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from PIL import Image

from gguf_imagegen.jobs import thumbnails as kept
from gguf_imagegen.jobs.results import ResultStore
from gguf_imagegen.settings import Keep
from gguf_imagegen.vocabulary.errors import NotFound
from tests.api.client import GENERATIONS, SMALL, noise, picture, png
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine

DAY = 86_400.0


async def made(app: App, size: str = "512x256", **fields: object) -> str:
    """The address of a new picture."""
    _, body = await app.post(GENERATIONS, **{**SMALL, "steps": 1, "size": size, **fields})
    return str(body["data"][0]["url"])


async def test_widths_are_rounded_up_and_nothing_is_enlarged(running: RunningApp) -> None:
    """A WebP of the next width, the picture itself where that is no wider; without the prompt in it."""
    expected = {"1": (128, 64), "128": (128, 64), "129": (256, 128), "257": (512, 256), "99999": (512, 256)}
    async with running(engine=QuickEngine) as app:
        url = await made(app, prompt="secret")
        for wanted, size in expected.items():
            async with app.session.get(f"{url}?width={wanted}") as answer:
                data = await answer.read()
                assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
            small, format = picture(data), "PNG" if size == (512, 256) else "WEBP"
            assert (small.size, small.format, answer.content_type) == (
                size,
                format,
                f"image/{format.lower()}",
            )
            assert (b"secret" in data) is (format == "PNG")


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_browsers_keep_them(running: RunningApp, output_format: str) -> None:
    """Of every format, with a tag that saves the second answer; the gallery names their addresses."""
    async with running(engine=QuickEngine) as app:
        url = await made(app, output_format=output_format)
        _, body = await app.get("/v1/images")
        assert body["data"][0]["thumbnail"] == f"{url}?width=512"
        small = f"{url}?width=256"
        async with app.session.get(small) as answer:
            tag = answer.headers["ETag"]
            assert answer.headers["Cache-Control"].startswith("private, max-age=")
            assert picture(await answer.read()).size == (256, 128)
        async with app.session.get(small, headers={"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
        async with app.session.delete(url) as answer:
            assert answer.status == 200
        async with app.session.get(small, headers={"If-None-Match": tag}) as answer:
            assert answer.status == 404


async def test_a_wrong_width_is_said(running: RunningApp) -> None:
    """Instead of the whole picture, which somebody wanted small."""
    async with running(engine=QuickEngine) as app:
        url = await made(app)
        for width in ("", "0", "-5", "x", "1e3", "100000", "١"):
            async with app.session.get(url, params={"width": width}) as answer:
                assert (answer.status, (await answer.json())["error"]["param"]) == (400, "width"), width


async def test_a_whole_page_at_once(running: RunningApp) -> None:
    """Whoever asks for the same at once gets the same."""
    async with running(engine=QuickEngine) as app:
        url = await made(app)

        async def get() -> bytes:
            async with app.session.get(f"{url}?width=128") as answer:
                return await answer.read()

        first, *others = await asyncio.gather(*(get() for _ in range(20)))
        assert set(others) == {first}


# -- where they are kept ------------------------------------------------------------------------------


def stored(store: ResultStore, width: int = 300) -> str:
    return store.put(png(noise(width, 200)), "png")[0]


@pytest.mark.parametrize(("picture_width", "is_whole"), [(64, True), (512, False)])
def test_a_bulky_picture_is_no_thumbnail(tmp_path: Path, picture_width: int, is_whole: bool) -> None:
    """One that is no wider is sent as it is if that is a small file, and else as a WebP of its own size."""
    store = ResultStore(tmp_path, DAY, Keep(None, None))
    name = stored(store, picture_width)
    small = store.thumbnail(name, 512)
    assert (small is None) is is_whole
    if small is not None:
        assert picture(small).size == (picture_width, 200)


@pytest.mark.parametrize("limits", [Keep(None, None), Keep(10**9, None)])
def test_beside_the_servers_own_pictures(tmp_path: Path, limits: Keep) -> None:
    """One file, its owner's alone, made once and read by the next server; it is no picture of the gallery."""
    name = stored(ResultStore(tmp_path, DAY, limits))
    store = ResultStore(tmp_path, DAY, limits)
    small = store.thumbnail(name, 128)
    file = tmp_path / f"{name}.128.webp"
    assert file.read_bytes() == small
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"kept")
    assert ResultStore(tmp_path, DAY, limits).thumbnail(name, 128) == b"kept"
    assert store.names() == [name]
    store.delete(name)
    assert list(tmp_path.iterdir()) == []


def test_not_in_the_users_folder(tmp_path: Path) -> None:
    """What the user keeps stays as it is: thumbnails are in memory, within a bound."""
    store = ResultStore(tmp_path, DAY)
    name = stored(store)
    small = store.thumbnail(name, 128)
    assert small is not None
    assert store.thumbnail(name, 128) is small
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).unlink()
    with pytest.raises(NotFound):
        store.thumbnail(name, 128)


def test_memory_is_bounded() -> None:
    """The oldest go first."""
    small = kept.Thumbnails(lambda: None)
    for number in range(5):
        small.put(f"{number}.png", 128, bytes(kept.MAX_IN_MEMORY // 4))
    assert [bool(small.get(f"{number}.png", 128)) for number in range(5)] == [False, True, True, True, True]


def test_without_a_disk() -> None:
    """In a temporary folder they go with their pictures."""
    store = ResultStore(None, 0.0)
    name = store.put(png(noise(300, 200)), "png")[0]
    with pytest.raises(NotFound):
        store.thumbnail(name, 128)


def test_no_name_leads_elsewhere(tmp_path: Path) -> None:
    """A name that is none reads and deletes nothing."""
    (tmp_path / "x.128.webp").write_bytes(b"theirs")
    store = ResultStore(tmp_path / "pictures", DAY, Keep(None, None))
    stored(store)
    for wrong in ("../x", "x", "", "."):
        with pytest.raises(NotFound):
            store.thumbnail(wrong, 128)
    assert (tmp_path / "x.128.webp").exists()


@pytest.mark.parametrize("data", [b"no picture", png(Image.new("RGB", (300, 200)))[:100]])
def test_damaged_pictures_have_none(tmp_path: Path, data: bytes) -> None:
    """The file is sent as it is."""
    store = ResultStore(tmp_path, DAY, Keep(None, None))
    assert store.thumbnail(store.put(data, "png")[0], 128) is None


def test_transparent_and_narrow_ones(tmp_path: Path) -> None:
    """Of any aspect; what is transparent is on white."""
    store = ResultStore(tmp_path, DAY, Keep(None, None))
    name = store.put(png(Image.new("RGBA", (600, 20), (0, 0, 0, 0))), "png")[0]
    small = Image.open(io.BytesIO(store.thumbnail(name, 128) or b""))
    assert small.size == (128, 4)
    assert small.convert("RGB").getpixel((5, 2)) == (255, 255, 255)
