"""Have the assembler embed the tokenizers' vocabularies: as 20 MB of numbers they take g++ 40 s and 2.4 GB.

The library has the same bytes either way. Only where the assembler is ELF's; elsewhere they stay as they are.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import Final

FOLDER: Final = "vendor/stable-diffusion.cpp/src/tokenizers/vocab"
ARRAY: Final = re.compile(rb"static const unsigned char (\w+)\[\] = \{([0-9a-fx,\s]*)\};")
EMBEDDED: Final = """\
__asm__(".pushsection .rodata\\n"
        ".global {name}\\n"
        ".hidden {name}\\n"
        "{name}:\\n"
        ".incbin \\"" __FILE__ ".{name}\\"\\n"
        ".popsection\\n");
extern "C" __attribute__((visibility("hidden"))) const unsigned char {name}[{size}];
"""


def embed(tree: Path, system: str = sys.platform) -> None:
    """Write each array of the source beside it, as bytes; one that is written in another way stays."""
    if system == "linux":
        for header in sorted((tree / FOLDER).glob("*.hpp")):
            header.write_bytes(ARRAY.sub(partial(_embedded, header), header.read_bytes()))


def _embedded(header: Path, array: re.Match[bytes]) -> bytes:
    """What declares an array whose bytes are now in a file of their own."""
    name, digits = array[1].decode(), array[2].translate(None, b", \t\r\n")
    pairs = digits.replace(b"0x", b"")
    if not pairs or len(digits) != 2 * len(pairs):  # each number is 0x and two digits
        return array[0]
    data = bytes.fromhex(pairs.decode())
    header.with_name(f"{header.name}.{name}").write_bytes(data)
    return EMBEDDED.format(name=name, size=len(data)).encode()
