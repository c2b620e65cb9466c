"""Says in a file that a model made the picture: XMP with IPTC's digital source type.

Terms: https://cv.iptc.org/newscodes/digitalsourcetype/; the property is that of the IPTC Photo Metadata
Standard, section "Digital Source Type". XMP's places in files are those of its specification, part 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

SourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
"""Made by a trained model alone; made by one from pictures that were there before."""

PNG_KEYWORD: Final = "XML:com.adobe.xmp"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_TYPES: tuple[SourceType, ...] = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")


def packet(source: SourceType) -> bytes:
    """The XMP of a picture from this source."""
    return _PACKET.format(source).encode()


def carried(info: Mapping[str | tuple[int, int], object]) -> bytes:
    """The packet that an opened file has from here, for a copy of it; empty if it has another one or none."""
    return next((made for made in map(packet, _TYPES) if made == info.get("xmp")), b"")
