"""What the engine is told to load: a model's files, and how the settings want it loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.load_options import open_options
from gguf_imagegen.catalog.verdict import weights_of
from gguf_imagegen.modelfiles.embeddings import takes_embeddings
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.modelfiles.inspect import holds_vae
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import LoadSpec, Role


def model_spec(
    entry: Entry, paths: Mapping[Role, Path], headers: Mapping[Role, Header], settings: Settings, threads: int
) -> LoadSpec:
    """As the settings say, or the catalog of this model; a tuning is applied to this."""
    settings, own = entry.engine.over(settings), entry.engine
    return LoadSpec(
        name=entry.id,
        files=paths,
        threads=threads,
        built_in_vae=any(holds_vae(header) for header in headers.values()),
        decoder=entry.decoder,
        zero_cond_t=entry.zero_cond_t,
        seamless=entry.seamless,
        **open_options(entry.family, settings),
        kernels=settings.kernels,
        huge_pages=settings.huge_pages,
        mmap=settings.mmap,
        offload_to_cpu=settings.offload_to_cpu,
        vae_on_cpu=settings.vae_on_cpu,
        text_encoders_on_cpu=settings.text_encoders_on_cpu,
        control_net_on_cpu=settings.control_net_on_cpu,
        max_vram=settings.max_vram,
        rng=settings.rng,
        sampler_rng=settings.sampler_rng,
        prediction=own.prediction,
        force_sdxl_vae_conv_scale=own.force_sdxl_vae_conv_scale or False,
        chroma_use_dit_mask=own.chroma_use_dit_mask,
        chroma_use_t5_mask=own.chroma_use_t5_mask or False,
        chroma_t5_mask_pad=1 if own.chroma_t5_mask_pad is None else own.chroma_t5_mask_pad,
        weights=weights_of(entry, headers, settings),
        embeddings=settings.embedding_dir is not None and takes_embeddings(entry.family),
    )
