"""`scripts/try_wine`: what is read of Windows' files."""

from __future__ import annotations

from scripts.wine.__main__ import MATH, exported, imported

EXPORTS = """\
Export Address Table -- Ordinal Base 1
\t[   0] +base[   1]  00101b20 Export RVA

[Ordinal/Name Pointer] Table
\t[   0] PyAIter_Check
\t[1630] _Py_NoneStruct
"""
IMPORTS = """\
\tDLL Name: VCRUNTIME140.dll
\tvma:  Hint/Ord Member-Name Bound-To
\t344712\t   23  memcpy

\tDLL Name: api-ms-win-crt-math-l1-1-0.dll
\tvma:  Hint/Ord Member-Name Bound-To
\t344712\t   23  _dsign
\t3446d8\t  130  cimagf

\tDLL Name: KERNEL32.dll
\tvma:  Hint/Ord Member-Name Bound-To
\t3446d8\t  130  Sleep
"""


def test_names_of_a_dll() -> None:
    """Those it exports, and those that a module takes from one of several."""
    assert exported(EXPORTS) == ["PyAIter_Check", "_Py_NoneStruct"]
    assert imported(IMPORTS, MATH[0]) == {"_dsign", "cimagf"}
    assert imported(IMPORTS, MATH[1]) == set()


def test_the_name_in_its_place_is_as_long() -> None:
    """It is written over the other in NumPy's modules."""
    theirs, ours = MATH
    assert len(theirs) == len(ours)
