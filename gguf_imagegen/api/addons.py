"""Files beside the models that requests may name."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gguf_imagegen.api import answers
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.modelfiles.lora_card import LoraCard, lora_card
from gguf_imagegen.planning.addons import listed_files, names_in
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

    loras = sorted(listed_files(settings.lora_dir, "lora").items())
    return answers.Addons(
        object="addons",
        loras=[_lora(name, lora_card(path)) for name, path in loras],
        upscalers=[answers.Addon(name=name) for name in names_in(settings.upscaler_dir, "upscaler")],
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


def _lora(name: str, card: LoraCard) -> answers.LoraAddon:
    return answers.LoraAddon(name=name, base_model=card.base_model, trigger_words=list(card.trigger_words))
