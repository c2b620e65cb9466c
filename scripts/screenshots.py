"""Pictures of every state of the web page: desk, phone, dark, 4K, zoom, low, high contrast, right to left.

The server, the engine and the embedded model are the real ones; the models that are pulled come from a hub of
the tests. Each state has a browser profile of its own and leaves no job behind: if one fails, no other does.
Takes about five minutes on two idle cores, and as long as it must on busy ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conftest import ServerProcess
from tests.hub import HubServer, write_catalog
from tests.unet import write_control_net, write_embedding, write_sd1
from tests.weights import write_lora, write_upscaler

DEADLINE = 120_000
"""Milliseconds for each wait, all of which are for a condition."""
PROMPTS = (
    "a red circle on a blue background", "a lovely cat", "a pink heart on a white background", "a house",
    "a blue triangle on a yellow background", "an apple", "a tree", "a fish", "a green star",
    "تفاحة حمراء (an apple)", "a bird",
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1440, "height": 900}},
    "dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "device_scale_factor": 2},
    "4k": {"viewport": {"width": 3840, "height": 2160}},
    "zoom": {"viewport": {"width": 720, "height": 450}, "device_scale_factor": 2},
    "4k-dense": {"viewport": {"width": 1920, "height": 1080}, "device_scale_factor": 2},
    "rtl": {"viewport": {"width": 1440, "height": 900}, "locale": "ar"},
    "low": {"viewport": {"width": 900, "height": 420}, "reduced_motion": "reduce"},
    "contrast": {"viewport": {"width": 1440, "height": 900}, "forced_colors": "active"},
}
FROM_RIGHT = """
document.addEventListener("DOMContentLoaded", () => { document.documentElement.dir = "rtl"; });
"""
KEY = "a-key"
STILL = """() => document.fonts.status === "loaded"
  && document.getAnimations().every((each) =>
    each instanceof CSSTransition || each.effect.getComputedTiming().iterations === Infinity)
  && [...document.images].every((image) => {
    const {top, bottom, left, right} = image.getBoundingClientRect();
    const seen = image.checkVisibility() && bottom > 0 && right > 0 && top < innerHeight && left < innerWidth;
    return image.complete || !seen;
  })"""
"""No picture that is seen is still coming, and nothing fades; rings of running jobs always move."""


class Shots:
    """One page in one variant, and the states that it is brought into."""

    def __init__(self, page: Page, url: str, folder: Path, variant: str) -> None:
        self.page = page
        self.url = url
        self._folder = folder
        self._variant = variant

    def take(self, name: str, *, whole: bool = False) -> None:
        self.page.wait_for_function(STILL)
        self.page.screenshot(path=self._folder / f"{name}-{self._variant}.png", full_page=whole)

    def see(self, selector: str) -> None:
        """Into the middle of what is seen; by the page, as its cards may be made anew meanwhile."""
        self.page.evaluate("each => document.querySelector(each).scrollIntoView({block: 'center'})", selector)

    def go(self, view: str) -> None:
        self.page.goto(f"{self.url}/#/{view}")
        self.page.wait_for_selector(f"#view-{view}:not([hidden])")

    def generate(self, prompt: str, **fields: str | int) -> None:
        self.page.evaluate("document.querySelector('#more').open = true")
        for name, value in {"prompt": prompt, **fields}.items():
            self.page.fill(f"#{name}", str(value))
        before = self.page.evaluate("document.querySelector('.job[data-newest]')?.dataset.job ?? ''")
        self.page.evaluate("document.querySelector('#more').open = false")
        self.page.press("#prompt", "Control+Enter")
        self.page.wait_for_function(
            "old => document.querySelector('.job[data-newest]')?.dataset.job !== old", arg=before
        )

    def settle(self) -> None:
        """Until no job is left."""
        self.page.wait_for_selector("#activity", state="hidden")

    def cancel_all(self) -> None:
        """Until no job is left, whatever it takes; the page may have none of the buttons for it."""
        cancel_all(self.url)
        self.settle()


def cancel_all(url: str) -> None:
    """Every job of the server that has not ended."""
    with urlopen(f"{url}/v1/jobs?limit=200") as answer:
        jobs = json.load(answer)["data"]
    for job in jobs:
        with suppress(HTTPError):
            urlopen(Request(f"{url}/v1/jobs/{job['id']}", method="DELETE")).close()


def create(shots: Shots, server: ServerProcess) -> None:
    page = shots.page
    shots.go("create")
    page.wait_for_selector("#model option", state="attached")
    shots.take("create", whole=True)
    page.keyboard.press("Tab")
    shots.take("create-skip")
    page.fill("#prompt", "")
    page.click("#generate")
    shots.take("create-says-what-is-missing")
    page.click("#more summary")
    shots.take("create-more", whole=True)
    page.click("#more summary")
    shots.generate("a lovely cat", steps=150, count=2)
    shots.generate("a house", count=1)
    page.wait_for_selector("#stage .picture[data-state=preview]")
    page.evaluate("scrollTo(0, 0)")
    shots.take("watch")
    shots.cancel_all()
    shots.take("watch-cancelled")
    shots.generate("a green heart", steps=4)
    shots.settle()
    shots.generate("a fish", steps=150)
    page.wait_for_selector("#stage .picture[data-state=preview]")
    worker = server.worker()
    assert worker is not None
    worker.send_signal(signal.SIGSEGV)  # a killed one is run again
    page.wait_for_selector(".job[data-status=failed]")
    shots.take("watch-failed")


def form(shots: Shots, server: ServerProcess) -> None:
    """What the form opens: help, presets, a picker, a set, and the queue."""
    page = shots.page
    shots.go("create")
    page.wait_for_selector("#generate:enabled")
    page.fill("#prompt", "a lovely cat")
    page.click("#more summary")
    page.click(".help[data-about=steps]")
    page.click(".help[data-about=sampler]")
    shots.take("form-help", whole=True)
    page.click("#lora-add")
    page.wait_for_selector("#picker[open]")
    shots.take("form-picker")
    page.keyboard.press("Enter")
    shots.see("#lora-field")
    shots.take("form-loras")
    page.get_by_role("button", name="Remove watercolour").click()
    page.click("#presets-open")
    page.fill("#preset-name", "Drafts")
    page.keyboard.press("Enter")
    shots.take("form-presets")
    page.click("#presets .close")
    page.click("#set-open")
    page.fill("#set-prompts", "a cat\na fish\na house")
    page.fill("#set-seed", "1-3")
    page.wait_for_selector("#set-hint:not(:empty)")
    shots.take("form-set")
    page.click("#set-send")
    page.wait_for_selector("#setter", state="hidden")
    page.wait_for_selector(".set:first-child .cells li[data-status=succeeded] >> nth=4")
    shots.take("form-grid")
    page.wait_for_selector("#activity", state="hidden")
    shots.take("form-grid-done")
    page.get_by_role("button", name="Dismiss the set").first.click()
    for prompt in ("a tree", "a bird", "an apple"):
        shots.generate(prompt, steps=150)
    page.evaluate("scrollTo(0, 0)")
    shots.take("form-queue")
    shots.cancel_all()


def addons(shots: Shots, server: ServerProcess) -> None:
    """What a model takes beside its prompt, chosen with the prompt's history open."""
    page = shots.page
    shots.go("create")
    page.wait_for_selector("#generate:enabled")
    page.select_option("#model", "sd1")
    page.click("#more summary")
    page.get_by_role("button", name="easyneg").click()
    page.select_option("#control-model", "edges")
    page.set_input_files(
        "#control-file", {"name": "made.png", "mimeType": "image/png", "buffer": newest(shots.url)}
    )
    page.wait_for_selector("#control-picture:not([hidden])")
    shots.see("#control-field")
    shots.take("addons")
    page.select_option("#model", "glyph-128")
    shots.generate("a (lovely:1.2) cat", steps=4)
    shots.settle()
    page.evaluate("scrollTo(0, 0)")
    page.click("button[popovertarget=prompts]:visible")
    page.wait_for_selector("#prompts button")
    shots.take("history")
    page.keyboard.press("Escape")
    page.fill("#prompt", "a cat, ")
    page.press("#prompt", "End")
    page.keyboard.type("<wat")
    page.wait_for_selector("#completions li")
    shots.take("completions")


def newest(url: str) -> bytes:
    """The newest picture's file."""
    with urlopen(f"{url}/v1/images?limit=1") as answer:
        address = json.load(answer)["data"][0]["url"]
    with urlopen(address) as answer:
        data: bytes = answer.read()
    return data


def edit(shots: Shots, server: ServerProcess) -> None:
    page = shots.page
    shots.go("gallery")
    page.click("#gallery .tile >> nth=3")
    with page.expect_request("**/v1/images/files/*"):
        page.get_by_role("button", name="Use as input").click()
    page.wait_for_selector(".thumb")
    page.click("#extend")
    page.click("#extend-around")
    shots.take("extend")
    page.click("#extender .close")
    page.click("#paint")
    page.wait_for_selector("#mask[open]")
    box = page.locator("#mask-paint").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5, steps=8)
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.7, steps=8)
    page.mouse.up()
    shots.take("mask")
    page.click("#mask-done")
    shots.generate("a red apple", steps=4)
    shots.settle()
    page.evaluate("scrollTo(0, 0)")
    shots.take("edit")
    page.click("#stage .tile")
    page.wait_for_selector("#viewer[open] .compare")
    shots.take("compare")
    page.click("#viewer .close")
    page.click(".thumb button")
    page.set_input_files("#file", {"name": "made.png", "mimeType": "image/png", "buffer": newest(shots.url)})
    page.wait_for_selector("#offer:not([hidden])")
    page.evaluate("scrollTo(0, 0)")
    shots.take("offer")
    page.click(".thumb button")


def look(shots: Shots, server: ServerProcess) -> None:
    page = shots.page
    shots.go("gallery")
    page.wait_for_selector("#gallery img")
    shots.take("gallery")
    page.click("#gallery .tile >> nth=1")
    page.wait_for_selector("#viewer[open] img")
    shots.take("viewer")
    page.get_by_role("button", name="Send to…").click()
    page.wait_for_selector("#picker[open]")
    shots.take("send-to")
    page.click("#picker .close")
    page.get_by_role("button", name="Copy Seed").click()
    page.get_by_role("button", name="Delete").click()
    shots.take("ask")
    page.click("#ask-no")
    page.click("#viewer .close")
    page.click("#select")
    for place in (1, 4):
        page.click(f"#gallery .tile >> nth={place}")
    shots.take("gallery-select")
    page.click("#selected-compare")
    page.wait_for_selector("#viewer[open] .results img")
    shots.take("compare-two")
    page.click("#viewer .close")


def models(shots: Shots, server: ServerProcess) -> None:
    page = shots.page
    shots.go("models")
    page.wait_for_selector(".model")
    shots.take("models")
    page.click("[data-model=big] [data-act=download]")
    page.wait_for_selector("[data-model=big] .pull .hint:has-text(' of ')")
    shots.see("[data-model=big]")
    shots.take("models-download")
    page.click("[data-model=big] [data-act=cancel]")
    page.wait_for_selector("[data-model=big] [data-act=download]")
    page.click("[data-model=missing] [data-act=download]")
    page.wait_for_selector("[data-model=missing] .error")
    shots.see("[data-model=missing]")
    shots.take("models-failed")
    page.fill("#models-find", "zzz")
    shots.take("models-none")


def state(shots: Shots, server: ServerProcess) -> None:
    shots.go("server")
    shots.page.wait_for_selector("#lanes .model")
    shots.page.wait_for_selector("#log li")
    shots.take("server")


State = Callable[[Shots, ServerProcess], None]
STATES: tuple[State, ...] = (create, form, addons, edit, look, models, state)


@contextmanager
def server_with_everything(folder: Path, hub: HubServer) -> Iterator[ServerProcess]:
    """The embedded model, models to pull, LoRAs, an upscaler, and pictures made before."""
    for name in ("models", "loras", "upscalers", "control", "words", "out"):
        (folder / name).mkdir()
    write_sd1(folder / "models", alive=False)
    write_control_net(folder / "control" / "edges.safetensors", alive=False)
    write_embedding(folder / "words" / "easyneg.safetensors")
    write_lora(folder / "loras" / "watercolour.gguf")
    write_upscaler(folder / "upscalers" / "double.gguf", 2)
    big = hub.add("org/big", "big.gguf", os.urandom(30_000_000))
    missing = {"model": {**big, "file": "other.gguf", "sha256": "0" * 64}}
    catalog = write_catalog(folder / "hub.yaml", big={"model": big}, missing=missing)
    entries = json.loads(catalog.read_text())
    files = {"model": "sd1.safetensors", "taesd": "sd1-tae.safetensors"}
    entries["models"]["sd1"] = {"family": "sd1", "files": files}
    catalog.write_text(json.dumps(entries))
    hub.faults.hold_after = 5_000_000
    server = ServerProcess(
        folder / "models", "--model", "embedded", "--catalog", str(catalog),
        "--output-dir", str(folder / "out"),
        "--lora-dir", str(folder / "loras"), "--upscaler-dir", str(folder / "upscalers"),
        "--control-dir", str(folder / "control"), "--embedding-dir", str(folder / "words"), "--grace", "1",
        env={"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")},
    )  # fmt: skip
    try:
        server.wait_until_ready()
        for number, prompt in enumerate(PROMPTS):
            body = {"prompt": prompt, "n": 1 + 2 * (number % 3 == 0), "steps": 4, "response_format": "url"}
            request = Request(
                f"{server.url}/v1/images/generations",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urlopen(request, timeout=120) as answer:
                answer.read()
        yield server
    finally:
        hub.release()
        server.stop()


def bring(
    state: State,
    browser: Browser,
    server: ServerProcess,
    folder: Path,
    variant: str,
) -> None:
    """A new page into this state; what cannot be reached is said, and shown as far as it went."""
    with profile(browser, variant) as page:
        shots = Shots(page, server.url, folder, variant)
        try:
            state(shots, server)
        except TimeoutError as exc:
            print(f"{state.__name__}, {variant}: {exc}")
            page.screenshot(path=folder / f"{state.__name__}-failed-{variant}.png")
    cancel_all(server.url)


@contextmanager
def profile(browser: Browser, variant: str) -> Iterator[Page]:
    """A page in a profile of its own, whose complaints are printed."""
    with browser.new_context(**VARIANTS[variant]) as context:
        if variant == "rtl":
            context.add_init_script(FROM_RIGHT)
        page = context.new_page()
        page.set_default_timeout(DEADLINE)
        page.on("console", lambda message: print(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: print(error))
        yield page


def bare(browser: Browser, folder: Path, variant: str) -> None:
    """A server that wants a key, has made nothing, and goes away."""
    with tempfile.TemporaryDirectory() as models_dir, profile(browser, variant) as page:
        server = ServerProcess(Path(models_dir), "--model", "embedded", "--api-key", KEY, "--grace", "1")
        shots = Shots(page, server.url, folder, variant)
        try:
            page.goto(server.url)
            page.wait_for_selector("#key[open]")
            page.fill("#key-value", "wrong")
            page.click("#key-form button")
            page.wait_for_selector("#key-error:not(:empty)")
            shots.take("key")
            page.fill("#key-value", KEY)
            page.click("#key-form button")
            page.wait_for_selector("#generate:enabled")
            shots.take("create-empty")
            shots.go("gallery")
            page.wait_for_selector("#gallery-empty:not([hidden])")
            shots.take("gallery-empty")
            shots.go("create")
            server.process.kill()
            page.wait_for_selector("#connection:not(:empty)")
            shots.take("offline")
            shots.go("models")
            page.wait_for_selector("#models-hint:has-text('not responding')")
            shots.take("models-offline")
        finally:
            with suppress(ProcessLookupError):
                server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*(each.__name__ for each in STATES), bare.__name__]
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only this one")
    parser.add_argument("--state", action="append", choices=names, help="only this one")
    wanted = parser.parse_args()
    wanted.folder.mkdir(parents=True, exist_ok=True)
    variants, chosen = wanted.variant or [*VARIANTS], wanted.state or names
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        filled(browser, [each for each in STATES if each.__name__ in chosen], wanted.folder, variants)
        for variant in variants:
            if bare.__name__ in chosen:
                bare(browser, wanted.folder, variant)
        browser.close()


def filled(browser: Browser, states: Sequence[State], folder: Path, variants: Sequence[str]) -> None:
    """The states of a server that has something of everything."""
    if not states:
        return
    with (
        tempfile.TemporaryDirectory() as servers,
        HubServer() as hub,
        server_with_everything(Path(servers), hub) as server,
    ):
        for variant in variants:
            for each in states:
                bring(each, browser, server, folder, variant)


if __name__ == "__main__":
    main()
