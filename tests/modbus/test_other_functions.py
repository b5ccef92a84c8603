"""File records, queues and the server id: each PDU byte by byte, in each framing, in plans and in writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.errors import BadResponseError, DeviceExceptionError
from fieldbus.modbus import other_functions, pdu
from fieldbus.modbus.blocks import BlockReader
from fieldbus.modbus.framing import AsciiFramer, Ask, MbapFramer, RtuFramer
from fieldbus.modbus.planner import Limits, plan
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.points import build_points, point_faults
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.register_types import Table
from fieldbus.modbus.writing import requests
from fieldbus.model import Group
from fieldbus.simulate.modbus_records import Records


def built(*, is_served=False, **points):
    told: list[str] = []
    made = build_points("d", {name: PointSettings(**item) for name, item in points.items()},
                        is_served=is_served, fault=lambda *text: told.append(str(text)))  # fmt: skip
    assert told == []
    return made


def values(points, payloads):
    """Return values by name, read by the plan's blocks out of what each responds."""
    found = {}
    for block in plan(points, 1, 1.0, Limits()):
        reader = BlockReader(block, Group("g", [item.point for item in block.points]))
        request = pdu.read_request(block.table, block.address, block.count)
        batch = reader.read(pdu.check_read_reply(request, bytes.fromhex(payloads[request.hex()])), 0, 0.0)
        for index, item in enumerate(block.points):
            flaw = batch.flaws.get(index)
            found[item.point.name] = batch.values[index] if flaw is None else flaw.reason
    return found


# --- byte by byte


@pytest.mark.parametrize(
    ("table", "address", "count", "wire"),
    [
        (Table.FILE, Table.FILE.linear(1, 4), 8, "14 07 06 0004 0001 0008"),
        (Table.FILE, Table.FILE.linear(9999, 65535), 1, "14 07 06 ffff 270f 0001"),
        (Table.FILE, Table.FILE.linear(0, 1), 121, "14 07 06 0001 0000 0079"),
        (Table.FIFO, Table.FIFO.linear(0, 0x04DE), 32, "18 04de"),
        (Table.SERVER_ID, 0, 126, "11"),
    ],
)
def test_a_request_byte_by_byte(table, address, count, wire):
    request = bytes.fromhex(wire)
    assert pdu.read_request(table, address, count) == request
    assert pdu.read_place(request) == (table, address, count)


@pytest.mark.parametrize(("address", "count"), [(0, 1), (0x10000, 122), (0x10000, 0), (0x1FFFF, 2)])
def test_a_request_that_no_file_has_is_not_built(address, count):
    with pytest.raises(ValueError, match="cannot read"):
        pdu.read_request(Table.FILE, address, count)


def test_a_write_to_a_file_byte_by_byte():
    [place] = built(x={"table": "file", "file": 4, "record": 7, "type": "uint48", "access": "readwrite"})
    [request] = requests(place, place.address, bytes.fromhex("06af04be100d"), UnitQuirks(single_writes=True))
    assert request == bytes.fromhex("15 0d 06 0004 0007 0003 06af 04be 100d")
    pdu.check_write_reply(request, request)
    with pytest.raises(BadResponseError):
        pdu.check_write_reply(request, request[:-1] + b"\0")
    assert Ask(1, request).is_mirrored
    for data in (b"", bytes(246)):
        with pytest.raises(ValueError, match="cannot write"):
            other_functions.write_request(place.address, data)


@pytest.mark.parametrize(
    ("request_hex", "response", "data"),
    [
        ("14 07 06 0004 0001 0002", "14 06 05 06 0dfe 0020", "0dfe0020"),
        ("18 04de", "18 0006 0002 01b8 1284", "0002 01b8 1284" + 29 * "0000"),
        ("18 04de", "18 0002 0000", "0000" + 31 * "0000"),
        ("11", "11 05 41 42 43 44 ff", "0003 41424344 ff00" + 122 * "0000"),
    ],
)
def test_a_response_byte_by_byte(request_hex, response, data):
    found = pdu.check_read_reply(bytes.fromhex(request_hex), bytes.fromhex(response))
    assert found == bytes.fromhex(data)


@pytest.mark.parametrize(
    ("request_hex", "response"),
    [
        ("14 07 06 0004 0001 0002", "14 06 05 07 0dfe 0020"),
        ("14 07 06 0004 0001 0002", "14 06 05 06 0dfe"),
        ("14 07 06 0004 0001 0002", "14 06 05 06 0dfe 0020 00"),
        ("14 07 06 0004 0001 0002", "14 04 03 06 0dfe"),
        ("18 04de", "18 0006 0003 01b8 1284"),
        ("18 04de", "18 0008 0002 01b8 1284"),
        ("18 04de", "18 0006 0002 01b8 1284 00"),
        ("18 04de", "18 0042 0020" + 32 * "0001"),
        ("18 04de", "18 00"),
        ("11", "11 05 41"),
        ("11", "11"),
        ("11", "11 00"),
    ],
)
def test_a_response_that_is_none_is_refused(request_hex, response):
    with pytest.raises(BadResponseError):
        pdu.check_read_reply(bytes.fromhex(request_hex), bytes.fromhex(response))


@pytest.mark.parametrize("request_hex", ["14 07 06 0004 0001 0002", "18 04de", "11"])
def test_an_exception_is_the_answer_of_the_device(request_hex):
    request = bytes.fromhex(request_hex)
    with pytest.raises(DeviceExceptionError, match="illegal data address"):
        pdu.check_read_reply(request, bytes((request[0] | 0x80, 2)))


@given(st.sampled_from(["14 07 06 0004 0001 0002", "18 04de", "11"]), st.binary(max_size=255))
def test_no_bytes_whatever_make_a_response_raise_anything_else(request_hex, response):
    request = bytes.fromhex(request_hex)
    try:
        data = pdu.check_read_reply(request, response)
    except (BadResponseError, DeviceExceptionError):
        return
    assert Ask(1, request).is_answer(response)
    assert len(data) in (4, 64, 252)


# --- in each framing


RESPONSES = [
    ("14 07 06 0004 0001 0002", "14 06 05 06 0dfe 0020"),
    ("18 04de", "18 0002 0000"),
    ("18 04de", "18 0006 0002 01b8 1284"),
    ("18 04de", "18 0040 001f" + 31 * "1234"),
    ("11", "11 02 2a ff"),
    ("11", "11 fb" + 251 * "41"),
    ("11", "91 01"),
]


@pytest.mark.parametrize("framing", [MbapFramer, RtuFramer, AsciiFramer])
@pytest.mark.parametrize(("request_hex", "response_hex"), RESPONSES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 600])
def test_a_response_of_its_own_length_is_cut_in_every_framing(framing, request_hex, response_hex, size):
    request, response = bytes.fromhex(request_hex), bytes.fromhex(response_hex)
    framer = framing()
    sent = framer.wrap(Ask(9, request))
    if framing is MbapFramer:
        frame = sent[:4] + (len(response) + 1).to_bytes(2, "big") + b"\x09" + response
    else:
        # The framer of the other side: a frame is the same in both directions.
        mirror = framing()
        mirror_ask = Ask(9, request)
        object.__setattr__(mirror_ask, "pdu", response)
        frame = mirror._frame(mirror_ask)
    pieces = [framer.feed(frame[place : place + size]) for place in range(0, len(frame), size)]
    assert pieces[-1] == response
    assert not any(pieces[:-1])


@pytest.mark.parametrize("framing", [RtuFramer, AsciiFramer])
def test_a_length_that_lies_makes_no_answer(framing):
    framer, mirror = framing(), framing()
    ask, lie = Ask(9, bytes.fromhex("18 04de")), Ask(9, bytes.fromhex("18 04de"))
    framer.wrap(ask)
    object.__setattr__(lie, "pdu", bytes.fromhex("18 0006 0001 1234"))
    assert framer.feed(mirror._frame(lie)) is None


# --- in plans


def test_records_beside_each_other_share_a_request():
    made = built(
        profile={"table": "file", "file": 4, "record": 1, "count": 8},
        total={"table": "file", "file": 4, "record": 9, "type": "uint32"},
        far={"table": "file", "file": 4, "record": 12},
        other={"table": "file", "file": 5, "record": 1},
        long={"table": "file", "file": 6, "record": 0, "count": 200},
    )
    blocks = plan(made, 1, 1.0, Limits())
    assert [(block.name, block.count) for block in blocks] == [
        ("file 4 record 1..10", 10),
        ("file 4 record 12..12", 1),
        ("file 5 record 1..1", 1),
        ("file 6 record 0..120", 121),
        ("file 6 record 121..199", 79),
    ]


def test_a_file_is_read_as_registers_are():
    made = built(
        profile={"table": "file", "file": 4, "record": 1, "count": 2, "scale": 0.1},
        total={"table": "file", "file": 4, "record": 3, "type": "int32", "order": "CDAB"},
    )
    assert values(made, {"14070600040001" + "0004": "14 0a 09 06 0064 0065 fffe ffff"}) == {
        "profile.0": 10.0, "profile.1": 10.1, "total": -2
    }  # fmt: skip


def test_a_queue_has_as_many_values_as_entries():
    made = built(queue={"table": "fifo", "address": 1246, "count": 3, "type": "int16"})
    assert [item.point.name for item in made] == ["queue.queued", "queue.0", "queue.1", "queue.2"]
    request = "1804de"
    assert values(made, {request: "18 0006 0002 fffe 0007"}) == {
        "queue.queued": 2, "queue.0": -2, "queue.1": 7, "queue.2": "not available"
    }  # fmt: skip
    assert values(made, {request: "18 0002 0000"})["queue.0"] == "not available"
    assert len(built(all={"table": "fifo", "address": 0})) == 32


def test_a_queue_that_only_grew_changes_its_new_entries():
    made = built(queue={"table": "fifo", "address": 1, "count": 3})
    [block] = plan(made, 1, 1.0, Limits())
    reader = BlockReader(block, Group("g", [item.point for item in block.points]))
    request = pdu.read_request(block.table, block.address, block.count)

    def changed(response):
        batch = reader.read(pdu.check_read_reply(request, bytes.fromhex(response)), 0, 0.0)
        return [block.points[index].point.name for index in sorted(batch.changed)]

    changed("18 0004 0001 0000")
    assert changed("18 0006 0002 0000 0000") == ["queue.queued", "queue.1"]
    assert changed("18 0004 0001 0000") == ["queue.queued", "queue.1"]


def test_a_server_id_is_text_and_bytes():
    made = built(
        name={"table": "server_id", "type": "string", "length": 4},
        run={"table": "server_id", "address": 2, "bits": "0-7"},
        more={"table": "server_id", "address": 3},
        wide={"table": "server_id", "address": 2, "type": "uint32"},
    )
    assert values(made, {"11": "11 06 50 31 32 00 00 ff"}) == {
        "name": "P12", "run": 255, "more": "not available", "wide": "not available"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"table": "file", "file": 4}, "`record` is missing"),
        ({"table": "file", "record": 4}, "`file` is missing"),
        ({"table": "file", "file": 4, "record": 1, "address": 1}, "and no `address`"),
        ({"table": "file", "file": 0, "record": 1}, "greater than or equal to 1"),
        (
            {"table": "file", "file": 4, "record": 65535, "type": "uint32"},
            "file 4 record 65535 and what follows goes beyond record",
        ),
        ({"table": "holding", "address": 4, "file": 1}, "are for `table: file`"),
        ({"reference": 40001, "file": 1}, "`file` and `record` need"),
        ({"table": "fifo"}, "`address` is missing"),
        ({"table": "fifo", "address": 1, "access": "readwrite"}, "`fifo` cannot be written"),
        ({"table": "fifo", "address": 1, "type": "uint32"}, "one register"),
        ({"table": "fifo", "address": 1, "count": 32}, "at most 31 entries"),
        ({"table": "server_id", "access": "write"}, "`server_id` cannot be written"),
        ({"table": "server_id", "address": 124, "type": "uint32"}, "at most 125 registers"),
        ({"table": "file", "file": 4, "record": 1, "type": "string", "length": 122}, "at most 121 of a file"),
        ({"table": "file", "parts": [{"file": 1, "record": 0}, {"file": 1, "record": 121}]}, "at most 121"),
        ({"table": "file", "parts": [{"file": 1, "record": 0}, {"file": 2, "record": 0}]}, "at most 121"),
        ({"table": "file", "file": 4, "record": 1, "on_bad": "hold"}, "cannot be served"),
        (
            {"table": "file", "file": 4, "record": 1, "access": "readwrite", "read_from": 2},
            "shows what was written",
        ),
        (
            {"table": "file", "file": 4, "record": 1, "access": "readwrite", "function": 16},
            "not for the table `file`",
        ),
    ],
)
def test_a_point_that_no_function_reads_is_refused(more, words):
    with pytest.raises(ValueError, match=words):
        PointSettings(**more)


@pytest.mark.parametrize(
    "more",
    [{"table": "file", "file": 4, "record": 1}, {"table": "fifo", "address": 1}, {"table": "server_id"}],
)
def test_what_functions_of_their_own_read_is_not_served(more):
    found = point_faults(built(is_served=True, x=more), is_served=True)
    assert found
    assert all("cannot be served" in fault.message for fault in found)


# --- simulated


def test_simulated_records_answer_what_is_there():
    records = Records(built(
        profile={"table": "file", "file": 4, "record": 1, "count": 2},
        queue={"table": "fifo", "address": 9, "count": 2},
    ))  # fmt: skip
    records.put(Table.FILE.linear(1, 4), b"\0\1\0\2")
    for request, response in (
        ("14 07 06 0004 0001 0002", "14 06 05 06 0001 0002"),
        ("14 07 06 0004 0002 0002", "94 02"),
        ("14 07 06 0005 0001 0001", "94 02"),
        ("14 06 06 0004 0001 0001", "94 03"),
        ("15 09 06 0004 0002 0001 0007", "15 09 06 0004 0002 0001 0007"),
        ("14 07 06 0004 0001 0002", "14 06 05 06 0001 0007"),
        ("18 0009", "18 0006 0002 0000 0001"),
        ("18 0008", "98 02"),
    ):
        assert records.answer(bytes.fromhex(request)) == bytes.fromhex(response)
    assert records.answer(b"\x03\0\0\0\1") is None
    assert other_functions.is_whole(records.answer(b"\x11"))
