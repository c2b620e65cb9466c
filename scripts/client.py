#!/usr/bin/env python3
"""Ask an image server for pictures and save them; the Python standard library is all it needs.

    scripts/client.py --prompt "a lighthouse at dusk" --output sea.png --stream
    scripts/client.py --prompt "a cat" --n 3 --output cat.png         # cat_0.png, cat_1.png, cat_2.png
    scripts/client.py --prompt "in winter" --image house.png --strength 0.6 --output winter.png

With --stream every denoising step is shown as it happens. A key, if the server wants one, is taken from
--key or the environment (GGUF_IMAGEGEN_API_KEY). Ends with 1 and one line that says why if it fails.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIELDS = (
    "model", "prompt", "negative_prompt", "n", "size", "steps", "seed", "sampler", "schedule", "cfg_scale",
    "guidance", "strength", "quality",
)  # fmt: skip
"""Arguments that are fields of the request under the same name; not sent unless given."""
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


class ClientError(Exception):
    """What the user is told in one line."""


def main() -> int:
    args = parser().parse_args()
    try:
        return run(args)
    except ClientError as exc:
        print(f"client.py: {exc}", file=sys.stderr)
    except KeyboardInterrupt:
        print("client.py: interrupted; the server cancels the job", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="Ask an image server for pictures and save them.",
        argument_default=argparse.SUPPRESS,
    )
    add = made.add_argument
    add("--url", default="http://127.0.0.1:8080", help="address of the server (http://127.0.0.1:8080)")
    add("--key", default=os.environ.get("GGUF_IMAGEGEN_API_KEY"), help="key of the server, if it wants one")
    add("--model", help="model id; the server's default otherwise")
    add("--prompt", required=True, help="what to show")
    add("--negative-prompt", help="what not to show")
    add(
        "--output",
        type=Path,
        default=Path("output.png"),
        help="file to write: .png, .jpg or .webp (output.png)",
    )
    add("--n", type=int, help="number of pictures; with more than one, NAME_0.png, NAME_1.png ...")
    add("--size", help="WIDTHxHEIGHT in pixels")
    add("--steps", type=int, help="denoising steps")
    add("--seed", type=int, help="repeats a picture; random otherwise")
    add("--sampler", help="euler, dpm++2m ...")
    add("--schedule", help="discrete, karras ...")
    add("--cfg-scale", type=float, help="how closely to follow the prompt")
    add("--guidance", type=float, help="the same, for models with distilled guidance")
    add("--quality", help="low, medium or high, in the place of --steps")
    add("--image", type=Path, help="a picture to edit")
    add("--mask", type=Path, help="where to edit it: white or transparent")
    add("--strength", type=float, help="how far an edit may go from its picture, 0 to 1")
    add("--stream", action="store_true", default=False, help="show the progress of every step")
    return made


def run(args: argparse.Namespace) -> int:
    path, body = request_body(args)
    with send(args, path, body) as answer:
        streamed = "text/event-stream" in answer.headers.get("Content-Type", "")
        for item in follow(answer) if streamed else whole(answer):
            name = numbered(args.output, item["index"], body.get("n", 1))
            write(name, base64.b64decode(item["b64_json"]))
            print(f"{name}  seed {item['seed']}", flush=True)
    return 0


def request_body(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The route below the base address, and the JSON to post to it."""
    given = vars(args)
    body = {name: given[name] for name in FIELDS if name in given}
    body |= {"response_format": "b64_json", "stream": args.stream}
    suffix = args.output.suffix.lower()
    if suffix not in FORMATS:
        raise ClientError(f"--output: {args.output.name} must end in {', '.join(FORMATS)}")
    body["output_format"] = FORMATS[suffix]
    body |= {name: data_url(given[name]) for name in ("image", "mask") if name in given}
    return ("images/edits" if "image" in body else "images/generations"), body


def data_url(path: Path) -> str:
    try:
        return f"data:;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    except OSError as exc:
        raise ClientError(f"{path}: cannot be read: {exc.strerror}") from None


def send(args: argparse.Namespace, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
    """The server's answer, once its head is there."""
    base = args.url.rstrip("/").removesuffix("/v1")
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {args.key}"} if args.key else {}
    )
    try:
        request = urllib.request.Request(f"{base}/v1/{path}", json.dumps(body).encode(), headers)
        answer: http.client.HTTPResponse = urllib.request.urlopen(request)
    except urllib.error.HTTPError as exc:
        raise ClientError(refusal(exc)) from None
    except (OSError, ValueError) as exc:
        raise ClientError(f"{base} cannot be reached: {getattr(exc, 'reason', exc)}") from None
    return answer


def refusal(error: urllib.error.HTTPError) -> str:
    """The server's own words, which say what to do."""
    with error:
        text = error.read().decode("utf-8", "replace")
    try:
        body = json.loads(text)
        return f"{body.get('detail') or body['error']['message']} ({error.code})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"the server answered {error.code} {error.reason}"


def whole(answer: http.client.HTTPResponse) -> list[dict[str, Any]]:
    """The pictures of an answer that came when all was done."""
    try:
        pictures: list[dict[str, Any]] = json.load(answer)["data"]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as exc:
        raise ClientError(f"the answer is not that of an image server: {exc!r}") from None
    return pictures


def follow(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Show the steps of a stream; gives each picture as it is done."""
    try:
        for line in answer:
            text = line.decode("utf-8").strip()
            if text == "data: [DONE]":
                return
            if not text.startswith("data:"):
                continue  # comments keep the connection open
            event = json.loads(text.removeprefix("data:"))
            if event.get("error"):
                raise ClientError(event["error"]["message"])
            for item in event["data"]:
                show(item)
                if item.get("finish_reason"):
                    yield item
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise ClientError(f"the stream broke off: {exc}") from None
    raise ClientError("the stream ended before the pictures were done")


def show(item: dict[str, Any]) -> None:
    """One line of progress: over the last one on a terminal, a line each in a file."""
    steps = f"step {item['progressed_steps']}/{item['progress_steps']}"
    words = f"picture {item['index']}: {steps}, {item['progress']:.0f} %, {item['phase']}"
    live = sys.stderr.isatty() and not item.get("finish_reason")
    print(
        f"\r\x1b[K{words}" if sys.stderr.isatty() else words,
        end="" if live else "\n",
        file=sys.stderr,
        flush=True,
    )


def numbered(path: Path, index: int, count: int) -> Path:
    """name.png for one picture, name_0.png and so on for more."""
    return path if count == 1 else path.with_name(f"{path.stem}_{index}{path.suffix}")


def write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as exc:
        raise ClientError(f"{path}: cannot be written: {exc.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
