"""Tags and compression of JSON answers: what a poller pays, and what is never compressed."""

from __future__ import annotations

import gzip
import json

import pytest
from multidict import CIMultiDictProxy

from tests.api.client import GENERATIONS, SMALL
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine

GZIP = {"Accept-Encoding": "gzip"}


async def raw(app: App, path: str, **headers: str) -> tuple[int, CIMultiDictProxy[str], bytes]:
    """An answer as it is on the wire."""
    async with app.session.get(app.url + path, headers=headers, auto_decompress=False) as answer:
        return answer.status, answer.headers, await answer.read()


async def test_a_poller_pays_for_what_changed(running: RunningApp) -> None:
    """304 without a body for the tag of what is still so, another answer and tag for what is not."""
    async with running(engine=QuickEngine) as app:
        await app.post(GENERATIONS, **SMALL)  # a model that is loaded does not change
        for path in (
            "/v1/models",
            "/v1/models/tiny-random",
            "/v1/jobs",
            "/v1/images",
            "/v1/me",
            "/openapi.json",
        ):
            status, headers, _ = await raw(app, path)
            assert status == 200
            tag = headers["ETag"]
            for sent in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
                status, again, body = await raw(app, path, **{"If-None-Match": sent})
                assert (status, again["ETag"], body) == (304, tag, b""), path
            assert (await raw(app, path, **{"If-None-Match": '"other"'}))[0] == 200
        _, headers, _ = await raw(app, "/v1/jobs")
        await app.post(GENERATIONS, **SMALL)
        status, changed, _ = await raw(app, "/v1/jobs", **{"If-None-Match": headers["ETag"]})
        assert status == 200
        assert changed["ETag"] != headers["ETag"]


async def test_browsers_ask_again_for_what_is_no_secret(running: RunningApp) -> None:
    """They may keep the models and the API's description, and nothing that has somebody's pictures in it."""
    async with running(engine=QuickEngine) as app:
        for path, kept in (
            ("/v1/models", True),
            ("/openapi.json", True),
            ("/v1/jobs", False),
            ("/v1/images", False),
        ):
            _, headers, _ = await raw(app, path)
            assert headers["Cache-Control"] == ("private, no-cache" if kept else "no-store")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny-random", "/openapi.json"])
async def test_long_answers_are_compressed(running: RunningApp, path: str) -> None:
    """For those who take it: the same answer under the same tag, in a fraction of the bytes."""
    async with running(engine=QuickEngine) as app:
        await app.post(GENERATIONS, **SMALL)  # a model that is loaded does not change
        _, headers, plain = await raw(app, path, **{"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in headers
        assert headers["Vary"] == "Accept-Encoding"
        for accepts in ("gzip", "br, gzip;q=0.5", "GZIP ; q=1"):
            _, packed, body = await raw(app, path, **{"Accept-Encoding": accepts})
            assert packed["Content-Encoding"] == "gzip"
            assert json.loads(gzip.decompress(body)).keys() == json.loads(plain).keys()
            assert packed["ETag"] == headers["ETag"]
            assert len(body) < len(plain) * 0.6
        for accepts in ("", "br", "gzip;q=0", "gzip; q=0.0", "xgzip"):
            assert "Content-Encoding" not in (await raw(app, path, **{"Accept-Encoding": accepts}))[1]
        async with app.session.head(app.url + path, headers=GZIP) as answer:
            assert answer.headers["ETag"] == headers["ETag"]


async def test_what_is_never_compressed(running: RunningApp) -> None:
    """Names of pictures, which are secrets; pictures; streams, which are no JSON; and what is short."""
    async with running(engine=QuickEngine) as app:
        bodies = []
        for _ in range(5):
            _, body = await app.post(GENERATIONS, **SMALL)
            bodies.append(body)
        url = bodies[0]["data"][0]["url"].removeprefix(app.url)
        lists = ("/v1/jobs", "/v1/images", f"/v1/jobs/{bodies[0]['id']}", "/livez", url, "/health")
        for path in (
            *lists,
            f"/v1/jobs/{bodies[0]['id']}/events",
            "/sdapi/v1/progress",
            "/sdapi/v1/sd-models",
        ):
            status, headers, _ = await raw(app, path, **GZIP)
            assert status == 200
            assert "Content-Encoding" not in headers, path
        for extra in ({}, {"stream": True}):
            request = app.session.post(app.url + GENERATIONS, json={**SMALL, **extra}, headers=GZIP)
            async with request as answer:
                assert "Content-Encoding" not in answer.headers
                assert "ETag" not in answer.headers


async def test_errors_have_no_tag(running: RunningApp) -> None:
    """A tag is of something that was read."""
    async with running(engine=QuickEngine) as app:
        status, headers, _ = await raw(app, "/v1/models/nothing", **{"If-None-Match": "*"})
        assert status == 404
        assert "ETag" not in headers
