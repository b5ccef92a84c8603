"""Which messages a PGN means: the same in the gateway and in `decode`."""

import random

from conftest import eventually
from fake_bus import Running
from test_listening import describe

from fieldbus.canbus.bus import EXTENDED
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.j1939.matching import PgnTable, is_fragment
from fieldbus.canbus.j1939.packets import BAM, packets_for
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.logs.decoding import LogDecoder
from fieldbus.canbus.logs.logged import LoggedFrame


def message(pgn, length, name="M"):
    signals = [Signal(f"B{index}", index * 8, 8) for index in range(length)]
    return Message(name, j1939.identifier(pgn, 254) & ~EXTENDED, True, length, signals, is_j1939=True)


def test_the_message_of_the_address_comes_first():
    table = PgnTable()
    assert not table
    table.add(0xF004, None, "any")
    table.add(0xF004, 3, "three")
    assert table.of(0xF004, 3) == ["three", "any"]
    assert table.of(0xF004, 4) == ["any"]
    assert table.nearest(0xF004, 3) == "three"
    assert table.nearest(0xF005, 3) is None
    other = PgnTable()
    other.add(0xF004, 3, "three")
    assert (other.of(0xF004, 4), other.nearest(0xF004, 4)) == ([], "three")


def test_only_what_a_frame_can_hold_is_a_whole_message():
    assert [is_fragment(message(0xFEE3, length), 8) for length in (8, 9, 1785)] == [False, True, True]
    assert not is_fragment(message(0xFEE3, 14), 14)
    # Lists of faults: one fault is one frame.
    assert not is_fragment(message(j1939.ACTIVE_FAULTS, 14), 8)
    assert not is_fragment(Message("Plain", 1, True, 14, []), 8)


def packets(pgn, source, payload):
    size = len(payload)
    head = bytes([BAM, size & 255, size >> 8, packets_for(size), 255]) + pgn.to_bytes(3, "little")
    yield j1939.identifier(j1939.TRANSPORT_MANAGEMENT, source), head
    for number in range(packets_for(size)):
        part = payload[number * 7 : number * 7 + 7].ljust(7, b"\xff")
        yield j1939.identifier(j1939.TRANSPORT_DATA, source), bytes([number + 1]) + part


async def test_the_gateway_and_decode_find_the_same_values(monkeypatch):
    """Frames by dice: short ones, long ones in packets, fast packets; both find the same, and no others."""
    dice = random.Random(21)
    known = [message(0xFEE3, 14, "Long"), message(0xF004, 8, "Short"), message(0xFEE6, 30, "Longer")]
    # The database may describe the packets themselves.
    known += [
        message(j1939.TRANSPORT_MANAGEMENT, 8, "TP_CM"),
        message(j1939.TRANSPORT_DATA, 8, "TP_DT"),
    ]
    frames, sent = [], []
    for _ in range(200):
        what, source = dice.choice(known[:3]), dice.randint(0, 5)
        pgn = j1939.pgn_of(what.frame_id)
        payload = bytes(dice.randint(0, 0xF0) for _ in range(what.length))
        if dice.random() < 0.3:
            frames.append((j1939.identifier(pgn, source), payload[:8]))
            if what.length <= 8:
                sent.append((what.name, payload))
        else:
            frames += packets(pgn, source, payload) if what.length > 8 else [
                (j1939.identifier(pgn, source), payload)
            ]  # fmt: skip
            sent.append((what.name, payload))
    decoder = LogDecoder(known, is_json=False)
    decoded = []
    for index, (can_id, data) in enumerate(frames):
        line = decoder.line(LoggedFrame(index * 1_000_000, "c", can_id, data))
        words = line.split()
        for item in known[:3]:
            if item.name in words:
                values = [int(word.split("=")[1]) for word in words if word.startswith("B")]
                decoded.append((item.name, bytes(values)))
    assert decoded == sent
    async with Running(monkeypatch, [describe(item, is_j1939=True) for item in known]) as running:
        for can_id, data in frames:
            running.bus.come(can_id, data)
        names = {"Long", "Short", "Longer"}

        def heard():
            found = []
            for batch in running.batches:
                name = batch.group.points[0].name.split(".")[0]
                if name in names and None not in batch.values:
                    found.append((name, bytes(batch.values)))
            return found

        await eventually(lambda: len(heard()) == len(sent))
        assert heard() == sent
        assert [text for text in running.notices if "fast packets" in text and "Long)" in text]
