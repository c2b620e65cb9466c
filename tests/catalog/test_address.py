"""Addresses of models on hubs, as people copy them."""

from __future__ import annotations

import pytest

from gguf_imagegen.catalog.address import Address, address_of


@pytest.fixture(autouse=True)
def _mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror:8080/hf/")
    monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf.co/o/r", Address("huggingface", "o/r")),
        ("o/r", Address("huggingface", "o/r")),
        ("o/r:Q4_K_M", Address("huggingface", "o/r", quant="Q4_K_M")),
        ("hf.co/o/r.2-GGUF:Q8_0", Address("huggingface", "o/r.2-GGUF", quant="Q8_0")),
        ("https://huggingface.co/o/r", Address("huggingface", "o/r")),
        ("https://huggingface.co/o/r/tree/main", Address("huggingface", "o/r", "main")),
        ("huggingface.co/o/r/blob/main/a/x.gguf", Address("huggingface", "o/r", "main", "a/x.gguf")),
        (
            "https://hf.co/o/r/resolve/refs/pr/1/a%20b.safetensors?download=true",
            Address("huggingface", "o/r", "refs/pr/1", "a b.safetensors"),
        ),
        ("http://mirror:8080/hf/o/r/resolve/v1/x.sft", Address("huggingface", "o/r", "v1", "x.sft")),
        ("modelscope.cn/models/o/r", Address("modelscope", "o/r")),
        ("https://www.modelscope.cn/models/o/r/files", Address("modelscope", "o/r")),
        (
            "https://modelscope.cn/models/o/r/file/view/master/x.gguf",
            Address("modelscope", "o/r", "master", "x.gguf"),
        ),
    ],
)
def test_what_an_address_means(text: str, address: Address) -> None:
    """Repositories, pages of files and direct addresses, of the hubs and of a mirror."""
    assert address_of(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "sd-turbo", "sd-turbo:Q4_0", "models/x.gguf", "./o/r", "/o/r", "a/b/c", "o/r/../x", "hf.co/o",
        "https://example.com/o/r", "http://169.254.169.254/o/r", "https://hf.co.evil.com/o/r",
        "https://hf.co@evil.com/o/r", "http://mirror:8081/hf/o/r", "hf.co/o/r/blob/main/readme.md",
        "hf.co/o/r/blob/main/../../x.gguf", "file:///etc/passwd", "https://[::1/o/r", "", "x/" * 400,
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    """Ids, files of this machine, and every other host."""
    assert address_of(text) is None


def test_all_spellings_have_one_name() -> None:
    """By which the catalog keeps it; the hubs' names do not meet."""
    spellings = ("o/r", "hf.co/o/r:Q4_0", "https://huggingface.co/o/r/tree/main")
    assert {found.name for text in spellings if (found := address_of(text))} == {"o/r"}
    other = address_of("https://modelscope.cn/models/o/r")
    assert other is not None
    assert other.name == "modelscope.cn/models/o/r"
