"""Files beside the models that requests may name."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gguf_imagegen.api import answers
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.planning.addons import Kind, names_in
from gguf_imagegen.planning.control import listed_control_nets
from gguf_imagegen.planning.embeddings import listed_embeddings
from gguf_imagegen.settings import Settings


@endpoint(answers.Addons)
async def list_addons(request: web.Request) -> web.Response:
    """GET /v1/addons: what requests may name of LoRAs, upscalers, textual inversions, ControlNets."""
    found = await asyncio.to_thread(_found, request.app[SERVICE].settings)
    return reply(answers.Addons, found.model_dump())


def _found(settings: Settings) -> answers.Addons:
    """Reads folders: call it in a thread."""

    def names(kind: Kind) -> list[answers.Addon]:
        folder = {"lora": settings.lora_dir, "upscaler": settings.upscaler_dir}[kind]
        return [answers.Addon(name=name) for name in names_in(folder, kind)]

    return answers.Addons(
        object="addons",
        loras=names("lora"),
        upscalers=names("upscaler"),
        embeddings=[
            answers.EmbeddingAddon(
                name=each.name,
                family=each.family or None,
                vectors=each.vectors or None,
                fault=each.fault or None,
            )
            for each in listed_embeddings(settings.embedding_dir)
        ],
        control_nets=[
            answers.ControlNetAddon(name=each.name, family=each.family or None, fault=each.fault or None)
            for each in listed_control_nets(settings.control_dir)
        ],
    )
