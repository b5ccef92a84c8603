"""Frames as a client sees them: the answer whole, in pieces, in noise; and nothing else is ever an answer."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.modbus import other_functions, pdu
from fieldbus.modbus.echo import LineEcho
from fieldbus.modbus.framing import AsciiFramer, Ask, Framer, MbapFramer, RtuFramer
from fieldbus.modbus.registers import Table


def crc(data: bytes) -> bytes:
    """Return the checksum of an RTU frame; written once more, bit by bit."""
    found = 0xFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0xA001 if found & 1 else 0)
    return struct.pack("<H", found)


def rtu(unit_id: int, body: bytes) -> bytes:
    return bytes((unit_id,)) + body + crc(bytes((unit_id,)) + body)


def ascii_(unit_id: int, body: bytes) -> bytes:
    data = bytes((unit_id,)) + body
    return f":{data.hex().upper()}{-sum(data) & 0xFF:02X}\r\n".encode()


def mbap(unit_id: int, body: bytes, transaction_id: int = 1) -> bytes:
    return struct.pack(">HHHB", transaction_id, 0, len(body) + 1, unit_id) + body


def read(table: Table = Table.HOLDING, address: int = 4, count: int = 2, unit_id: int = 17) -> Ask:
    return Ask(unit_id, pdu.read_request(table, address, count))


ANSWERS: dict[str, tuple[Ask, bytes]] = {
    "two registers": (read(), bytes.fromhex("0304deadbeef")),
    "a register": (read(count=1), bytes.fromhex("03020005")),
    "125 registers": (read(count=125), b"\x03\xfa" + bytes(range(250))),
    "inputs": (read(Table.INPUT), bytes.fromhex("040411111703")),
    "bits": (read(Table.COIL, count=12), bytes.fromhex("010255 0a")),
    "2000 bits": (read(Table.DISCRETE, count=2000), b"\x02\xfa" + bytes(250)),
    "a coil that was written": (Ask(17, bytes.fromhex("050011ff00")), bytes.fromhex("050011ff00")),
    "a register that was written": (Ask(17, bytes.fromhex("0600111234")), bytes.fromhex("0600111234")),
    "registers that were written": (
        Ask(17, pdu.write_registers_request(17, bytes(8))), bytes.fromhex("1000110004")),
    "coils that were written": (
        Ask(17, pdu.write_coils_request(17, [True] * 9)), bytes.fromhex("0f00110009")),
    "masked bits": (Ask(17, pdu.mask_write_request(5, 0xFFF0, 3)), bytes.fromhex("160005fff00003")),
    "an exception": (read(), bytes.fromhex("8302")),
    "an exception to a write": (Ask(17, bytes.fromhex("0600111234")), bytes.fromhex("8604")),
}  # fmt: skip

FRAMINGS: dict[str, tuple[Callable[[], Framer], Callable[[int, bytes], bytes]]] = {
    "mbap": (MbapFramer, mbap),
    "rtu": (RtuFramer, rtu),
    "ascii": (AsciiFramer, ascii_),
}


def asked(framing: str, ask: Ask, **quirks: bool) -> Framer:
    """Return a framer that waits for the answer to a request."""
    framer = FRAMINGS[framing][0](**quirks)
    framer.wrap(ask)
    return framer


each_answer = pytest.mark.parametrize("what", ANSWERS)
each_framing = pytest.mark.parametrize("framing", FRAMINGS)


# --- good answers -----------------------------------------------------------------------------------


@each_framing
def test_a_request_is_framed_as_the_specification_says(framing: str) -> None:
    made = FRAMINGS[framing][0]().wrap(read())
    assert made == FRAMINGS[framing][1](17, bytes.fromhex("0300040002"))


@each_framing
@each_answer
def test_an_answer_is_taken_whole(framing: str, what: str) -> None:
    ask, answer = ANSWERS[what]
    framer = asked(framing, ask)
    assert framer.feed(FRAMINGS[framing][1](17, answer)) == answer
    assert framer.is_empty
    assert framer.fault is None


@each_framing
@each_answer
def test_an_answer_is_taken_byte_by_byte(framing: str, what: str) -> None:
    ask, answer = ANSWERS[what]
    framer = asked(framing, ask)
    frame = FRAMINGS[framing][1](17, answer)
    assert [framer.feed(frame[n : n + 1]) for n in range(len(frame))] == [None] * (len(frame) - 1) + [answer]
    assert framer.is_empty


@each_framing
@each_answer
def test_an_answer_is_taken_in_any_two_pieces(framing: str, what: str) -> None:
    ask, answer = ANSWERS[what]
    frame = FRAMINGS[framing][1](17, answer)
    for cut in range(1, len(frame)):
        framer = asked(framing, ask)
        assert framer.feed(frame[:cut]) is None
        assert framer.feed(frame[cut:]) == answer


@each_framing
@each_answer
def test_an_answer_is_taken_once(framing: str, what: str) -> None:
    ask, answer = ANSWERS[what]
    framer = asked(framing, ask)
    frame = FRAMINGS[framing][1](17, answer)
    assert framer.feed(frame) == answer
    assert framer.feed(frame) is None
    framer = asked(framing, ask)
    assert framer.feed(frame + frame) == answer
    assert framer.feed(b"") is None


@each_framing
def test_what_comes_behind_an_answer_is_seen(framing: str) -> None:
    """The line opens a stream anew that goes on talking, and waits for silence on a serial one."""
    framer = asked(framing, read())
    assert framer.feed(FRAMINGS[framing][1](17, bytes.fromhex("0304deadbeef")) + b"\x00\x01") is not None
    assert not framer.is_empty
    framer.clear()
    assert framer.is_empty


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
@each_answer
def test_an_answer_behind_noise_is_not_lost(framing: str, what: str) -> None:
    ask, answer = ANSWERS[what]
    frame = FRAMINGS[framing][1](17, answer)
    good_head = frame[: len(frame) // 2]
    for noise in (
        b"\0", b"\xff" * 7, b"\x11", b"\x11\x03", b"\x11\x83", b"\x11" * 20, b":", b":11", b"\r\n", b"::", good_head,
        FRAMINGS[framing][1](18, answer), FRAMINGS[framing][1](17, b"\x2b\x0e\x01"), frame[:-1] + b"\0",
    ):  # fmt: skip
        framer = asked(framing, ask)
        found = [framer.feed(noise), framer.feed(frame)]
        assert found == [None, answer], noise
        framer = asked(framing, ask)
        assert framer.feed(noise + frame + noise) == answer, noise


@given(noise=st.binary(max_size=600), cut=st.integers(1, 50), what=st.sampled_from(sorted(ANSWERS)))
@pytest.mark.parametrize("framing", ["rtu", "ascii"])
def test_an_answer_behind_any_noise_is_not_lost(framing: str, noise: bytes, cut: int, what: str) -> None:
    ask, answer = ANSWERS[what]
    framer = asked(framing, ask)
    stream = noise + FRAMINGS[framing][1](17, answer)
    found = [framer.feed(stream[n : n + cut]) for n in range(0, len(stream), cut)]
    assert answer in found


# --- what is no answer ------------------------------------------------------------------------------


@each_answer
@pytest.mark.parametrize("has_more_behind", [False, True])
def test_a_frame_of_a_serial_line_with_one_or_two_wrong_bits_is_no_answer(
    what: str, has_more_behind: bool
) -> None:
    ask, answer = ANSWERS[what]
    frame = rtu(17, answer)
    bits = range(len(frame) * 8)
    pairs: Iterator[tuple[int, ...]] = combinations(bits, 2)
    if len(frame) > 20:
        pairs = iter(random.Random(5).sample(list(combinations(bits, 2)), 1500))
    number = int.from_bytes(frame, "big")
    for flipped in (*((bit,) for bit in bits), *pairs):
        wrong = number
        for bit in flipped:
            wrong ^= 1 << bit
        data = wrong.to_bytes(len(frame), "big") + bytes(4 * has_more_behind)
        assert asked("rtu", ask).feed(data) is None, flipped


@each_answer
def test_an_ascii_frame_with_one_wrong_character_is_no_answer(what: str) -> None:
    ask, answer = ANSWERS[what]
    frame = ascii_(17, answer)
    for at in range(len(frame)):
        for other in b"0123456789ABCDEFabcdefG: \r\n\0\xff":
            if chr(frame[at]).upper() == chr(other).upper():
                continue
            wrong = frame[:at] + bytes((other,)) + frame[at + 1 :]
            assert asked("ascii", ask).feed(wrong) is None, wrong


def contains_an_answer(framing: str, ask: Ask, data: bytes) -> set[bytes]:
    """Return all answers to a request that stand anywhere in some bytes; the slow way."""
    found = set()
    sizes = {ask.size, 2}
    for at in range(len(data)):
        for size in sizes:
            length = {"rtu": size + 3, "ascii": 2 * size + 7}[framing]
            piece = data[at : at + length]
            if len(piece) < length:
                continue
            if framing == "rtu":
                body, is_whole = piece[:-2], crc(piece[:-2]) == piece[-2:]
            else:
                try:
                    text = piece.decode("ascii")
                    raw = bytes.fromhex(text[1:-2]) if text[0] == ":" and text[-2:] == "\r\n" else b""
                except ValueError:
                    continue
                body, is_whole = raw[:-1], bool(raw) and not sum(raw) & 0xFF
            if not is_whole or not body or body[0] != ask.unit_id:
                continue
            is_good = size == ask.size and body[1:].startswith(ask.head)
            if is_good or (len(body) == 3 and body[1] == ask.pdu[0] | 0x80):
                found.add(body[1:])
    return found


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
@given(data=st.data())
@settings(max_examples=examples(150), deadline=None)
def test_noise_is_an_answer_only_if_a_true_one_stands_in_it(framing: str, data: st.DataObject) -> None:
    what = data.draw(st.sampled_from(sorted(ANSWERS)))
    ask, answer = ANSWERS[what]
    frame = FRAMINGS[framing][1](17, answer)
    piece = st.one_of(
        st.binary(max_size=12),
        st.sampled_from([frame[:-1], frame[:5], frame[1:], frame[3:], b"\x11", b":", b"\r\n", frame]),
        st.integers(0, len(frame) - 1).map(lambda n: frame[:n] + frame[n + 1 :]),
        st.tuples(st.integers(0, len(frame) - 1), st.integers(0, 255)).map(
            lambda change: frame[: change[0]] + bytes((change[1],)) + frame[change[0] + 1 :]
        ),
    )
    pieces = data.draw(st.lists(piece, max_size=8))
    framer = asked(framing, ask)
    answers = [found for piece in pieces if (found := framer.feed(piece)) is not None]
    true = contains_an_answer(framing, ask, b"".join(pieces))
    assert len(answers) <= 1
    assert set(answers) <= true
    assert bool(answers) == bool(true)


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
@pytest.mark.parametrize(
    ("unit_id", "body"),
    [
        (18, "0304deadbeef"), (0, "0304deadbeef"), (17, "0404deadbeef"), (17, "0302dead"),
        (17, "0306deadbeef0000"), (17, "0303deadbe"), (17, "0304deadbeef00"), (17, "0304deadbe"),
        (17, "0300040002"), (17, "8402"), (17, "0302"), (17, "830200"), (18, "8302"), (17, "83"), (17, ""),
        (17, "0600040002"),
    ],
)  # fmt: skip
def test_whole_frames_of_others_are_passed_over_on_a_line(framing: str, unit_id: int, body: str) -> None:
    """They are late, or another master's."""
    framer = asked(framing, read())
    wrap = FRAMINGS[framing][1]
    assert framer.feed(wrap(unit_id, bytes.fromhex(body))) is None
    assert framer.fault is None
    answer = bytes.fromhex("0304deadbeef")
    assert framer.feed(wrap(17, answer)) == answer


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
def test_what_comes_while_nothing_is_asked_is_forgotten_with_the_next_request(framing: str) -> None:
    framer = FRAMINGS[framing][0]()
    answer = bytes.fromhex("0304deadbeef")
    assert framer.feed(FRAMINGS[framing][1](17, answer)) is None
    framer.wrap(read())
    assert framer.is_empty
    assert framer.feed(b"") is None


def test_of_ascii_frames_capitals_do_not_matter_and_nothing_but_digits_is_one() -> None:
    answer = bytes.fromhex("0304deadbeef")
    frame = ascii_(17, answer)
    assert asked("ascii", read()).feed(frame.lower()) == answer
    for wrong in (frame.replace(b"DE", b"D E"), frame.replace(b":", b":0x"), frame.replace(b"\r\n", b"\n"),
                  frame.replace(b"\r\n", b"\r"), frame[1:], "：".encode() + frame[1:]):  # fmt: skip
        assert asked("ascii", read()).feed(wrong) is None, wrong
    # A frame that a colon cut short is over; the one that the colon begins counts.
    assert asked("ascii", read()).feed(b":110304" + frame) == answer


# --- Modbus TCP -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        ("0001 0001 0007 11 0304deadbeef", "protocol id 1"),
        ("0001 ff00", "protocol id 65280"),
        ("0001 0000 0002 11 03", "length 2"),
        ("0001 0000 0000", "length 0"),
        ("0001 0000 00ff 11", "length 255"),
        ("0001 0000 ffff 11", "length 65535"),
        ("0001 0000 0008 11 0304deadbeef00", "length 8"),
        ("0001 0000 0009 12 8302", "length 9"),
        ("0001 0000 0007 12 0304deadbeef", "unit id 18 for 17"),
        ("0001 0000 0003 12 8302", "unit id 18 for 17"),
        ("0002 0000 0007 11 0304deadbeef", "transaction id 2 for 1"),
        ("0000 0000 0007 11 0304deadbeef", "transaction id 0 for 1"),
    ],
)
def test_a_stream_that_is_wrong_once_is_not_believed_any_more(frame: str, fault: str) -> None:
    for step in (1, 100):
        framer = asked("mbap", read())
        data = bytes.fromhex(frame)
        found = [framer.feed(data[n : n + step]) for n in range(0, len(data), step)]
        assert set(found) == {None}
        assert framer.fault == fault
        assert framer.feed(bytes(3)) is None
        assert framer.is_empty
        assert framer.feed(mbap(17, bytes.fromhex("0304deadbeef"))) is None
        assert framer.feed(mbap(17, bytes.fromhex("0304deadbeef")) + b"\0") is None


@each_answer
@pytest.mark.parametrize("size", [1, 2, 5])
def test_bytes_behind_an_answer_on_a_stream_are_no_part_of_it(what: str, size: int) -> None:
    ask, answer = ANSWERS[what]
    framer = asked("mbap", ask)
    assert framer.feed(mbap(17, answer) + bytes(size)) == answer
    assert not framer.is_empty


def test_a_late_answer_may_have_any_length_of_a_pdu() -> None:
    for body in (b"\x83\x02", b"\x03\xfb" + bytes(251)):
        framer = asked("mbap", read())
        framer.wrap(read())
        assert framer.feed(mbap(17, body, 1)) is None
        assert (framer.late_from, framer.fault, framer.is_empty) == (17, None, True)
    for head, fault in (("0001 0000 0002 11 83", "length 2"), ("0001 0000 00ff", "length 255")):
        framer = asked("mbap", read())
        framer.wrap(read())
        assert framer.feed(bytes.fromhex(head)) is None
        assert (framer.late_from, framer.fault) == (None, fault)


def test_a_frame_inside_a_late_answer_is_data_of_it() -> None:
    framer = asked("mbap", read())
    framer.wrap(read())
    answer = bytes.fromhex("0304deadbeef")
    inside = mbap(17, answer, 2)
    late = mbap(17, b"\x03" + bytes((len(inside),)) + inside, 1)
    assert framer.feed(late[: -len(inside)]) is None
    assert framer.feed(inside) is None
    assert (framer.late_from, framer.fault, framer.is_empty) == (17, None, True)
    assert framer.feed(inside) == answer


# --- exception responses of a wrong length ----------------------------------------------------------

REFUSED = {
    "a read": (read(), bytes.fromhex("8302")),
    "a write of a register": (Ask(17, bytes.fromhex("0600111234")), bytes.fromhex("8604")),
    "a write of registers": (Ask(17, pdu.write_registers_request(17, bytes(8))), bytes.fromhex("9003")),
}


def refusal(answer: bytes, length: int, transaction_id: int = 1, unit_id: int = 17) -> bytes:
    return struct.pack(">HHHB", transaction_id, 0, length, unit_id) + answer


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 9, 16, 17, 255, 65535])
def test_an_exception_response_has_two_bytes_whatever_its_header_says(what: str, length: int) -> None:
    ask, answer = REFUSED[what]
    framer = asked("mbap", ask)
    assert framer.feed(refusal(answer, length)) == answer
    assert (framer.fault, framer.is_empty) == (None, True)
    framer = asked("mbap", ask, takes_any_unit=True)
    assert framer.feed(refusal(answer, length, unit_id=18)) == answer


@pytest.mark.parametrize(
    ("length", "most"), [(0, 0), (2, 0), (3, 0), (4, 1), (9, 6), (15, 12), (16, 13), (17, 0), (255, 0)]
)
@pytest.mark.parametrize("step", [1, 100])
def test_after_an_exception_response_come_at_most_the_bytes_of_its_header(
    length: int, most: int, step: int
) -> None:
    """A header that says more than 16 is wrong, and nothing follows."""
    for size in range(most + 1):
        framer = asked("mbap", read())
        assert framer.feed(refusal(b"\x83\x02", length)) == b"\x83\x02"
        for place in range(0, size, step):
            assert framer.feed(b"\xaa" * min(step, size - place)) is None
        assert (framer.fault, framer.is_empty) == (None, True)
    assert framer.feed(b"\xaa") is None
    assert not framer.is_empty


@pytest.mark.parametrize(
    "rest",
    ["", "00", "000000000000", "aaaa0000aaaa", "01a0aaaaaaaa", "01a00001aaaa"],
    ids=lambda item: item or "none",
)
def test_the_next_answer_is_found_after_the_rest_of_an_exception_response(rest: str) -> None:
    """Six bytes may follow; a header with the id of a request ends them."""
    answer = bytes.fromhex("0304deadbeef")
    stream = bytes.fromhex(rest) + mbap(17, answer, 0x01A1)
    for cut in range(len(stream) + 1):
        framer = MbapFramer()
        for _ in range(0x01A0):
            framer.wrap(read())
        assert framer.feed(refusal(b"\x83\x02", 9, 0x01A0)) == b"\x83\x02"
        framer.wrap(read())
        assert [framer.feed(stream[:cut]), framer.feed(stream[cut:])].count(answer) == 1, cut
        assert (framer.fault, framer.is_empty) == (None, True)
        assert framer.feed(b"\xaa") is None
        assert not framer.is_empty, "the answer ended what may follow the exception response"


def test_a_late_answer_right_after_an_exception_response_is_passed_over() -> None:
    for length in (2, 3):
        framer = asked("mbap", read())
        framer.wrap(read())
        late = mbap(17, bytes.fromhex("0304deadbeef"), 1)
        assert framer.feed(refusal(b"\x83\x02", length, 2) + late) == b"\x83\x02"
        assert (framer.late_from, framer.fault, framer.is_empty) == (17, None, True)


# --- late answers -----------------------------------------------------------------------------------


def test_a_late_answer_is_passed_over_and_told() -> None:
    framer = asked("mbap", read())
    framer.wrap(read(unit_id=18))
    assert framer.feed(mbap(17, bytes.fromhex("0304deadbeef"), 1)) is None
    assert framer.fault is None
    assert framer.late_from == 17
    answer = bytes.fromhex("030400010002")
    assert framer.feed(mbap(18, answer, 2)) == answer


def test_late_answers_and_the_right_one_may_come_in_one_piece() -> None:
    framer = MbapFramer()
    for _ in range(4):
        framer.wrap(read())
    answer = bytes.fromhex("030400010002")
    late = b"".join(mbap(17, bytes.fromhex("0304deadbeef"), n) for n in (1, 3, 2))
    assert framer.feed(late + mbap(17, answer, 4)) == answer
    framer.wrap(read())
    assert framer.feed(mbap(17, answer, 5) + late) == answer


def test_a_late_answer_is_one_to_the_last_64_requests() -> None:
    for ago, fault in ((63, None), (64, "transaction id 36 for 100")):
        framer = MbapFramer()
        for _ in range(100):
            framer.wrap(read())
        assert framer.feed(mbap(17, bytes.fromhex("0304deadbeef"), 100 - ago)) is None
        assert framer.fault == fault


def test_transaction_ids_go_round_and_are_never_0() -> None:
    framer, seen = MbapFramer(), []
    answer = bytes.fromhex("0304deadbeef")
    for _ in range(65_540):
        transaction_id = int.from_bytes(framer.wrap(read())[:2], "big")
        seen.append(transaction_id)
        if transaction_id in (1, 65535):
            assert framer.feed(mbap(17, answer, transaction_id)) == answer
    assert seen == [*range(1, 65_536), 1, 2, 3, 4, 5]


def test_an_answer_with_transaction_0_is_taken_from_a_device_that_has_no_other() -> None:
    framer = asked("mbap", read(), takes_zero=True)
    answer = bytes.fromhex("0304deadbeef")
    assert not framer.has_transactions
    assert framer.feed(mbap(17, answer, 0)) == answer
    assert framer.feed(mbap(17, answer, 0)) is None
    framer.wrap(read())
    assert framer.feed(mbap(17, answer, 2)) == answer
    framer.wrap(read())
    assert framer.feed(mbap(17, answer, 1)) is None
    assert framer.late_from == 17
    assert framer.feed(mbap(17, answer, 0)) == answer
    assert framer.fault is None


@each_framing
def test_an_answer_of_another_unit_is_taken_where_there_is_only_one(framing: str) -> None:
    answer = bytes.fromhex("0304deadbeef")
    for unit_id in (0, 18, 255):
        framer = asked(framing, read(), takes_any_unit=True)
        assert framer.feed(FRAMINGS[framing][1](unit_id, answer)) == answer
        framer = asked(framing, read(), takes_any_unit=True)
        data = FRAMINGS[framing][1](unit_id, answer)
        assert [framer.feed(data[n : n + 1]) for n in range(len(data))][-1] == answer


@given(st.binary(max_size=300), st.integers(1, 20))
@example(bytes(300), 7)
def test_noise_on_a_stream_is_a_fault_or_waits_for_its_rest(noise: bytes, cut: int) -> None:
    assume(noise[:4] != b"\0\x01\0\0")
    framer = asked("mbap", read())
    for n in range(0, len(noise), cut):
        assert framer.feed(noise[n : n + cut]) is None
    assert framer.fault is not None or framer.is_empty or len(noise) < 260


@given(data=st.data())
def test_the_same_stream_gives_the_same_in_whatever_pieces_it_comes(data: st.DataObject) -> None:
    transactions = data.draw(st.lists(st.integers(1, 3), max_size=5))
    unit_id = data.draw(st.sampled_from([17, 17, 17, 18]))
    stream = b"".join(mbap(unit_id, bytes.fromhex("0304deadbeef"), n) for n in transactions)
    stream += data.draw(st.binary(max_size=10))

    def outcome(cuts: list[int]) -> tuple[object, ...]:
        framer = MbapFramer()
        for _ in range(3):
            framer.wrap(read())
        ends = [*sorted(cuts), len(stream)]
        found = [framer.feed(stream[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
        return [item for item in found if item is not None], framer.fault

    assert outcome(data.draw(st.lists(st.integers(0, len(stream)), max_size=8))) == outcome([])


# --- what a line says besides the answer --------------------------------------------------------------

WRITES: dict[str, tuple[Ask, str, str]] = {
    "a coil": (Ask(17, bytes.fromhex("050011ff00")), "050011ff00", "0500110000"),
    "a register": (Ask(17, bytes.fromhex("0600111234")), "0600111234", "0600119999"),
    "coils": (Ask(17, pdu.write_coils_request(17, [True] * 9)), "0f00110009", "0f00110008"),
    "registers": (Ask(17, pdu.write_registers_request(17, bytes(8))), "1000110004", "1000120004"),
    "masked bits": (Ask(17, pdu.mask_write_request(5, 0xFFF0, 3)), "160005fff00003", "160005fff00004"),
    "a file": (
        Ask(17, other_functions.write_request(0x0001_0005, b"\1\2")),
        "1509060001000500010102", "1509060001000500010103"),
}  # fmt: skip
"""Request, good response, and a response that says that something else was written."""

each_line = pytest.mark.parametrize("framing", ["rtu", "ascii"])


@each_line
@pytest.mark.parametrize("what", WRITES)
def test_a_response_that_says_that_something_else_was_written_is_kept(framing: str, what: str) -> None:
    ask, good, wrong = WRITES[what]
    for has_more_behind in (False, True):
        framer = asked(framing, ask)
        frame = FRAMINGS[framing][1](17, bytes.fromhex(wrong))
        for n in range(len(frame)):
            assert framer.odd == b"", n  # type: ignore[attr-defined]
            assert framer.feed(frame[n : n + 1]) is None
        assert framer.odd.hex() == wrong
        if has_more_behind:
            assert framer.feed(frame + b"\0") is None
            assert framer.odd.hex() == wrong
        assert framer.feed(FRAMINGS[framing][1](17, bytes.fromhex(good))) == bytes.fromhex(good)
        framer.wrap(ask)
        assert framer.odd == b""


@each_line
@pytest.mark.parametrize(
    ("ask", "unit_id", "body"),
    [
        (WRITES["a register"][0], 18, "0600119999"), (WRITES["a register"][0], 17, "060011999900"),
        (WRITES["a register"][0], 17, "06001199"), (WRITES["a register"][0], 17, "06"),
        (WRITES["a register"][0], 17, "0500119999"), (WRITES["a register"][0], 17, "1000119999"),
        (WRITES["a register"][0], 17, ""), (WRITES["registers"][0], 17, "0600110004"),
        (read(), 17, "0305deadbeef"), (read(), 17, "0302dead"), (Ask(0, bytes.fromhex("0600111234")), 0, ""),
    ],
)  # fmt: skip
def test_no_other_frame_is_kept_as_a_wrong_response(framing: str, ask: Ask, unit_id: int, body: str) -> None:
    framer = asked(framing, ask)
    assert framer.feed(FRAMINGS[framing][1](unit_id, bytes.fromhex(body))) is None
    assert framer.odd == b""
    assert framer.feed(b"\xf0" * 20) is None
    assert framer.odd == b""


@each_line
def test_a_wrong_response_with_a_wrong_checksum_is_not_kept(framing: str) -> None:
    ask, _, wrong = WRITES["a register"]
    frame = FRAMINGS[framing][1](17, bytes.fromhex(wrong)).replace(b"\x99\x99", b"\x99\x98")
    framer = asked(framing, ask)
    assert framer.feed(frame.replace(b"9999", b"9998")) is None
    assert framer.odd == b""


@each_line
@each_answer
def test_what_is_no_part_of_an_answer_is_kept_for_others(framing: str, what: str) -> None:
    ask, answer = ANSWERS[what]
    framer = asked(framing, ask)
    frame = FRAMINGS[framing][1](17, answer)
    assert framer.others == b""
    assert framer.feed(b"\xf0\xf1\xf2") is None
    assert framer.others == b"\xf0\xf1\xf2"
    assert not framer.has_heard_itself
    assert framer.feed(b"\xf3" + frame + b"\xf4\xf5") == answer
    assert framer.others == b"\xf0\xf1\xf2\xf3\xf4\xf5"
    framer.wrap(ask)
    assert framer.others == b""


@each_line
def test_of_what_is_for_others_the_newest_1024_bytes_are_kept(framing: str) -> None:
    ask, answer = ANSWERS["two registers"]
    noise = bytes(0xF0 | n % 13 for n in range(3000))
    for step in (3000, 700, 1):
        framer = asked(framing, ask)
        for n in range(0, len(noise), step):
            assert framer.feed(noise[n : n + step]) is None
        assert framer.others == noise[-1024:]
        assert framer.feed(noise[:5] + FRAMINGS[framing][1](17, answer)) == answer
        assert framer.others == (noise + noise[:5])[-1024:]
    framer = asked(framing, ask)
    assert framer.feed(noise + FRAMINGS[framing][1](17, answer)) == answer
    assert framer.others == noise[-1024:]
    unasked = FRAMINGS[framing][0]()
    assert unasked.feed(noise) is None
    assert unasked.others == noise[-1024:]
    promised = FRAMINGS[framing][0](echo=LineEcho(said=True))
    promised.wrap(ask)
    assert promised.feed(noise) is None
    assert promised.others == noise[-1024:]


@each_line
@pytest.mark.parametrize("what", ["a coil that was written", "a register that was written", "masked bits"])
def test_what_is_before_and_after_a_copy_that_is_held_back_is_for_others(framing: str, what: str) -> None:
    _, framer, _ = line(framing)
    ask, answer = ANSWERS[what]
    frame = FRAMINGS[framing][1](17, answer)
    framer.wrap(ask)
    assert framer.feed(b"\xf0\xf1" + frame) is None
    assert framer.others == b"\xf0\xf1"
    assert framer.has_heard_itself
    assert framer.feed(frame[:2]) is None
    assert not framer.has_heard_itself, "the response has begun"
    assert framer.feed(frame[2:]) == answer
    assert framer.others == b"\xf0\xf1"


@each_framing
def test_a_new_framer_has_heard_nothing(framing: str) -> None:
    framer = FRAMINGS[framing][0]()
    assert not framer.has_heard_itself
    assert not framer.holds_back
    assert framer.is_empty
    assert (framer.others, framer.odd) == (b"", b"")


@each_line
@pytest.mark.parametrize("request_", ["058011ff00", "0680111234", "16ffff00f20025"])
def test_at_any_address_a_copy_is_held_back_and_a_refusal_is_not(framing: str, request_: str) -> None:
    copy = bytes.fromhex(request_)
    echo, framer, _ = line(framing)
    framer.wrap(Ask(17, copy))
    assert framer.feed(FRAMINGS[framing][1](17, copy)) is None
    assert framer.holds_back
    for code in (3, 0x83):  # no device says the second one, but it is not the request either
        echo, framer, _ = line(framing)
        framer.wrap(Ask(17, copy))
        refusal = bytes((copy[0] | 0x80, code))
        assert framer.feed(FRAMINGS[framing][1](17, refusal)) == refusal
        assert echo.is_heard is False


@each_line
def test_after_an_echo_nothing_has_come_but_itself(framing: str) -> None:
    _, framer, _ = line(framing)
    ask, answer = ANSWERS["two registers"]
    sent = framer.wrap(ask)
    assert not framer.has_heard_itself
    assert framer.feed(b"\xf0" + sent) is None
    assert framer.has_heard_itself
    assert framer.others == b""
    frame = FRAMINGS[framing][1](17, answer)
    assert framer.feed(frame[:4]) is None
    assert not framer.has_heard_itself
    assert framer.feed(frame[4:]) == answer


def test_an_ascii_frame_without_an_end_is_kept_up_to_1024_characters() -> None:
    framer = asked("ascii", read())
    assert framer.feed(b"\xf0" * 600 + b":" + b"0" * 1023) is None
    assert not framer.is_empty
    assert framer.feed(b"0") is None
    assert framer.is_empty


def test_an_ascii_frame_behind_noise_is_found_when_its_end_comes() -> None:
    ask, answer = ANSWERS["125 registers"]
    frame = ascii_(17, answer)
    for cut in range(1, len(frame)):
        framer = asked("ascii", ask)
        assert framer.feed(b"\xf0" * 600 + frame[:cut]) is None
        assert framer.feed(frame[cut:]) == answer, cut


def test_a_response_of_its_own_length_has_the_function_that_was_asked() -> None:
    fifo, server = bytes.fromhex("18000400011234"), bytes.fromhex("110301ff07")
    asks = {"18": Ask(17, bytes.fromhex("180010")), "11": Ask(17, bytes.fromhex("11"))}
    for framing in ("rtu", "ascii"):
        assert asked(framing, asks["18"]).feed(FRAMINGS[framing][1](17, server)) is None
        assert asked(framing, asks["11"]).feed(FRAMINGS[framing][1](17, fifo)) is None
        assert asked(framing, asks["18"]).feed(FRAMINGS[framing][1](17, fifo)) == fifo
        assert asked(framing, asks["11"]).feed(FRAMINGS[framing][1](17, server)) == server


# --- echo -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
@each_answer
def test_what_an_adapter_hears_of_itself_is_passed_over(framing: str, what: str) -> None:
    """The answer to a write looks as its request does."""
    ask, answer = ANSWERS[what]
    framer = FRAMINGS[framing][0](echo=LineEcho(said=True))
    sent = framer.wrap(ask)
    frame = FRAMINGS[framing][1](17, answer)
    assert framer.feed(sent) is None
    assert framer.feed(frame) == answer
    for step in (1, 3, 1000):
        sent = framer.wrap(ask)
        stream = sent + frame
        found = [framer.feed(stream[n : n + step]) for n in range(0, len(stream), step)]
        assert [item for item in found if item is not None] == [answer]


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
def test_without_the_echo_that_was_promised_there_is_no_answer(framing: str) -> None:
    ask, answer = ANSWERS["a register that was written"]
    framer = FRAMINGS[framing][0](echo=LineEcho(said=True))
    framer.wrap(ask)
    assert framer.feed(FRAMINGS[framing][1](17, answer)) is None, "it was the echo"
    framer.wrap(read())
    assert framer.feed(FRAMINGS[framing][1](17, bytes.fromhex("0304deadbeef"))) is None


def line(framing: str, said: bool | None = None) -> tuple[LineEcho, RtuFramer | AsciiFramer, list[str]]:
    """Return a framer of a line of which the configuration says this about echoes."""
    found: list[str] = []
    echo = LineEcho(said, lambda: found.append("found"))
    return echo, (RtuFramer if framing == "rtu" else AsciiFramer)(echo=echo), found


MIRRORED = ["a coil that was written", "a register that was written", "masked bits"]


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("framing", ["rtu", "ascii"])
@each_answer
def test_an_echo_is_found_out_by_itself_and_passed_over(framing: str, what: str, step: int) -> None:
    echo, framer, found = line(framing)
    ask, answer = ANSWERS["two registers"]
    stream = framer.wrap(ask) + FRAMINGS[framing][1](17, answer)
    answers = [framer.feed(stream[n : n + step]) for n in range(0, len(stream), step)]
    assert [item for item in answers if item is not None] == [answer]
    assert (echo.is_heard, found) == (True, ["found"])
    ask, answer = ANSWERS[what]
    stream = framer.wrap(ask) + FRAMINGS[framing][1](17, answer)
    answers = [framer.feed(stream[n : n + step]) for n in range(0, len(stream), step)]
    assert [item for item in answers if item is not None] == [answer]
    assert found == ["found"]


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
@pytest.mark.parametrize("what", MIRRORED)
def test_a_copy_of_a_write_is_no_answer_before_a_read_has_told(framing: str, what: str) -> None:
    echo, framer, _ = line(framing)
    ask, answer = ANSWERS[what]
    frame = FRAMINGS[framing][1](17, answer)
    framer.wrap(ask)
    assert framer.feed(frame) is None
    assert framer.holds_back
    assert framer.has_heard_itself
    assert echo.is_heard is None
    assert framer.feed(frame) == answer, "the second one is the device's"
    assert echo.is_heard
    framer.wrap(ask)
    assert framer.feed(frame) is None, "it was the echo"
    assert not framer.holds_back


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
@pytest.mark.parametrize("what", MIRRORED)
def test_a_refusal_after_a_copy_of_the_write_is_the_answer(framing: str, what: str) -> None:
    ask, answer = ANSWERS[what]
    refusal = bytes((answer[0] | 0x80, 3))
    echo, framer, _ = line(framing)
    sent = framer.wrap(ask)
    assert framer.feed(sent + FRAMINGS[framing][1](17, refusal)) == refusal
    assert echo.is_heard


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
@pytest.mark.parametrize("what", MIRRORED)
@pytest.mark.parametrize("before", [b"", b"\0", b"\xff\xff\xff\xff"], ids=["", "one byte", "noise"])
def test_where_a_read_came_without_echo_the_first_copy_is_the_answer(
    framing: str, what: str, before: bytes
) -> None:
    echo, framer, _ = line(framing)
    for read_, is_known in ((ANSWERS["bits"], True), ((read(), b"\x83\x02"), True)):
        echo.begin()
        assert echo.is_heard is None
        framer.wrap(read_[0])
        assert framer.feed(before + FRAMINGS[framing][1](17, read_[1])) == read_[1]
        assert (echo.is_heard is False) == is_known
    ask, answer = ANSWERS[what]
    framer.wrap(ask)
    assert framer.feed(FRAMINGS[framing][1](17, answer)) == answer


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
def test_half_an_echo_before_a_response_tells_nothing(framing: str) -> None:
    echo, framer, found = line(framing)
    ask, answer = ANSWERS["two registers"]
    sent = framer.wrap(ask)
    assert framer.feed(sent[3:] + FRAMINGS[framing][1](17, answer)) == answer
    assert (echo.is_heard, found) == (None, [])


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
def test_a_request_that_comes_after_its_response_is_no_echo(framing: str) -> None:
    echo, framer, found = line(framing)
    ask, answer = ANSWERS["two registers"]
    sent = framer.wrap(ask)
    assert framer.feed(FRAMINGS[framing][1](17, answer) + sent) == answer
    assert (echo.is_heard, found) == (False, [])


def test_an_echo_that_looks_like_the_response_to_a_read_is_none() -> None:
    """Twenty coils from 0x0300 on: unit, function and byte count are the request's first three bytes."""
    ask = Ask(17, pdu.read_request(Table.COIL, 0x0300, 20))
    answer = bytes.fromhex("01030012ab")
    for said in (None, True):
        echo, framer, _ = line("rtu", said)
        sent = framer.wrap(ask)
        assert framer.feed(sent) is None
        assert framer.feed(rtu(17, answer)) == answer
        assert echo.is_heard
    echo, framer, _ = line("rtu")
    framer.wrap(read())
    framer.feed(rtu(17, bytes.fromhex("0304deadbeef")))
    framer.wrap(ask)
    assert framer.feed(rtu(17, answer)) == answer


def test_one_response_without_echo_is_not_believed_where_there_was_one() -> None:
    """It may be late: the response to the request before."""
    echo, framer, _ = line("rtu")
    ask, answer = ANSWERS["two registers"]
    framer.feed(framer.wrap(ask) + rtu(17, answer))
    for is_heard in (True, True, False):
        framer.wrap(ask)
        assert framer.feed(rtu(17, answer)) == answer
        assert echo.is_heard is is_heard
    framer.feed(framer.wrap(ask) + rtu(17, answer))
    assert echo.is_heard is True


@given(
    script=st.lists(st.tuples(st.sampled_from(sorted(ANSWERS)), st.sampled_from("eaxn")), max_size=12),
    step=st.integers(1, 9),
    has_echo=st.booleans(),
)
def test_on_a_line_with_echo_nothing_but_the_device_ever_answers(
    script: list[tuple[str, str]], step: int, has_echo: bool
) -> None:
    """e: an echo alone; a: echo and answer; x: echo and refusal; n: noise, echo and answer."""
    _, framer, _ = line("rtu")
    for what, kind in script:
        ask, answer = ANSWERS[what]
        sent = framer.wrap(ask)
        said = b"" if kind == "e" else rtu(17, bytes((answer[0] | 0x80, 3)) if kind == "x" else answer)
        stream = (b"\0\xfe" if kind == "n" else b"") + (sent if has_echo else b"") + said
        heard = [framer.feed(stream[n : n + step]) for n in range(0, len(stream), step)]
        answers = [item for item in heard if item is not None]
        expected = [] if kind == "e" else [said[1:-2]]
        assert answers in ([], expected)
        if has_echo or not ask.is_mirrored:
            assert answers == expected
        else:
            assert answers == expected or framer.holds_back


# --- noise without end ------------------------------------------------------------------------------


def noises() -> dict[str, bytes]:
    rng = random.Random(7)
    return {
        "random": rng.randbytes(1 << 16),
        "zeros": bytes(1 << 16),
        "the unit id": b"\x11" * (1 << 16),
        "heads of answers": b"\x11\x03\x04" * (1 << 14),
        "heads of long answers": b"\x11\x03\xfa" * (1 << 14),
        "exceptions": b"\x11\x83\x02" * (1 << 14),
        "colons": b":" * (1 << 16),
        "line ends": b"\r\n" * (1 << 15),
        "empty frames": b":\r\n" * (1 << 14),
        "ascii frames of another": ascii_(18, bytes.fromhex("0304deadbeef")) * 3000,
        "digits": b":" + b"1" * (1 << 16),
    }


@pytest.mark.parametrize("piece", [300, 4096, 1 << 18])
@pytest.mark.parametrize("what", noises())
@pytest.mark.parametrize("framing", ["rtu", "ascii"])
def test_noise_without_end_costs_neither_memory_nor_more_and_more_time(
    framing: str, what: str, piece: int
) -> None:
    noise = noises()[what]
    noise *= (1 << 18) // len(noise) + 1
    framer = asked(framing, read(count=125 if "long" in what else 2))
    times = []
    for total in (1 << 17, 1 << 18):
        began_s = time.process_time()
        for n in range(0, total, piece):
            assert framer.feed(noise[n : n + piece]) is None
        times.append(time.process_time() - began_s)
    assert len(framer._buffer) <= 1024  # type: ignore[attr-defined]
    assert times[1] < 4 * times[0] + 0.2, times


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
@pytest.mark.parametrize(
    "quirks",
    [{}, {"takes_any_unit": True}, {"echo": LineEcho(said=True)}],
    ids=lambda item: "-".join(item) or "plain",
)
def test_ten_megabytes_of_noise_leave_nothing_behind(framing: str, quirks: dict[str, Any]) -> None:
    noise = random.Random(3).randbytes(1 << 16)
    framer = asked(framing, read(), **quirks)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        size = 10 if quirks != {"takes_any_unit": True} or framing == "ascii" else 2
        for _ in range(size * 16):
            assert framer.feed(noise) is None
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 8192
    assert peak - before < 500_000
    framer.wrap(read())
    if not quirks.get("echo"):
        answer = bytes.fromhex("0304deadbeef")
        assert framer.feed(noise[:50] + FRAMINGS[framing][1](17, answer)) == answer


@pytest.mark.parametrize("framing", ["rtu", "ascii"])
def test_what_comes_while_nothing_is_asked_is_bounded_too(framing: str) -> None:
    framer = FRAMINGS[framing][0]()
    for _ in range(100):
        assert framer.feed(b":11" * 10_000) is None
    assert len(framer._buffer) <= 1024  # type: ignore[attr-defined]


def test_a_stream_keeps_at_most_one_frame() -> None:
    framer = asked("mbap", read())
    late = mbap(17, bytes(253), 1)
    for _ in range(5000):
        framer.wrap(read())
    framer = asked("mbap", read())
    framer.wrap(read())
    for _ in range(5000):
        framer.feed(late[:100])
        framer.feed(late[100:] + late[:30])
        framer.feed(late[30:])
        assert len(framer._buffer) <= 260  # type: ignore[attr-defined]
    assert framer.fault is None


# --- what an answer looks like ----------------------------------------------------------------------


@given(
    table=st.sampled_from([item for item in Table if item.is_numbered]),
    address=st.integers(0, 60_000),
    count=st.integers(1, 125),
)
def test_the_shape_of_an_answer_is_that_of_its_request(table: Table, address: int, count: int) -> None:
    ask = Ask(1, pdu.read_request(table, address, count))
    size = (count + 7) // 8 if table.is_bits else 2 * count
    assert (ask.head, ask.size) == (bytes((table.read_function, size)), size + 2)
    assert ask.shape == (table.read_function, size + 2)


def test_answers_that_cannot_be_told_apart_on_a_line_have_one_shape() -> None:
    """Two registers here and two there; nine coils and sixteen."""
    assert read(address=4).shape == read(address=400).shape
    assert read(Table.COIL, count=9).shape == read(Table.COIL, count=16).shape
    assert read(Table.COIL, count=8).shape != read(Table.COIL, count=9).shape
    assert read(Table.INPUT).shape != read(Table.HOLDING).shape


def test_a_good_answer_looks_as_its_request_for_single_writes_only() -> None:
    mirrored = {what: ask.is_mirrored for what, (ask, _, _) in WRITES.items()}
    assert mirrored == {
        "a coil": True, "a register": True, "coils": False, "registers": False, "masked bits": True, "a file": True,
    }  # fmt: skip
    assert not any(ask.is_mirrored for ask in (read(), read(Table.COIL, count=24), read(Table.INPUT)))
    assert not Ask(17, bytes.fromhex("11")).is_mirrored
    assert not Ask(17, bytes.fromhex("180010")).is_mirrored
