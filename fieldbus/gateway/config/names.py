"""Names of links, devices and points: what they may have, and the nearest one to a name that is refused."""

from __future__ import annotations

import re
import unicodedata

NAME = re.compile(r"[A-Za-z0-9_-]+")
POINT_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SPELLED = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "æ": "ae", "Æ": "Ae",
     "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "µ": "u", "°": "deg", "%": "percent"}
)  # fmt: skip
_OTHER = re.compile(r"[^A-Za-z0-9_.-]+")


def name_hint(name: object, *, has_dots: bool = False) -> str:
    """Return what a name may have, with the nearest name that may be written instead."""
    allowed = "letters A-Z and a-z, digits, _ and -" + (", parts joined by dots" if has_dots else "")
    plain = unicodedata.normalize("NFKD", str(name)[:60].translate(_SPELLED))
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    plain = _OTHER.sub("_", plain).replace(".", "." if has_dots else "_").strip("_.")
    is_name = (POINT_NAME if has_dots else NAME).fullmatch(plain)
    return f"{allowed}: for example '{plain}'" if is_name else allowed
