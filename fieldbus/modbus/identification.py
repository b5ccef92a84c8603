"""Who we are, as masters ask it: FC 43/14 (read device identification) and FC 8/0 (echo). Pure.

Layout of a request (Modbus Application Protocol V1.1b3 §6.21): ``2B 0E``, read code, object id. Of the
answer: ``2B 0E``, read code, conformity level, more follows (00 or FF), next object id, number of objects,
then each object as id, length, text.

Rules:

* Read codes 1, 2, 3 give a stream of objects: the basic ones (0–2), these and the regular ones (3–6), and
  these and the extended ones, of which we have none. They begin at the object id that is asked for, or at 0
  if there is none of that id. What does not fit a PDU follows when it is asked for.
* Read code 4 gives one object, or exception 02 if there is none of that id.
* An object without a text does not exist, but for the basic ones.
* Another interface than 14 is exception 01, another read code 03.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fieldbus.modbus import pdu

LONGEST_TEXT = 244
"""Of one object: a PDU has 253 bytes, seven are the head and two the object's own."""
_BASIC = range(3)
_STREAMS = (1, 2, 3)
_INDIVIDUAL = 4
_HEAD = 7


@dataclass(frozen=True, slots=True)
class Identification:
    """The texts, in the order of their object ids. ASCII."""

    vendor_name: str = "fieldbus"
    product_code: str = "gateway"
    revision: str = ""
    vendor_url: str = ""
    product_name: str = ""
    model_name: str = ""
    user_application_name: str = ""

    def __post_init__(self) -> None:
        for text in self.texts:
            if len(text) > LONGEST_TEXT or not text.isascii():
                raise ValueError(f"{text[:40]!r} is not an ASCII text of at most {LONGEST_TEXT} characters")

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them, by object id."""
        return (
            self.vendor_name, self.product_code, self.revision, self.vendor_url, self.product_name,
            self.model_name, self.user_application_name,
        )  # fmt: skip

    @property
    def objects(self) -> Mapping[int, bytes]:
        """The objects that there are, by id, in order."""
        return {
            object_id: text.encode()
            for object_id, text in enumerate(self.texts)
            if text or object_id in _BASIC
        }


def identify(request: bytes, identification: Identification) -> bytes:
    """Return the response to a PDU of function 43."""
    if len(request) > 1 and request[1] != pdu.READ_DEVICE_IDENTIFICATION:
        return pdu.exception_response(request[0], pdu.ILLEGAL_FUNCTION)
    if len(request) != 4 or request[2] not in (*_STREAMS, _INDIVIDUAL):
        return pdu.exception_response(request[0], pdu.ILLEGAL_DATA_VALUE)
    read_code, first = request[2], request[3]
    objects = identification.objects
    level = 0x81 if max(objects) in _BASIC else 0x82
    if read_code == _INDIVIDUAL:
        if first not in objects:
            return pdu.exception_response(request[0], pdu.ILLEGAL_DATA_ADDRESS)
        return bytes((*request[:3], level, 0, 0, 1)) + _object(first, objects[first])
    stream = [object_id for object_id in objects if read_code > 1 or object_id in _BASIC]
    if first in stream:
        stream = stream[stream.index(first) :]
    body, count, following = b"", 0, 0
    for object_id in stream:
        item = _object(object_id, objects[object_id])
        if _HEAD + len(body) + len(item) > pdu.MAX_PDU:
            following = object_id
            break
        body += item
        count += 1
    return bytes((*request[:3], level, 0xFF if following else 0, following, count)) + body


def _object(object_id: int, text: bytes) -> bytes:
    return bytes((object_id, len(text))) + text


def diagnose(request: bytes) -> bytes:
    """Return the response to a PDU of function 8: sub-function 0 (return query data) is echoed."""
    if len(request) < 3:
        return pdu.exception_response(request[0], pdu.ILLEGAL_DATA_VALUE)
    if request[1] or request[2]:
        return pdu.exception_response(request[0], pdu.ILLEGAL_FUNCTION)
    if len(request) < 5 or len(request) % 2 == 0:  # whole words of data, and at least one
        return pdu.exception_response(request[0], pdu.ILLEGAL_DATA_VALUE)
    return request
