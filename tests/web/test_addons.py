"""Textual inversions and ControlNets on the page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from playwright.async_api import expect

from gguf_imagegen.vocabulary.engine import Generate
from tests.api.client import noise, png
from tests.conftest import RunningApp
from tests.fake_engines import SeeingEngine
from tests.unet import write_control_net, write_embedding, write_sd1
from tests.web.conftest import OpenPage, generate, send, settled, unfold


async def test_an_embedding_and_a_control_net(running: RunningApp, visit: OpenPage, tmp_path: Path) -> None:
    """Offered to a model that takes them: a word for the prompt, and a picture whose edges are followed."""
    write_sd1(tmp_path, alive=False)
    for name in ("control", "words"):
        (tmp_path / name).mkdir()
    write_control_net(tmp_path / "control" / "edges.safetensors", alive=False)
    for number in range(6):
        shutil.copy(
            tmp_path / "control" / "edges.safetensors", tmp_path / "control" / f"{number}.safetensors"
        )
    write_embedding(tmp_path / "words" / "easyneg.safetensors")
    write_embedding(tmp_path / "words" / "of-sd2.safetensors", width=1024)
    seen: list[Any] = []
    folders = {"control_dir": tmp_path / "control", "embedding_dir": tmp_path / "words"}
    model = {"models_dir": tmp_path, "model": str(tmp_path / "sd1.safetensors"), "memory_check": False}
    async with (
        running(engine=lambda: SeeingEngine(seen), **folders, **model) as app,
        visit(app.url) as page,
    ):
        await unfold(page)
        await expect(page.locator("#embeddings button")).to_have_text(["easyneg"])
        await page.get_by_role("button", name="easyneg").click()
        await expect(page.locator("#negative")).to_have_value("embedding:easyneg")
        await page.get_by_role("button", name="Find a ControlNet").click()
        await page.fill("#picker-find", "edg")
        await page.keyboard.press("Enter")
        await expect(page.locator("#control-model")).to_have_value("edges")
        file = {"name": "lines.png", "mimeType": "image/png", "buffer": png(noise(64, 64))}
        await page.set_input_files("#control-file", file)  # type: ignore[arg-type]
        await page.check("#control-canny")
        await generate(page, "a cat", steps=1)
        await settled(page)
    (spec,) = [each for each in seen if isinstance(each, Generate)]
    assert (spec.negative_prompt, spec.control_canny) == ("embedding:easyneg", True)
    assert spec.control_image is not None


async def test_a_picture_is_sent_to_the_control_net(
    running: RunningApp, visit: OpenPage, tmp_path: Path
) -> None:
    """From the viewer; the next picture follows it, once a network is chosen."""
    write_sd1(tmp_path, alive=False)
    (tmp_path / "control").mkdir()
    write_control_net(tmp_path / "control" / "edges.safetensors", alive=False)
    seen: list[Any] = []
    settings = {
        "models_dir": tmp_path, "model": str(tmp_path / "sd1.safetensors"), "memory_check": False,
        "control_dir": tmp_path / "control",
    }  # fmt: skip
    async with running(engine=lambda: SeeingEngine(seen), **settings) as app, visit(app.url) as page:
        await generate(page, "a cat", steps=1, width=64, height=64)
        await settled(page)
        await page.locator("#stage .tile").click()
        await page.get_by_role("button", name="Send to…").click()
        await page.locator("#picker-list button", has_text="ControlNet").click()
        await expect(page.locator("#viewer")).to_be_hidden()
        await expect(page.locator("#control-model")).to_be_focused()
        await expect(page.get_by_alt_text("Picture for the ControlNet")).to_be_visible()
        await page.select_option("#control-model", "edges")
        await send(page)
        await settled(page)
    first, second = [each for each in seen if isinstance(each, Generate)]
    assert first.control_image is None
    assert second.control_image is not None
