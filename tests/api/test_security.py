"""Who may call, what is refused before any work is done, and how errors look."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import openai
import pytest
from multidict import CIMultiDict
from openai import AsyncOpenAI
from pydantic import ValidationError

from gguf_imagegen.settings import Settings
from tests.api.client import EDITS, GENERATIONS, SMALL, noise, png, start_job
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import NeverAnswers, QuickEngine

KEY = "key-Zm9vYmFyYmF6"
OTHER = "second-key-ÄÖÜ"
CLOSED = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny-random"),
    ("POST", "/v1/models/tiny-random/load"),
    ("POST", "/v1/models/tiny-random/unload"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/job_x"),
    ("GET", "/v1/jobs/job_x/events"),
    ("DELETE", "/v1/jobs/job_x"),
    ("POST", GENERATIONS),
    ("POST", EDITS),
    ("GET", "/metrics"),
    ("GET", "/v1/logs"),
    ("GET", "/no/such/path"),
    ("GET", "/v1/images/files/a/../../../models"),
]


async def call(app: App, method: str, path: str, **kwargs: Any) -> tuple[int, dict[str, str], Any]:
    async with app.session.request(method, app.url + path, **kwargs) as answer:
        text = await answer.text()
        return answer.status, dict(answer.headers), json.loads(text) if text.startswith("{") else text


# -- keys ---------------------------------------------------------------------------------------------


async def test_without_the_key_only_open_paths_answer(running: RunningApp) -> None:
    """With a key set, every path but liveness, health and image files is a 401, even paths that are none."""
    async with running(engine=QuickEngine, api_key=KEY) as app:
        for method, path in CLOSED:
            status, headers, body = await call(app, method, path)
            assert (status, body["error"]["code"]) == (401, "unauthorized"), path
            assert headers["WWW-Authenticate"].startswith("Bearer")
            assert headers["x-should-retry"] == "false"
        assert (await app.get("/livez"))[0] == 200
        assert (await app.get("/health"))[0] in (200, 503)
        assert (await app.get("/v1/images/files/nothing.png"))[0] == 404


async def test_image_files_need_no_key(running: RunningApp) -> None:
    """The unguessable address of an image is enough, so that a browser can show it."""
    async with running(engine=QuickEngine, api_key=KEY) as app:
        _, _, body = await call(
            app, "POST", GENERATIONS, json=SMALL, headers={"Authorization": f"Bearer {KEY}"}
        )
        async with app.session.get(body["data"][0]["url"]) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        (f"BEARER  {KEY}", 200),
        ("Bearer other-key", 200),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Bearer {KEY.upper()}", 401),
        ("Bearer ", 401),
        ("Bearer", 401),
        (KEY, 401),
        (f"Basic {KEY}", 401),
        (f"Bearer {KEY},other-key", 401),
        ("Bearer käse", 401),
    ],
)
async def test_keys_are_compared_whole(running: RunningApp, header: str, status: int) -> None:
    """Each of several keys opens, under any case of the scheme; nothing like a key does."""
    async with running(engine=QuickEngine, api_key=f"{KEY}, other-key") as app:
        answered, _, body = await call(app, "GET", "/v1/models", headers={"Authorization": header})
        assert answered == status
        assert KEY not in json.dumps(body)


async def test_official_client_with_and_without_the_key(running: RunningApp) -> None:
    """The SDK's key is understood, and a wrong one is its AuthenticationError."""
    async with running(engine=QuickEngine, api_key=KEY) as app:
        async with AsyncOpenAI(base_url=f"{app.url}/v1", api_key=KEY, max_retries=0) as client:
            assert (await client.images.generate(prompt="a cat")).data
        async with AsyncOpenAI(base_url=f"{app.url}/v1", api_key="Zq81-is-wrong", max_retries=2) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.images.generate(prompt="a cat")
    assert caught.value.code == "unauthorized"
    assert "Zq81" not in caught.value.response.text


def test_key_stays_out_of_the_log(serve: Callable[..., ServerProcess]) -> None:
    """Neither the right key nor a wrong one is ever written, even at the most talkative level."""
    server = serve("--log-level", "debug", env={"GGUF_IMAGEGEN_API_KEY": KEY})
    for key, status in ((KEY, 404), ("wrong-secret", 401)):
        request = urllib.request.Request(
            f"{server.url}/v1/jobs/x?key={key}", headers={"Authorization": f"Bearer {key}"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request):
            pass
        assert caught.value.code == status
        caught.value.close()
    body = json.dumps({"prompt": "x", "steps": 1}).encode()
    request = urllib.request.Request(
        server.url + GENERATIONS, data=body, headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request) as answer:
        assert KEY not in answer.read().decode()
    log = server.log()
    assert "a key is needed" in log
    assert KEY not in log
    assert "wrong-secret" not in log


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_open_addresses_need_a_key(host: str) -> None:
    """Listening beyond loopback without a key is refused; a key or an explicit word allows it."""
    with pytest.raises(ValidationError, match="without a key"):
        Settings(host=host)
    assert Settings(host=host, api_key=KEY).host == host
    assert Settings(host=host, insecure=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """Every name of this machine alone is fine without a key."""
    assert Settings(host=host).host == host


def test_key_is_not_shown_by_settings() -> None:
    """Printing the settings shows no key."""
    assert KEY not in repr(Settings(api_key=KEY))


# -- browsers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("images.lan", 200),
        ("IMAGES.lan:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8080", 403),
        ("LOCALHOST.:8080", 200),
        ("[0:0:0:0:0:0:0:1]", 200),
        ("[::1", 403),
        ("images.lan@evil.example", 403),
        ("[::1].evil.example", 403),
        ("[::1]evil.example:80", 403),
        ("[localhost]", 403),
        ("evil.example@[::1]", 403),
        ("127.0.0.1:80@evil.example", 403),
        ("127.0.0.1:evil", 403),
        ("localhost/evil.example", 403),
        ("localhost evil.example", 403),
        ("", 403),
    ],
)
async def test_foreign_host_names_are_refused(running: RunningApp, host: str, status: int) -> None:
    """Without a key only our own names and addresses are served: a rebound name is not ours."""
    async with running(engine=QuickEngine, allowed_hosts="images.lan") as app:
        answered, _, body = await call(app, "GET", "/v1/models", headers={"Host": host})
    assert answered == status
    if status == 403:
        assert body["error"]["code"] == "forbidden"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://[", "x"])
async def test_foreign_origins_are_refused(running: RunningApp, origin: str) -> None:
    """Without a key no other site's page may call, whatever it asks for."""
    async with running(engine=QuickEngine) as app:
        for method, path in (("POST", GENERATIONS), ("GET", "/v1/jobs"), ("GET", "/health")):
            status, headers, body = await call(app, method, path, headers={"Origin": origin})
            assert (status, body["error"]["code"]) == (403, "forbidden")
            assert "Access-Control-Allow-Origin" not in headers
        assert (await app.get("/v1/jobs"))[1]["data"] == []


async def test_two_origins_are_none(running: RunningApp) -> None:
    """No browser sends two; neither is taken, whichever of them is ours."""
    async with running(engine=QuickEngine, cors_origins="https://app.example") as app:
        for first, second in ((app.url, "https://evil.example"), ("https://app.example", "null")):
            for pair in ((first, second), (second, first)):
                headers = CIMultiDict([("Origin", each) for each in pair])
                status, answered, _ = await call(app, "POST", GENERATIONS, json=SMALL, headers=headers)
                assert status == 403
                assert "Access-Control-Allow-Origin" not in answered


@pytest.mark.parametrize(
    ("public_url", "host", "origin", "status"),
    [
        (None, "localhost", "http://localhost", 200),
        (None, "localhost:80", "http://LOCALHOST", 200),
        (None, "localhost", "http://localhost:80", 200),
        (None, "localhost", "https://localhost", 200),  # a proxy may speak TLS for us
        (None, "localhost", "https://localhost:443", 200),
        (None, "[::1]:8080", "http://[::1]:8080", 200),
        (None, "localhost", "http://localhost:8080", 403),
        (None, "localhost:80", "https://localhost", 403),
        (None, "localhost", "ftp://localhost", 403),
        (None, "localhost", "http://user@localhost", 403),
        (None, "localhost", "http://localhost/path", 403),
        (None, "[::1]", "http://[::1].evil.example", 403),
        ("https://img.lan/x", "img.lan", "https://img.lan", 200),
        ("https://img.lan/x", "127.0.0.1:8080", "https://img.lan", 200),
        ("https://img.lan/x", "img.lan:8080", "http://img.lan:8080", 200),
        ("https://img.lan/x", "img.lan", "http://img.lan", 403),
        ("https://img.lan/x", "img.lan:443", "http://img.lan:443", 403),
    ],
)
async def test_origins_are_compared_by_their_parts(
    running: RunningApp, public_url: str | None, host: str, origin: str, status: int
) -> None:
    """Host and port in any spelling, and the scheme where --public-url says what it is."""
    async with running(engine=QuickEngine, public_url=public_url) as app:
        headers = {"Host": host, "Origin": origin}
        assert (await call(app, "POST", GENERATIONS, json=SMALL, headers=headers))[0] == status


@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin", "none", None])
@pytest.mark.parametrize("origin", ["own", None])
async def test_the_browser_says_whose_page_it_is(
    running: RunningApp, site: str | None, origin: str | None
) -> None:
    """A foreign page changes nothing, even without an Origin or under one like ours; pictures it may show."""
    async with running(engine=QuickEngine) as app:
        headers = {"Sec-Fetch-Site": site} if site else {}
        status, _, body = await call(app, "POST", GENERATIONS, json=SMALL, headers=headers)
        foreign = site in ("cross-site", "same-site")
        assert status == (403 if foreign else 200)
        if foreign:
            assert body["error"]["code"] == "forbidden"
        if origin:
            headers["Origin"] = app.url
        for method, path in (("DELETE", "/v1/jobs/job_x"), ("POST", "/v1/models/tiny-random/unload")):
            status, _, _ = await call(app, method, path, headers=headers)
            assert (status == 403) is foreign
        status, _, _ = await call(app, "GET", "/v1/models", headers=headers)
        assert (status == 403) is (foreign and origin is not None)


async def test_a_browser_that_sends_a_password_is_asked_whose_page_it_is(running: RunningApp) -> None:
    """Basic is sent by itself; a key in a header is not, and CORS may allow all."""
    foreign = {"Sec-Fetch-Site": "cross-site"}
    basic = {**foreign, "Authorization": aiohttp.encode_basic_auth("user", KEY)}
    async with running(engine=QuickEngine, api_key=KEY) as app:
        assert (await call(app, "POST", "/sdapi/v1/interrupt", headers=basic))[0] == 403
        bearer = {**foreign, "Authorization": f"Bearer {KEY}"}
        assert (await call(app, "POST", "/sdapi/v1/interrupt", headers=bearer))[0] == 200
    async with running(engine=QuickEngine, api_key=KEY, cors_origins="*") as app:
        assert (await call(app, "POST", "/sdapi/v1/interrupt", headers=basic))[0] == 200


async def test_own_origin_is_fine(running: RunningApp) -> None:
    """A page of this very server may call it."""
    async with running(engine=QuickEngine) as app:
        assert (await call(app, "GET", "/v1/models", headers={"Origin": app.url}))[0] == 200


async def test_allowed_origin_gets_its_headers(running: RunningApp) -> None:
    """Plain answers, errors and streams carry CORS headers for an allowed origin, and for no other."""
    origin = "https://app.example"
    async with running(engine=QuickEngine, cors_origins=f"{origin}, https://b.example") as app:
        requests: list[tuple[str, dict[str, object]]] = [
            (GENERATIONS, {"json": SMALL}),
            (GENERATIONS, {"json": {**SMALL, "stream": True}}),
            (GENERATIONS, {"json": {}}),
            ("/nothing", {}),
        ]
        for path, body in requests:
            _, headers, _ = await call(app, "POST", path, headers={"Origin": origin}, **body)
            assert headers["Access-Control-Allow-Origin"] == origin
            assert headers["Vary"] == "Origin"
            assert "X-Job-Id" in headers["Access-Control-Expose-Headers"]
        status, headers, _ = await call(app, "GET", "/livez", headers={"Origin": "https://c.example"})
        assert status == 403
        assert "Access-Control-Allow-Origin" not in headers


async def test_preflight(running: RunningApp) -> None:
    """An allowed origin may use the methods and headers it asks for; another gets no permission."""
    async with running(engine=QuickEngine, cors_origins="https://app.example", api_key=KEY) as app:
        ask = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-a, authorization",
        }
        status, headers, _ = await call(
            app, "OPTIONS", GENERATIONS, headers={"Origin": "https://app.example", **ask}
        )
        assert status == 204
        assert headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "POST" in headers["Access-Control-Allow-Methods"]
        assert headers["Access-Control-Allow-Headers"] == "x-a, authorization"
        status, headers, _ = await call(
            app, "OPTIONS", GENERATIONS, headers={"Origin": "https://evil.example", **ask}
        )
        assert status == 204
        assert not [name for name in headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("path", [GENERATIONS, EDITS])
async def test_options_without_origin(running: RunningApp, path: str) -> None:
    """OPTIONS on the image routes is a 2xx even outside browsers."""
    async with running(engine=QuickEngine) as app:
        assert (await call(app, "OPTIONS", path))[0] == 204


# -- bodies -------------------------------------------------------------------------------------------


def big_json() -> bytes:
    return json.dumps({**SMALL, "user": "x" * 300_000}).encode()


def big_form() -> tuple[bytes, str]:
    """A form whose parts are small each, but not together."""
    parts = [
        f'--cut\r\nContent-Disposition: form-data; name="image[]"; filename="a{i}"\r\n\r\n' for i in range(3)
    ]
    body = "".join(part + "x" * 100_000 + "\r\n" for part in parts) + "--cut--\r\n"
    return body.encode(), "multipart/form-data; boundary=cut"


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 10_000):
        yield body[start : start + 10_000]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", ["json", "form"])
async def test_large_bodies_are_refused(running: RunningApp, kind: str, chunked: bool) -> None:
    """A body over the limit is a 413 in every wrapping, announced or not; a smaller one is taken."""
    body, content_type = (big_json(), "application/json") if kind == "json" else big_form()
    path = GENERATIONS if kind == "json" else EDITS
    data: Any = chunks(body) if chunked else body
    async with running(engine=QuickEngine, max_body_mb=0.2) as app:
        status, headers, answer = await call(
            app, "POST", path, data=data, headers={"Content-Type": content_type}
        )
        assert (status, answer["error"]["code"]) == (413, "payload_too_large")
        assert "0.2 MiB" in answer["error"]["message"]
        assert headers["x-should-retry"] == "false"
        assert (await app.post(GENERATIONS, **SMALL, user="x" * 100_000))[0] == 200


async def test_announced_bodies_are_refused_unread(running: RunningApp) -> None:
    """A Content-Length over the limit is answered before a single byte of the body was sent."""
    async with running(engine=QuickEngine, max_body_mb=0.2) as app:
        host, port = app.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {GENERATIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: 9000000\r\n\r\n".encode()
        )
        assert b" 413 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"hello", 415, "unsupported_media_type"),
        (b"", 415, "unsupported_media_type"),
        (b"[]", 415, "unsupported_media_type"),
        (b"prompt=a+cat", 415, "unsupported_media_type"),
        (b"{", 400, "invalid_request"),
        (b'{"prompt": "\xff"}', 400, "invalid_request"),
        (b'{"a":' * 5000, 400, "invalid_request"),
        (b'{"prompt": "a", "seed": ' + b"9" * 6000 + b"}", 400, "invalid_request"),
        (b'{"prompt": "a", "cfg_scale": NaN}', 400, "invalid_request"),
        (b'{"prompt": "\\ud800"}', 400, "invalid_request"),
    ],
)
async def test_bodies_that_are_no_json_object(
    running: RunningApp, body: bytes, status: int, code: str
) -> None:
    """Other bodies are a 415, broken JSON a 400; none is an internal error."""
    async with running(engine=QuickEngine) as app:
        answered, _, answer = await call(
            app, "POST", GENERATIONS, data=body, headers={"Content-Type": "text/plain"}
        )
    assert (answered, answer["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--cut",
        b"no boundary here",
        b"--cut\r\nContent-Disposition: form-data\r\n\r\nx\r\n--cut--\r\n",
        b'--cut\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xfe\r\n--cut--\r\n',
        b'--cut\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhal',
        b'--cut\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 300 + b"--cut--\r\n",
    ],
)
@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=cut", "multipart/form-data"])
async def test_broken_forms_are_bad_requests(running: RunningApp, body: bytes, content_type: str) -> None:
    """A form that cannot be read is a 400 and never an internal error."""
    async with running(engine=QuickEngine) as app:
        status, _, answer = await call(app, "POST", EDITS, data=body, headers={"Content-Type": content_type})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_curl_needs_no_content_type(server: ServerProcess) -> None:
    """`curl -d` says that its JSON is a form; it is taken for what it is."""
    ran = subprocess.run(
        ["curl", "-s", "-d", json.dumps(SMALL), server.url + GENERATIONS],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(ran.stdout)["data"][0]["width"] == 64


def test_curl_can_send_an_edit(server: ServerProcess) -> None:
    """`curl -F` uploads a picture from its standard input."""
    ran = subprocess.run(
        ["curl", "-s", "-F", "image[]=@-", "-F", "prompt=a cat", "-F", "steps=1", server.url + EDITS],
        input=png(noise()), capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(ran.stdout)["size"] == "128x128"


# -- headers ------------------------------------------------------------------------------------------


async def test_pages_may_show_pictures_and_nothing_else(running: RunningApp) -> None:
    """Who knows the address of a picture may embed it; no other page's tag gets at anything else."""
    async with running(engine=QuickEngine) as app:
        _, _, body = await call(app, "POST", GENERATIONS, json={**SMALL, "response_format": "url"})
        picture = body["data"][0]["url"].removeprefix(app.url)
        for method, path, policy in (
            ("GET", picture, "cross-origin"),
            ("GET", f"/v1/images/files/{'x' * 20}.png", "same-origin"),
            ("GET", "/", "same-origin"),
            ("GET", "/v1/models", "same-origin"),
            ("GET", "/nothing", "same-origin"),
            ("OPTIONS", GENERATIONS, "same-origin"),
        ):
            async with app.session.request(method, app.url + path) as answer:
                assert answer.headers["Cross-Origin-Resource-Policy"] == policy, path


async def test_answers_do_not_say_what_they_were_made_with(running: RunningApp) -> None:
    """Neither our libraries nor their versions are in a header."""
    async with running(engine=QuickEngine) as app:
        streamed = {**SMALL, "stream": True}
        for method, path, body in (
            ("GET", "/", None),
            ("GET", "/nothing", None),
            ("POST", GENERATIONS, SMALL),
            ("POST", GENERATIONS, streamed),
            ("PUT", "/", None),
            ("OPTIONS", "/", None),
        ):
            _, headers, _ = await call(app, method, path, json=body)
            assert headers["Server"] == "gguf-imagegen"
            assert not [name for name, value in headers.items() if "python" in value.lower()]


# -- shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", GENERATIONS, 405, "method_not_allowed"),
        ("PUT", "/v1/jobs/x", 405, "method_not_allowed"),
    ],
)
async def test_wrong_paths_and_methods(
    running: RunningApp, method: str, path: str, status: int, code: str
) -> None:
    """404 and 405 have the shape of every error, and 405 says what is allowed."""
    async with running(engine=QuickEngine) as app:
        answered, headers, body = await call(app, method, path)
    assert (answered, body["error"]["code"]) == (status, code)
    assert body["detail"] == body["error"]["message"]
    assert headers["x-should-retry"] == "false"
    assert ("Allow" in headers) == (status == 405)


@pytest.mark.parametrize("given", ["abc-123", "x" * 128, "", "x" * 129, "a b", "a<b>"])
async def test_request_ids(running: RunningApp, given: str) -> None:
    """A sensible X-Request-ID comes back on answers, errors and streams; in place of others one is made."""
    async with running(engine=QuickEngine) as app:
        seen = set()
        for path, body in ((GENERATIONS, SMALL), (GENERATIONS, {}), (GENERATIONS, {**SMALL, "stream": True})):
            _, headers, _ = await call(app, "POST", path, json=body, headers={"X-Request-ID": given})
            seen.add(headers["X-Request-ID"])
    if given in ("abc-123", "x" * 128):
        assert seen == {given}
    else:
        assert len(seen) == 3
        assert all(made.startswith("req_") for made in seen)


async def test_full_queue_says_when_to_come_back(running: RunningApp) -> None:
    """429 with Retry-After and leave to retry, for the request that is one too many; then there is room."""
    async with running(engine=NeverAnswers, max_queue=1) as app:
        first, _ = await start_job(app)
        second, waiting = await start_job(app, "queued")
        status, headers, body = await call(app, "POST", GENERATIONS, json=SMALL)
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        assert headers["x-should-retry"] == "true"
        await app.session.delete(f"{app.url}/v1/jobs/{waiting['id']}")
        third, _ = await start_job(app, "queued")
        for task in (first, second, third):
            task.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)


async def test_answers_are_neither_cached_nor_sniffed(running: RunningApp) -> None:
    """Pictures of somebody's prompt stay out of caches, and no browser guesses at types."""
    async with running(engine=QuickEngine) as app:
        _, headers, body = await call(app, "POST", GENERATIONS, json=SMALL)
        async with app.session.get(body["data"][0]["url"]) as answer:
            for shown in (headers, dict(answer.headers)):
                assert shown["Cache-Control"] == "no-store"
                assert shown["X-Content-Type-Options"] == "nosniff"


async def test_internal_errors_tell_nothing(running: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours is a plain 500: no trace, no path."""
    async with running(engine=QuickEngine) as app:

        def broken(job: object) -> float:
            raise RuntimeError("secret of /etc/passwd")

        await app.post(GENERATIONS, **SMALL)
        monkeypatch.setattr(app.scheduler, "eta", broken)
        status, body = await app.get("/v1/jobs")
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(body)
    assert "passwd" not in json.dumps(body)
