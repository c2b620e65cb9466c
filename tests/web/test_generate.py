"""Making pictures on the page, with the real engine: previews, cancel, tabs, reloads, crashes."""

from __future__ import annotations

import asyncio
import json
import re
import signal

import pytest
from playwright.async_api import Page, expect

from tests.api.client import noise, picture, png
from tests.conftest import RunningApp, ServerProcess
from tests.fake_engines import CannotLoad, NeverAnswers, QuickEngine, SlowEngine
from tests.web.conftest import (
    MS,
    OpenPage,
    asks,
    check_accessible,
    fits_across,
    generate,
    newest_job,
    ready,
    send,
    settled,
    unfold,
    weigh,
)

LONG = 150
DESK = {"width": 1440, "height": 900}
WATCH_FADES = """
[window.fades, window.below] = [[], []];
const seen = new Set();
const look = () => {
  for (const each of document.getAnimations()) {
    if (each instanceof CSSTransition || each instanceof CSSAnimation || seen.has(each)) continue;
    seen.add(each);
    window.fades.push(each.effect.getTiming().duration);
    window.below.push(getComputedStyle(each.effect.target.parentElement).backgroundImage);
  }
  requestAnimationFrame(look);
};
look();
"""
COUNT_PREVIEWS = """
window.shown = new Set();
new MutationObserver((changes) => changes.forEach(({target}) => {
  if (target.src.startsWith("data:")) window.shown.add(target.src);
})).observe(document.body, {subtree: true, attributes: true, attributeFilter: ["src"]});
"""


async def finished_source(page: Page) -> str:
    """The path of the newest finished picture, loaded and decoded."""
    image = newest_job(page).locator(".picture[data-state=done] img").first
    await expect(image).to_have_attribute("src", re.compile("/v1/images/files/"))
    await expect(image).to_have_js_property("complete", True)
    assert await image.evaluate("(image) => image.naturalWidth") > 0
    return str(await image.get_attribute("src"))


async def test_a_picture_comes_step_by_step(studio: ServerProcess, visit: OpenPage) -> None:
    """At least three different previews, a ring that fills, words on the step, and the picture at the end."""
    async with visit(studio.url, reduced_motion="no-preference") as page:
        await page.evaluate(COUNT_PREVIEWS)
        await generate(page, "a red circle", steps=8)
        card = newest_job(page)
        await expect(card.locator(".state")).to_have_text(re.compile(r"Sampling, step \d+ of 8"))
        ring = card.get_by_role("progressbar")
        await expect(ring).to_have_attribute("aria-valuenow", re.compile(r"[1-9]\d?"))
        assert re.match(r"\d+% · ", await page.title())
        await settled(page)
        await finished_source(page)
        assert await page.evaluate("window.shown.size") >= 3
        await expect(card).to_have_attribute("data-status", "succeeded")
        await expect(page).to_have_title("gguf_imagegen")
        assert "a red circle" in await page.locator("#announce").inner_text()


class GatedEngine(QuickEngine):
    """Waits after its first step until the gate is open."""

    def __init__(self, gate: asyncio.Event) -> None:
        super().__init__()
        self._gate = gate

    async def at_step(self, step: int) -> None:
        if step == 2:
            await self._gate.wait()


@pytest.mark.parametrize(("motion", "fades"), [("no-preference", [150]), ("reduce", [])])
async def test_a_preview_fades_into_its_picture(
    running: RunningApp, visit: OpenPage, motion: str, fades: list[int]
) -> None:
    """Once, in 150 ms, with the preview below until then; at once for those who want less motion."""
    gate = asyncio.Event()
    async with (
        running(engine=lambda: GatedEngine(gate)) as app,
        visit(app.url, reduced_motion=motion) as page,
    ):
        await page.evaluate(WATCH_FADES)
        await generate(page, "a bell", steps=2)
        tile = newest_job(page).locator(".tile")
        await expect(tile.locator("img")).to_have_attribute("src", re.compile("^data:"))
        gate.set()
        await settled(page)
        await expect(tile.locator("img")).to_have_attribute("src", re.compile("/v1/images/files/"))
        await page.wait_for_function("count => window.fades.length === count", arg=len(fades))
        await page.wait_for_function("() => !document.querySelector('#stage .tile').style.background")
        assert await page.evaluate("window.fades") == fades
        below = await page.evaluate("window.below")
        assert [each.startswith('url("data:image/png') for each in below] == [True] * len(fades)


async def test_the_newest_pictures_are_large(running: RunningApp, visit: OpenPage) -> None:
    """However many there are of a job, and however small they are; older ones fill their rows."""
    heights = "(all) => all.map((each) => each.clientHeight)"
    async with running(engine=QuickEngine) as app, visit(app.url, viewport=DESK) as page:
        for count, least in ((1, 500), (2, 400), (3, 290), (4, 330), (6, 220)):
            await generate(page, "a cat", count=count, steps=1, width=64, height=64)
            await settled(page)
            images = page.locator("#stage .tile img")
            await expect(images).to_have_count(count)
            assert min(await images.evaluate_all(heights)) >= least
        for _ in range(3):
            await generate(page, "a cat", count=3, steps=1)
        await settled(page)
        ends = await page.locator("#strip .job").evaluate_all(
            "(all) => all.map((each) => [each.offsetTop, Math.round(each.getBoundingClientRect().right)])"
        )
        rows = {top: max(right for other, right in ends if other == top) for top, _ in ends}
        rightmost = await page.locator("#strip").evaluate(
            "(strip) => Math.round(strip.getBoundingClientRect().right)"
        )
        assert len(rows) > 1
        assert [right for top, right in sorted(rows.items())][:-1] == [rightmost] * (len(rows) - 1)


async def test_steps_may_be_left_out(studio: ServerProcess, visit: OpenPage) -> None:
    """The model's step caches are offered, and the chosen one is asked for; no decoder where there is one."""
    async with visit(studio.url) as page:
        await ready(page)
        await unfold(page)
        await expect(page.locator("#decoder-field")).to_be_hidden()
        await expect(page.locator("#step_cache option")).to_have_text(
            ["No", "easycache", "dbcache", "taylorseer", "cache-dit", "spectrum"]
        )
        await page.select_option("#step_cache", "spectrum")
        async with page.expect_request(asks) as asked:
            await generate(page, "a red circle", steps=2)
        assert '"step_cache":"spectrum"' in str((await asked.value).post_data).replace(" ", "")
        await settled(page)


async def test_the_form_shows_what_the_model_can(studio: ServerProcess, visit: OpenPage) -> None:
    """Sizes, steps and fields are those of the chosen model; LoRAs and upscalers are there to choose."""
    async with visit(studio.url) as page:
        await ready(page)
        await expect(page.locator("#width")).to_have_value("128")
        await expect(page.locator("#negative-field")).to_be_hidden()
        await page.fill("#cfg", "2")
        await expect(page.locator("#negative-field")).to_be_visible()
        await page.get_by_role("button", name="16:9").click()
        assert (await page.input_value("#width"), await page.input_value("#height")) == ("176", "96")
        await page.get_by_role("button", name="High").click()
        await expect(page.locator("#steps")).to_have_value("8")
        await page.fill("#cfg", "1")
        await expect(page.locator("#negative-field")).to_be_hidden()
        await page.fill("#width", "4096")
        await expect(page.locator("#size-hint")).to_contain_text("Too large")
        await unfold(page)
        await weigh(page, "watercolour", 0.5)
        await page.select_option("#upscale", "2 double")
        await page.select_option("#model", "by-reference")
        await expect(page.locator("#steps")).to_have_value("2")
        await expect(page.locator("#inputs-label")).to_have_text("Pictures to edit or combine")
        await expect(page.locator("#model-state")).to_contain_text("Loaded when needed: needs")
        async with page.expect_request(asks) as sent:
            await generate(page, "a cat", steps=1)
        body = json.loads((await sent.value).post_data or "")
        assert body["lora"] == [{"name": "watercolour", "scale": 0.5}]
        assert (body["model"], body["upscale"], body["upscaler"]) == ("by-reference", 2, "double")
        assert "negative_prompt" in body
        await settled(page)
        await finished_source(page)
        await expect(page.locator(".job .state").first).to_contain_text("256 × 256")


async def test_everything_is_remembered(studio: ServerProcess, visit: OpenPage) -> None:
    """After a reload the form is as it was, for each model."""
    async with visit(studio.url) as page:
        await ready(page)
        values = {"prompt": "a cat\nin a hat", "cfg": "3.5", "negative": "rain", "steps": "9", "seed": "77"}
        for name, value in values.items():
            await page.fill(f"#{name}", value)
        await page.reload()
        await ready(page)
        assert {name: await page.input_value(f"#{name}") for name in values} == values
        await expect(page.locator("#lock")).to_have_attribute("aria-pressed", "true")
        await unfold(page)
        await page.click("#defaults")
        await expect(page.locator("#steps")).to_have_value("4")
        await expect(page.get_by_placeholder("Such as: cat · a red apple", exact=True)).to_be_visible()


async def test_what_a_seed_may_be(studio: ServerProcess, visit: OpenPage) -> None:
    """-1 is a new one; what is no number is said, and locks nothing; a number is locked."""
    async with visit(studio.url) as page:
        await ready(page)
        lock, hint = page.locator("#lock"), page.locator("#seed-hint")
        await page.fill("#seed", "ninety")
        await expect(lock).to_have_attribute("aria-pressed", "false")
        await expect(hint).to_contain_text("Enter a whole number")
        await page.fill("#prompt", "a cat")
        await page.click("#generate")
        await expect(page.locator("#create-error")).to_contain_text("Enter a whole number")
        await page.fill("#seed", "-1")
        await expect(lock).to_have_attribute("aria-pressed", "false")
        await page.fill("#steps", "1")
        async with page.expect_request(asks) as sent:
            await send(page)
        assert "seed" not in json.loads((await sent.value).post_data or "")
        await settled(page)
        await page.fill("#seed", "7")
        await expect(lock).to_have_attribute("aria-pressed", "true")


async def test_a_double_click_is_one_click(studio: ServerProcess, visit: OpenPage) -> None:
    """One job comes of it, and one shape at most is pressed."""
    async with visit(studio.url) as page:
        await ready(page)
        await page.fill("#prompt", "once")
        await page.fill("#steps", "1")
        asked: list[bool] = []
        page.on("request", lambda request: asked.append(asks(request)))
        await page.dblclick("#generate")
        await settled(page)
        await expect(page.locator(".job .prompt", has_text="once")).to_have_count(1)
        assert asked.count(True) == 1
        file = {"name": "noise.png", "mimeType": "image/png", "buffer": png(noise(128, 128))}
        await page.set_input_files("#file", file)  # type: ignore[arg-type]
        await expect(page.locator("#size-of-picture")).to_have_attribute("aria-pressed", "true")
        await expect(page.locator("#sizes [aria-pressed=true]")).to_have_count(1)


async def test_a_deleted_picture_leaves(running: RunningApp, visit: OpenPage) -> None:
    """Its card, too; finished cards can go and be put back; two lines leave Cancel its room."""
    async with running(engine=SlowEngine) as app, visit(app.url, statuses=(404,)) as page:
        for name in ("first", "second"):
            await generate(page, name, steps=1)
            await settled(page)
        await page.locator(".job", has_text="second").locator(".tile").click()
        await page.get_by_role("button", name="Delete").click()
        await page.locator("#ask").get_by_role("button", name="Delete").click()
        await expect(page.locator(".job .prompt")).to_have_text(["first"])
        await page.wait_for_function(
            "() => !document.querySelector('#viewer').open && !location.hash.includes('picture')"
        )
        await page.reload()
        await expect(page.locator(".job .prompt")).to_have_text(["first"])
        await page.get_by_role("button", name="Dismiss: first").click()
        await expect(page.locator(".job")).to_have_count(0)
        await generate(page, "third", steps=1)
        await settled(page)
        await page.click("#clear")
        await expect(page.locator(".job")).to_have_count(0)
        await page.get_by_role("button", name="Put back").click()
        await expect(page.locator(".job .prompt")).to_have_text(["third"])
        await generate(page, "a picture of two lines " * 20, steps=150)
        cancel = page.locator(".job [data-act=cancel]:visible")
        needs = "(button) => button.scrollWidth <= button.clientWidth && button.clientHeight < 60"
        assert await cancel.evaluate(needs)
        await cancel.click()
        await settled(page)


async def test_the_seed_is_drawn_or_locked(studio: ServerProcess, visit: OpenPage) -> None:
    """A drawn seed is shown, and Lock makes the same picture again."""
    async with visit(studio.url) as page:
        await generate(page, "a blue square", steps=2)
        await settled(page)
        await finished_source(page)
        seed = await page.input_value("#seed")
        assert seed.isdecimal()
        await page.click("#lock")
        await send(page)
        await settled(page)
        assert await page.input_value("#seed") == seed
        one, other = [
            await card.evaluate("(image) => image.src") for card in await page.locator(".job img").all()
        ][:2]
        assert one != other
        await newest_job(page).locator(".tile").first.click()
        await expect(page.locator("#viewer-parameters")).to_contain_text(seed)
        await page.keyboard.press("Escape")
        await page.click("#lock")
        await send(page)
        await expect(page.locator("#seed")).not_to_have_value(seed)
        await settled(page)


async def test_cancel_in_the_middle(studio: ServerProcess, visit: OpenPage) -> None:
    """One job by its button, all by one more; the next works."""
    async with visit(studio.url) as page:
        await generate(page, "a long one", steps=LONG)
        card = newest_job(page)
        await expect(card.locator(".picture[data-state=preview]")).to_be_visible()
        await card.get_by_role("button", name="Cancel").click()
        await expect(card.locator(".state")).to_have_text("Cancelled")
        await expect(card.get_by_role("button", name="Dismiss")).to_be_focused()
        await expect(page.locator("#cancel-all")).to_be_hidden()
        for name in ("first", "second", "third"):
            await generate(page, name, steps=LONG)
        await expect(newest_job(page).locator(".state")).to_contain_text("number 2 in the queue")
        await page.click("#cancel-all")
        await settled(page)
        await expect(page.locator("#clear")).to_be_focused()
        await expect(page.locator(".job[data-status=cancelled]")).to_have_count(4)
        await generate(page, "a short one", steps=2)
        await settled(page)
        await finished_source(page)


async def test_progress_is_heard(running: RunningApp, visit: OpenPage) -> None:
    """That a job begins, how far it is at times, and its end."""
    async with running(engine=SlowEngine) as app, visit(app.url) as page:
        await page.evaluate(
            """() => {
                window.heard = [];
                const hear = () => window.heard.push(announce.textContent);
                new MutationObserver(hear).observe(announce, {childList: true});
            }"""
        )
        SlowEngine.SECONDS, before = 0.5, SlowEngine.SECONDS
        try:
            await generate(page, "a bell", steps=16)
            await settled(page)
            await page.wait_for_function("() => window.heard.at(-1)?.includes('finished')")
        finally:
            SlowEngine.SECONDS = before
        heard = await page.evaluate("window.heard")
        assert heard[0] == "“a bell” has begun."
        assert 3 <= len(heard) <= 5
        assert all(re.fullmatch("“a bell”: (25|50|75) %.", words) for words in heard[1:-1])


async def test_what_has_ended_can_go(running: RunningApp, visit: OpenPage) -> None:
    """One by one, with the focus on the next, or all at once; for good."""
    async with running(engine=SlowEngine) as app, visit(app.url) as page:
        spent = page.locator(".job[data-status=cancelled]")
        await generate(page, "kept", steps=1)
        await settled(page)
        for name in ("one", "two", "three", "four"):
            await generate(page, name, steps=LONG)
        await expect(page.get_by_role("button", name="Dismiss")).to_have_count(1)
        await page.click("#cancel-all")
        await expect(spent).to_have_count(4)
        await check_accessible(page)
        await page.get_by_role("button", name="Dismiss: three").press("Enter")
        await expect(page.get_by_role("button", name="Dismiss: two")).to_be_focused()
        await page.reload()
        await expect(page.locator(".job")).to_have_count(4)
        await expect(page.locator(".job .prompt", has_text="three")).to_have_count(0)
        await page.get_by_role("button", name="Dismiss: one").press("Enter")
        await expect(page.get_by_role("button", name="Dismiss: two")).to_be_focused()
        await page.set_viewport_size({"width": 360, "height": 740})
        assert await fits_across(page)
        await page.locator("#clear").press("Enter")
        await expect(page.locator("#watch-title")).to_be_focused()
        await expect(page.locator("#clear")).to_be_hidden()
        await page.reload()
        await ready(page)
        await expect(page.locator(".job")).to_have_count(0)


async def test_a_set_comes_whole(studio: ServerProcess, visit: OpenPage) -> None:
    """Two prompts with two seeds: four different pictures, and a sheet that has them all."""
    async with visit(studio.url) as page:
        await ready(page)
        await page.fill("#steps", "2")
        await page.click("#set-open")
        await page.fill("#set-prompts", "a red circle\na house")
        await page.fill("#set-seed", "5, 6")
        await expect(page.locator("#set-hint")).to_contain_text("4 pictures")
        await page.click("#set-send")
        made = page.locator(".cells li[data-status=succeeded] img[src]")
        await expect(made).to_have_count(4, timeout=3 * MS)
        sources = await made.evaluate_all("(all) => all.map((each) => each.src.split('?')[0])")
        files = {await (await page.request.get(each)).body() for each in sources}
        assert len(files) == 4
        sheet = await page.get_by_role("link", name="Contact sheet").get_attribute("href")
        whole = picture(await (await page.request.get(f"{studio.url}{sheet}")).body())
        assert min(whole.size) >= 2 * 128
        await page.get_by_role("button", name="Dismiss the set").click()
        await expect(page.locator(".set")).to_have_count(0)


async def test_two_tabs_show_the_same(studio: ServerProcess, visit: OpenPage) -> None:
    """A job of one tab is watched, and cancelled, in the other."""
    async with visit(studio.url) as page:
        await ready(page)
        other = await page.context.new_page()
        other.set_default_timeout(60_000)
        await other.goto(studio.url)
        await ready(other)
        await generate(page, "seen twice", steps=LONG)
        card = newest_job(other)
        await expect(card).to_contain_text("seen twice")
        await expect(card.locator(".picture[data-state=preview]")).to_be_visible()
        await card.get_by_role("button", name="Cancel").click()
        await expect(newest_job(page).locator(".state")).to_have_text("Cancelled")


async def test_a_reload_in_the_middle(running: RunningApp, visit: OpenPage) -> None:
    """The job goes on, and so does its card."""
    reloaded = asyncio.Event()

    class Waits(QuickEngine):
        async def at_step(self, step: int) -> None:
            if step == 4:
                await reloaded.wait()

    async with running(engine=Waits) as app, visit(app.url) as page:
        await generate(page, "survives", steps=6, count=2)
        card = newest_job(page)
        await expect(card.locator(".picture[data-state=preview]")).to_be_visible()
        await page.reload()
        await expect(card).to_contain_text("survives")
        await expect(card.locator(".state")).to_have_text(re.compile(r"step \d+ of 6 · picture \d of 2"))
        reloaded.set()
        await settled(page)
        await expect(card.locator(".picture[data-state=done]")).to_have_count(2)
        await finished_source(page)


async def test_the_worker_is_killed(studio: ServerProcess, visit: OpenPage) -> None:
    """The card says what happened and what to do, and the next picture comes."""
    async with visit(studio.url) as page:
        await generate(page, "ill-fated", steps=LONG)
        card = newest_job(page)
        await expect(card.locator(".picture[data-state=preview]")).to_be_visible()
        worker = studio.worker()
        assert worker is not None
        worker.send_signal(signal.SIGSEGV)  # a crash of its own: a killed one is run again
        await expect(card.locator(".error")).to_contain_text("generate again")
        await expect(card.locator(".state")).to_have_text("Failed")
        await page.fill("#prompt", "something else")
        await card.get_by_role("button", name="Load settings").click()
        await expect(page.locator("#prompt")).to_have_value("ill-fated")
        await generate(page, "after it", steps=2)
        await settled(page)
        await finished_source(page)
        await expect(newest_job(page)).to_have_attribute("data-status", "succeeded")


async def test_what_is_wrong_is_said(studio: ServerProcess, visit: OpenPage) -> None:
    """By the field where it can be mended, and by the server's own words where it refuses."""
    async with visit(studio.url, statuses=(400,)) as page:
        await ready(page)
        error = page.locator("#create-error")
        await page.fill("#prompt", " ")
        await page.click("#generate")
        await expect(error).to_have_text("Enter a prompt.")
        await expect(page.locator("#prompt")).to_be_focused()
        await page.fill("#prompt", "a cat")
        await page.fill("#steps", "0")
        await page.click("#generate")
        await expect(error).to_contain_text("Steps:")
        await expect(page.locator("#steps")).to_be_focused()
        await page.fill("#steps", "2")
        await page.fill("#width", "256")
        await page.fill("#height", "96")
        await page.fill("#prompt", "x" * 9000)
        await page.click("#generate")
        await expect(error).to_contain_text("8000")
        await page.fill("#prompt", "a cat")
        await page.click("#generate")
        await expect(error).to_be_empty()
        await settled(page)


async def test_one_complaint_of_a_size(studio: ServerProcess, visit: OpenPage) -> None:
    """A side that is too large is said once, beside the field, which Generate goes to."""
    async with visit(studio.url, viewport={"width": 1440, "height": 700}) as page:
        await ready(page)
        await page.fill("#prompt", "a cat")
        await expect(page.locator("#size-hint")).to_have_class("hint")
        asked: list[bool] = []
        page.on("request", lambda request: asked.append(asks(request)))
        for width, height, wrong in (("4096", "64", "width"), ("", "4096", "height")):
            await page.fill("#width", width)
            await page.fill("#height", height)
            await page.click("#generate")
            await expect(page.locator(f"#{wrong}")).to_be_focused()
            await expect(page.locator("#create .error:not(:empty)")).to_have_count(1)
            await expect(page.locator("#size-hint")).to_contain_text("Too large for")
            await expect(page.locator("#size-hint")).to_be_in_viewport(ratio=1)
        assert True not in asked


async def test_a_model_that_cannot_be_loaded(running: RunningApp, visit: OpenPage) -> None:
    """Its card gives the reason and what to do, and can be dismissed."""
    async with running(engine=CannotLoad) as app, visit(app.url) as page:
        await generate(page, "a cat")
        await expect(page.locator(".job .error")).to_contain_text("wrong tensors. Choose another model")
        await page.get_by_role("button", name="Dismiss: a cat").click()
        await expect(page.locator(".job")).to_have_count(0)
        await expect(page.locator("#jobs-empty")).to_be_visible()


async def test_loading_and_waiting_have_words(running: RunningApp, visit: OpenPage) -> None:
    """A model that is being loaded, a queue, an end that comes without a reload."""
    async with running(engine=SlowEngine) as app, visit(app.url) as page:
        await generate(page, "one", steps=4)
        await generate(page, "two", steps=1)
        waiting = newest_job(page).locator(".state")
        await expect(waiting).to_contain_text("Next in the queue")
        await expect(newest_job(page).get_by_role("progressbar")).to_have_text("#1")
        await settled(page)
        await expect(page.locator(".job[data-status=succeeded]")).to_have_count(2)


async def test_a_place_in_the_queue_moves_up(running: RunningApp, visit: OpenPage) -> None:
    """When one that waits is cancelled, the card of the one behind it says so."""
    async with running(engine=NeverAnswers) as app, visit(app.url) as page:
        for prompt in ("one", "two", "three"):
            await generate(page, prompt, steps=1)
        last = newest_job(page)
        await expect(last.get_by_role("progressbar")).to_have_text("#2")
        await page.get_by_role("button", name="Cancel: two").click()
        await expect(last.get_by_role("progressbar")).to_have_text("#1")
        await expect(last.locator(".state")).to_contain_text("Next in the queue")


async def test_many_jobs_are_bounded(running: RunningApp, visit: OpenPage) -> None:
    """Old cards go; a job that ends before its own answer is read has ended."""
    async with running(engine=SlowEngine, max_queue=64) as app, visit(app.url) as page:
        SlowEngine.SECONDS, before = 0.0, SlowEngine.SECONDS
        try:
            await ready(page)
            for seed in range(40):
                await app.post("/v1/images/generations", prompt="a cat", size="64x64", steps=1, seed=seed)
            await generate(page, "last", steps=1)
            await settled(page)
            await expect(newest_job(page)).to_contain_text("last")
            await expect(page.locator(".job")).to_have_count(24)
            await expect(page.locator(".job[data-status=succeeded]")).to_have_count(24)
        finally:
            SlowEngine.SECONDS = before
