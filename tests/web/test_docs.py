"""The page /docs: the API to read and to try, in a vendored Swagger UI."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.conftest import RunningApp
from tests.fake_engines import QuickEngine
from tests.web.conftest import OpenPage

ROOT = Path(__file__).parents[2]
VIEWER = ROOT / "gguf_imagegen/web/swagger-ui"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_operation_is_read_and_tried(running: RunningApp, visit: OpenPage, scheme: str) -> None:
    """Nothing is asked of others, and the policy finds nothing to forbid (`visit` looks at both)."""
    async with (
        running(engine=QuickEngine, dialects="openai") as app,
        visit(app.url, "docs", color_scheme=scheme) as page,
    ):
        await page.locator("[id='operations-tag-Server'] button").click()
        operation = page.locator(".opblock", has_text="/v1/me")
        await operation.get_by_role("button").first.click()
        await operation.get_by_role("button", name="Try it out").click()
        await operation.get_by_role("button", name="Execute").click()
        await expect(operation.locator(".live-responses-table")).to_contain_text('"name": "everybody"')
        dark = await page.evaluate("document.documentElement.classList.contains('dark-mode')")
        assert dark == (scheme == "dark")


async def test_fields_of_a_request_are_told(running: RunningApp, visit: OpenPage) -> None:
    """The example of a picture's request stands in its operation."""
    async with running(engine=QuickEngine) as app, visit(app.url, "docs") as page:
        await page.locator("[id='operations-tag-OpenAI'] button").click()
        operation = page.locator(".opblock", has_text="/v1/images/generations")
        await operation.get_by_role("button").first.click()
        await expect(operation.locator(".opblock-section-request-body")).to_contain_text("a lovely cat")


async def test_its_parts_are_sent_once(running: RunningApp) -> None:
    """Packed where the browser takes it, and not at all where it has them."""
    async with running(engine=QuickEngine) as app:
        for name in ("swagger-ui-bundle.js", "swagger-ui.css", "docs.js"):
            async with app.session.get(f"{app.url}/web/{name}") as answer:
                assert answer.headers["Content-Encoding"] == "gzip"
                tag = answer.headers["ETag"]
            async with app.session.get(f"{app.url}/web/{name}", headers={"If-None-Match": tag}) as answer:
                assert answer.status == 304


def test_the_viewer_is_the_release_that_the_script_fetches() -> None:
    """With its licence, and that of what is in it."""
    script = (ROOT / "scripts/vendor_docs_viewer").read_text()
    assert (VIEWER / "VERSION").read_text().strip() == re.findall(r"^release=(.*)$", script, re.MULTILINE)[0]
    assert "Apache License" in (VIEWER / "LICENSE").read_text()
    assert {path.name for path in VIEWER.iterdir()} == {
        "LICENSE", "NOTICE", "VERSION", "swagger-ui.css", "swagger-ui-bundle.js",
        "swagger-ui-bundle.js.LICENSE.txt",
    }  # fmt: skip
