"""Behind proxies: whose word counts, addresses below a prefix, and a real nginx in front."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from gguf_imagegen.settings import Settings
from tests.api.client import GENERATIONS, SMALL, eventually
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine

HERE = "127.0.0.1"
PUBLIC = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "img.example:8443"}


async def url_of(app: App, headers: dict[str, str] | CIMultiDict[str] | None = None) -> str:
    """The address of a new picture; the refusal's code if it is refused."""
    async with app.session.post(app.url + GENERATIONS, json=SMALL, headers=headers) as answer:
        body = await answer.json()
    return str(body["data"][0]["url"] if answer.status == 200 else body["error"]["code"])


async def test_only_trusted_proxies_count(running: RunningApp) -> None:
    """Anybody can send these headers: without --trusted-proxies, or from elsewhere, they mean nothing."""
    for trusted in ("", "10.0.0.0/8, ::1"):
        async with running(engine=QuickEngine, trusted_proxies=trusted) as app:
            assert (await url_of(app, PUBLIC)).startswith(f"{app.url}/v1/images/files/")
            headers = {**PUBLIC, "Origin": "https://img.example:8443"}
            assert await url_of(app, headers) == "forbidden"


BASES: list[tuple[dict[str, str], str]] = [
    (PUBLIC, "https://img.example:8443"),
    ({"X-Forwarded-Host": "img.example"}, "http://img.example"),
    ({"X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "img.example"}, "http://img.example"),
    ({**PUBLIC, "X-Forwarded-Prefix": "/img/"}, "https://img.example:8443/img"),
    ({**PUBLIC, "X-Forwarded-Prefix": "//evil.example"}, "https://img.example:8443"),
    ({"Forwarded": 'for=1.2.3.4;proto=https;host="img.example:8443"'}, "https://img.example:8443"),
    ({"Forwarded": "host=evil.example", **PUBLIC}, "https://img.example:8443"),
    # what a client puts before the word of the one proxy
    ({"X-Forwarded-Host": "evil.example, img.example"}, "http://img.example"),
    ({"Forwarded": "for=1.2.3.4;host=evil.example, for=4.3.2.1;host=img.example"}, "http://img.example"),
    # two proxies, both trusted: the outer one saw the client
    (
        {"X-Forwarded-For": f"1.2.3.4, {HERE}", "X-Forwarded-Host": "img.example, inner:80"},
        "http://img.example",
    ),
    ({"X-Forwarded-For": f"1.2.3.4, {HERE}", "X-Forwarded-Host": "img.example"}, "http://img.example"),
]


async def test_urls_follow_a_trusted_proxy(running: RunningApp) -> None:
    """Scheme, host and prefix of what the outermost trusted proxy saw."""
    hosts = "img.example,evil.example"
    async with running(engine=QuickEngine, trusted_proxies=HERE, allowed_hosts=hosts) as app:
        for headers, base in BASES:
            assert (await url_of(app, headers)).startswith(f"{base}/v1/images/files/"), headers


CLIENTS: list[tuple[dict[str, str], str]] = [
    ({"X-Forwarded-For": "1.2.3.4"}, "1.2.3.4"),
    ({"X-Forwarded-For": "9.9.9.9, 1.2.3.4"}, "1.2.3.4"),
    ({"X-Forwarded-For": "9.9.9.9, 1.2.3.4:5678, 10.1.2.3"}, "1.2.3.4"),
    ({"X-Forwarded-For": "[2001:DB8::1]:99"}, "2001:db8::1"),
    ({"X-Forwarded-For": "1.2.3.4, unknown"}, HERE),
    ({"Forwarded": 'for="[2001:db8::1]:4711";proto=https, for=10.9.9.9'}, "2001:db8::1"),
    ({"Forwarded": "for=_hidden"}, HERE),
    ({}, HERE),
]


async def test_the_log_names_the_client(running: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """The first address from the server outwards that is no trusted proxy's."""
    caplog.set_level("INFO", "gguf_imagegen")
    async with running(engine=QuickEngine, trusted_proxies=f"{HERE},10.0.0.0/8") as app:
        for headers, _ in CLIENTS:
            await url_of(app, headers)
    named = re.findall(r" of (\S+): generation", caplog.text)
    assert named == [address for _, address in CLIENTS]


ORIGINS: list[tuple[str, dict[str, str], str | None, bool]] = [
    ("localhost", PUBLIC, "https://img.example:8443", True),
    ("localhost", PUBLIC, "http://img.example:8443", False),  # a trusted proxy has said the scheme
    ("localhost", PUBLIC, "https://img.example", False),
    ("localhost", PUBLIC, "http://localhost", False),
    ("localhost", {"X-Forwarded-Proto": "https"}, "https://localhost", True),
    ("localhost", {"X-Forwarded-Proto": "https"}, "http://localhost", False),
    ("localhost", {}, "https://localhost", True),
    ("evil.example", {"X-Forwarded-Host": "img.example"}, None, False),  # a rebound page may send that
    ("img.example", {"X-Forwarded-Host": "evil.example"}, None, False),
    ("img.example", {"X-Forwarded-Host": "img.example/x"}, None, False),
    ("img.example", {"X-Forwarded-Host": "img.example"}, None, True),
]


async def test_origins_behind_a_proxy(running: RunningApp) -> None:
    """Every name must be served here, and the page's origin is compared with what the client asked for."""
    async with running(engine=QuickEngine, trusted_proxies=HERE, allowed_hosts="img.example") as app:
        for host, forwarded, origin, taken in ORIGINS:
            headers = {"Host": host, **forwarded, **({"Origin": origin} if origin else {})}
            assert (await url_of(app, headers) != "forbidden") is taken, headers


# -- below a prefix -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/img"])
async def test_below_a_prefix(running: RunningApp, prefix: str) -> None:
    """The same whether the proxy cuts the prefix off or not, with it in every address."""
    async with running(engine=QuickEngine, root_path="/img") as app:
        made = await url_of(app)
        assert made.startswith(f"{app.url}/img/v1/images/files/")
        async with app.session.get(made) as answer:
            assert answer.content_type == "image/png"
        asked = {**SMALL, "width": 64, "height": 64}
        _, submitted = await app.post(f"{prefix}/sdcpp/v1/img_gen", **asked)
        assert submitted["poll_url"] == f"/img/sdcpp/v1/jobs/{submitted['id']}"
        async with app.session.post(
            f"{app.url}{prefix}{GENERATIONS}", json=SMALL, headers={"Prefer": "respond-async"}
        ) as answer:
            assert answer.headers["Location"].startswith(f"{app.url}/img/v1/jobs/")
        _, document = await app.get(f"{prefix}/openapi.json")
        assert document["servers"] == [{"url": f"{app.url}/img"}]
        assert (await app.get(f"{prefix}/imgs/v1/models"))[0] == 404
        async with app.session.get(f"{app.url}{prefix}/v1/images?limit=1&before=1%2Fb") as answer:
            assert (await answer.json())["data"] == []


async def test_the_page_below_a_prefix(running: RunningApp) -> None:
    """Its address ends in a slash, for its own addresses are relative; keys do not shut it out."""
    async with running(engine=QuickEngine, root_path="img", api_key="k") as app:
        async with app.session.get(f"{app.url}/img?a=1", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (308, "/img/")
        for path in ("/img/", "/"):
            async with app.session.get(app.url + path) as answer:
                page = await answer.text()
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        links = re.findall(r'(?:href|src)="([^"#]+)"', page)
        assert len(links) > 10
        assert not [link for link in links if link.startswith("/")]
        async with app.session.get(f"{app.url}/img/web/app.js") as answer:
            assert answer.status == 200
        assert (await app.get("/img/v1/models"))[0] == 401
        assert (await app.get("/img/health"))[0] in (200, 503)


async def test_a_public_url_with_and_without_the_prefix(running: RunningApp) -> None:
    """The prefix is in it once."""
    for public in ("https://x.example", "https://x.example/img/"):
        async with running(engine=QuickEngine, root_path="/img", public_url=public) as app:
            assert (await url_of(app)).startswith("https://x.example/img/v1/images/files/")


@pytest.mark.parametrize("path", ["/a b", "/../x", "/a?b", "http://x/"])
def test_a_wrong_root_path_is_refused(path: str) -> None:
    """Only what can stand in an address as it is."""
    with pytest.raises(ValueError, match="such as /img"):
        Settings(root_path=path)


def test_wrong_proxies_are_refused() -> None:
    """With the word that is none."""
    with pytest.raises(ValueError, match=r"'proxy.lan' does not appear .* such as 10.0.0.0/8"):
        Settings(trusted_proxies="127.0.0.1,proxy.lan")


# -- a real proxy -------------------------------------------------------------------------------------


def nginx_block() -> str:
    """The server block that the documentation shows."""
    page = (Path(__file__).parents[2] / "docs/proxy.md").read_text(encoding="utf-8")
    found = re.search(r"```nginx\n(.*?)```", page, re.S)
    assert found
    return found[1]


@contextlib.contextmanager
def nginx(folder: Path, upstream: str, *, strips: bool) -> Iterator[str]:
    """nginx as the documentation sets it up, without TLS and on a free port; its address."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert program, "please install nginx"
    with socket.create_server((HERE, 0)) as free:
        port = free.getsockname()[1]
    block = re.sub(r"\n *(ssl_\w+|http2) .*", "", nginx_block())
    block = re.sub(r"listen .*;", f"listen {HERE}:{port};", block).replace("img.example", "localhost")
    block = block.replace("http://127.0.0.1:8080", upstream + "/" * strips)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;\n"
        f"events {{}}\nhttp {{ access_log off;\n{places}{block}}}\n"
    )
    process = subprocess.Popen([program, "-p", folder, "-c", config], stderr=subprocess.PIPE)
    try:
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert b"emerg" not in errors, errors


@contextlib.asynccontextmanager
async def behind_nginx(running: RunningApp, folder: Path, **settings: Any) -> AsyncIterator[tuple[App, str]]:
    """A server with nginx before it, and the address below which it is to be had."""
    strips = not settings.get("root_path")
    async with running(engine=QuickEngine, trusted_proxies=HERE, **settings) as app:
        with nginx(folder, app.url, strips=strips) as address:

            async def answers() -> bool:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with app.session.get(f"{address}/img/livez") as answer:
                        return answer.status == 200
                return False

            await eventually("nginx answers", answers)
            yield app, f"{address}/img"


@pytest.mark.parametrize("root_path", ["/img", ""])
async def test_behind_nginx(
    running: RunningApp, tmp_path: Path, caplog: pytest.LogCaptureFixture, root_path: str
) -> None:
    """As documented, with the prefix left on or cut off: picture, address, stream, page, origin, client."""
    caplog.set_level("INFO", "gguf_imagegen")
    async with behind_nginx(running, tmp_path, root_path=root_path) as (app, base):
        origin = base.removesuffix("/img")
        async with app.session.post(base + GENERATIONS, json=SMALL, headers={"Origin": origin}) as answer:
            (item,) = (await answer.json())["data"]
        assert item["url"].startswith(f"{base}/v1/images/files/")
        async with app.session.get(item["url"]) as answer:
            assert answer.content_type == "image/png"
        streamed = {**SMALL, "stream": True}
        async with app.session.post(base + GENERATIONS, json=streamed) as answer:
            assert (await answer.text()).endswith("data: [DONE]\n\n")
        async with app.session.get(base) as answer:
            assert str(answer.url) == f"{base}/"
        async with app.session.post(
            base + GENERATIONS, json=SMALL, headers={"Origin": "http://evil"}
        ) as answer:
            assert answer.status == 403
        spoofed = {"X-Forwarded-Host": "evil.example", "X-Forwarded-For": "9.9.9.9", "Forwarded": "host=evil"}
        async with app.session.post(base + GENERATIONS, json=SMALL, headers=spoofed) as answer:
            (item,) = (await answer.json())["data"]
        assert item["url"].startswith(f"{base}/v1/images/files/")
    assert "9.9.9.9" not in caplog.text
