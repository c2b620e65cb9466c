"""The catalog on the page: pulls with progress and cancel, loading, licences."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from gguf_imagegen.commands.testmodel import write_test_model
from tests.conftest import ServerProcess
from tests.hub import HubServer, write_catalog
from tests.web.conftest import OpenPage, check_accessible, ready

MB = 1_000_000


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def shop(hub: HubServer, serve: Callable[..., ServerProcess], tmp_path: Path) -> ServerProcess:
    """A server whose catalog has a model of the hub, and one that wants its licence accepted."""
    big = hub.add("org/big", "big.gguf", b"\1" * 9 * MB)
    gated = {**hub.add("org/gated", "gated.gguf", b"\2" * MB), "gated": True}
    hub.repos["org/gated"].gated = True
    huge = {**hub.add("org/huge", "huge.gguf", b"\3" * MB), "bytes": 10**14}
    catalog = write_catalog(
        tmp_path / "hub.yaml", big={"model": big}, gated={"model": gated}, huge={"model": huge}
    )
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}
    server = serve(
        "--models-dir", str(tmp_path / "models"), "--model", "embedded", "--catalog", str(catalog), env=env
    )
    server.wait_until_ready()
    return server


async def test_pull_cancel_and_pull_again(shop: ServerProcess, hub: HubServer, visit: OpenPage) -> None:
    """Progress in bytes, an end by a button, a reload in the middle, and the model at last."""
    hub.faults.hold_after = 2 * MB
    async with visit(shop.url, "#/models") as page:
        card = page.locator("[data-model=big]")
        await card.get_by_role("button", name="Download big").click()
        await expect(card.locator(".pull")).to_contain_text("of 9 MB")
        await expect(card.locator(".badge")).to_have_text("Downloading")
        await expect(card.get_by_role("progressbar")).to_have_js_property("max", 9 * MB)
        await page.get_by_role("button", name="Cancel the download of big").click()
        await expect(page.locator("#toasts")).to_contain_text("was cancelled")
        await card.get_by_role("button", name="Download big").click()
        await expect(card.locator(".pull")).to_contain_text("of 9 MB")
        await page.reload()
        await expect(card.locator(".pull")).to_contain_text("of 9 MB")
        await check_accessible(page)
        hub.release()
        await expect(card.locator(".badge")).to_have_text("On this machine")
        await expect(card.locator(".pull")).to_have_count(0)
        await card.get_by_role("button", name="Delete big").click()
        await page.locator("#ask").get_by_role("button", name="Delete").click()
        await expect(card.locator(".badge")).to_have_text("Not downloaded")


async def test_what_a_pull_takes(shop: ServerProcess, visit: OpenPage) -> None:
    """Memory, needed and free, and the size of the download: of the best quantisation or the chosen one."""
    async with visit(shop.url, "#/models") as page:
        card = page.locator("[data-model=big]")
        await expect(card.locator(".tags li").first).to_have_text("9 MB")
        await card.locator("summary").click()
        await expect(card).to_contain_text("Download: 9 MB.")
        card = page.locator("[data-model=glyph-128]")
        await expect(card).to_contain_text(re.compile(r"Fits: needs .+ of memory, .+ are free\."))
        card = page.locator("[data-model=huge]")
        await expect(card).to_contain_text(
            re.compile(r"Does not fit: needs .+ of memory, .+ of the .+ that are free may be used\.")
        )
        card = page.locator("[data-model='sd-1.5']")
        await card.locator("summary").click()
        choice, words = card.locator("select"), card.locator("p", has_text="Download:")
        await expect(choice.locator("option").first).to_contain_text(re.compile("Best fit: |Smallest: "))
        said = {await words.inner_text()}
        for option in await choice.locator("option", has_text=re.compile("[GM]B")).all():
            await choice.select_option(str(await option.get_attribute("value")))
            said.add(await words.inner_text())
        assert len(said) > 1


async def test_a_pull_that_the_server_does_not_survive(
    hub: HubServer, serve: Callable[..., ServerProcess], visit: OpenPage, tmp_path: Path
) -> None:
    """The card says that it was broken off; the next pull goes on and ends well."""
    big = hub.add("org/big", "big.gguf", b"\1" * 9 * MB)
    catalog = write_catalog(tmp_path / "hub.yaml", big={"model": big})
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}
    flags = ("--models-dir", str(tmp_path / "models"), "--model", "embedded", "--catalog", str(catalog))
    server = serve(*flags, env=env)
    server.wait_until_ready()
    hub.faults.hold_after = 2 * MB
    async with visit(server.url, "#/models", broken_lines=True) as page:
        card = page.locator("[data-model=big]")
        await card.get_by_role("button", name="Download big").click()
        await expect(card.locator(".pull")).to_contain_text("of 9 MB")
        server.process.kill()
        server.stop()
        await expect(card.locator(".error")).to_contain_text("connection was lost")
        serve(*flags, "--port", server.url.rsplit(":", 1)[1], env=env)
        await expect(card.locator(".error")).to_contain_text("Download resumes")
        hub.release()
        await card.get_by_role("button", name="Download big").click()
        await expect(card.locator(".badge")).to_have_text("On this machine")
        await expect(card.locator(".error")).to_have_count(0)


async def test_a_gated_model(shop: ServerProcess, visit: OpenPage) -> None:
    """Its card says what to do, with a link; a refused download says why, also later; a large one asks."""
    async with visit(shop.url, "#/models") as page:
        card = page.locator("[data-model=gated]")
        await expect(card).to_contain_text("Accept its licence first")
        await card.locator("summary").click()
        link = card.get_by_role("link", name="org/gated")
        assert str(await link.get_attribute("href")).endswith("/org/gated")
        assert await link.get_attribute("rel") == "noreferrer noopener"
        await card.get_by_role("button", name="Download gated").click()
        await expect(card.locator(".error")).to_contain_text("HF_TOKEN")
        await page.reload()
        await expect(card.locator(".error")).to_contain_text("HF_TOKEN")
        await page.route("**/v1/models/pull", lambda _: None)  # there is no answer yet
        await card.get_by_role("button", name="Download gated").click()
        await expect(card.locator(".pull")).to_contain_text("Contacting the hub")
        await expect(card.locator(".error")).to_have_count(0)
        card = page.locator("[data-model=huge]")
        await card.get_by_role("button", name="Download anyway huge").click()
        await expect(page.locator("#ask")).to_contain_text("does not fit into this machine's memory")
        await page.locator("#ask").get_by_role("button", name="Keep").click()
        await expect(card.locator(".badge")).to_have_text("Not downloaded")


async def test_load_and_unload(studio: ServerProcess, visit: OpenPage) -> None:
    """The state follows, here and in the form."""
    async with visit(studio.url, "#/models") as page:
        card = page.locator("[data-model=glyph-128]")
        await expect(card.locator(".badge")).to_have_text(re.compile("In memory|On this machine"))
        for _ in range(2):
            now = await card.locator(".badge").inner_text()
            verb, then = ("Unload", "On this machine") if now == "In memory" else ("Load", "In memory")
            await card.get_by_role("button", name=f"{verb} glyph-128", exact=True).click()
            await expect(card.locator(".badge")).to_have_text(then)
            other = "Load" if verb == "Unload" else "Unload"
            await expect(card.get_by_role("button", name=f"{other} glyph-128", exact=True)).to_be_focused()
        await page.get_by_role("searchbox", name="Find").fill("glyph")
        await expect(page.locator(".model")).to_have_count(1)
        await expect(page.locator("#models-hint")).to_contain_text("1 of ")
        await page.get_by_role("searchbox", name="Find").fill("nothing like it")
        await expect(page.locator("#models-hint")).to_contain_text("No match")
        await page.get_by_role("button", name="Show all").click()
        await expect(page.locator(".model").nth(1)).to_be_visible()
        await page.get_by_role("link", name="Create").click()
        await ready(page)
        await expect(page.locator("#model")).to_contain_text("glyph-128")


async def test_a_load_that_fails(
    serve: Callable[..., ServerProcess], visit: OpenPage, tmp_path: Path
) -> None:
    """The card says why; the next load takes the words away."""
    models = tmp_path / "models"
    models.mkdir()
    catalog = models / "broken.yaml"
    entry = {
        "family": "ovis-image",
        "files": {"model": "broken.gguf", "taesd": "tiny-random-tae.gguf"},
        "capabilities": ["text-to-image"],
    }
    catalog.write_text(json.dumps({"version": 1, "models": {"broken": entry}}))
    write_test_model(models)
    (models / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    server = serve("--models-dir", str(models), "--model", "embedded", "--catalog", str(catalog))
    async with visit(server.url, "#/models") as page:
        card = page.locator("[data-model=broken]")
        await card.get_by_role("button", name="Load broken").click()
        await expect(card.locator(".error")).to_contain_text("broken.gguf")
        (models / "tiny-random.gguf").replace(models / "broken.gguf")
        await card.get_by_role("button", name="Load broken").click()
        await expect(card.locator(".error")).to_have_count(0)
        await expect(card.locator(".badge")).to_have_text("In memory")


async def test_a_refresh_disturbs_nobody(studio: ServerProcess, visit: OpenPage) -> None:
    """What is chosen and what has the focus stay when the list is read again."""
    async with visit(studio.url, "#/models") as page:
        choice = page.get_by_label("Quantization of sd-1.5", exact=True)
        await choice.select_option(index=2)
        chosen = await choice.input_value()
        await choice.focus()
        async with page.expect_response("**/v1/models?all=true"):
            await page.evaluate("window.dispatchEvent(new HashChangeEvent('hashchange'))")
            await page.evaluate("location.hash = '#/gallery'")
            await page.evaluate("location.hash = '#/models'")
        await expect(choice).to_have_value(chosen)
