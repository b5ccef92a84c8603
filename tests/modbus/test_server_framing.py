"""Requests out of what comes on a line: whole, cut, behind noise, between other stations' frames."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.modbus.checksum import crc16, lrc
from fieldbus.modbus.pdu import Frame, frame
from fieldbus.modbus.server_framing import (
    SHORTEST_GAP_S,
    AsciiRequests,
    MbapRequests,
    RtuRequests,
    datagram_request,
)

OURS, OTHER = 1, 5
READ = bytes.fromhex("0300000002")
REQUESTS = {
    1: "0100000010", 2: "0200000010", 3: "0300000002", 4: "040000007d", 5: "050000ff00", 6: "0600011234",
    7: "07", 8: "0800001234", 11: "0b", 12: "0c", 15: "0f0000000a02ff03", 16: "100000000204aabbccdd", 17: "11",
    20: "14070600010000 0002".replace(" ", ""), 22: "16000000f20025", 23: "17000000010000000102abcd", 24: "180000",
    43: "2b0e0100",
}  # fmt: skip
ANSWERS = {
    1: "0102ff03", 2: "0202ff03", 3: "030400010002", 4: "0402abcd", 5: "050000ff00", 6: "0600011234",
    7: "0700", 8: "0800001234", 11: "0bffff0108", 15: "0f0000000a", 16: "1000000002", 17: "110301ff07",
    22: "16000000f20025", 23: "1702abcd", 43: "2b0e018100000100016b", 0x83: "8302", 0x90: "9004",
}  # fmt: skip


def rtu(pdu: bytes | str, unit_id: int = OURS) -> bytes:
    body = bytes((unit_id,)) + (bytes.fromhex(pdu) if isinstance(pdu, str) else pdu)
    return body + struct.pack("<H", crc16(body))


def ascii_(pdu: bytes, unit_id: int = OURS) -> bytes:
    body = bytes((unit_id,)) + pdu
    return b":" + (body + bytes((lrc(body),))).hex().upper().encode() + b"\r\n"


def line(**options: bool) -> RtuRequests:
    return RtuRequests([OURS], silence_s=0.004, **options)


def ours(frames: list[Frame]) -> list[str]:
    """The requests to us, in hex."""
    return [found.pdu.hex() for found in frames if found.unit_id == OURS]


# --- RTU: what is whole -----------------------------------------------------------------------------


def test_the_frame_in_the_specification_has_these_bytes() -> None:
    assert rtu("0300000002") == bytes.fromhex("010300000002c40b")
    assert line().feed(bytes.fromhex("010300000002c40b"), 0.0) == [Frame(0, 1, READ)]


@pytest.mark.parametrize("function", REQUESTS)
def test_a_request_is_given_out_with_its_last_byte_and_not_before(function: int) -> None:
    data = rtu(REQUESTS[function])
    framer = line()
    for index, byte in enumerate(data):
        found = framer.feed(bytes((byte,)), index * 0.001)
        assert ours(found) == ([REQUESTS[function]] if index == len(data) - 1 else []), index
    assert not framer.is_waiting
    assert framer.discarded == 0


@pytest.mark.parametrize("function", REQUESTS)
def test_a_request_cut_anywhere_comes_out_whole(function: int) -> None:
    data = rtu(REQUESTS[function])
    for cut in range(1, len(data)):
        framer = line()
        found = framer.feed(data[:cut], 0.0) + framer.feed(data[cut:], 0.016)
        assert ours(found) == [REQUESTS[function]], cut


def test_a_request_of_function_0_in_pieces_is_given_out_to_be_refused() -> None:
    data = rtu(bytes.fromhex("00 1234"))
    for cut in range(1, len(data)):
        framer = line()
        found = framer.feed(data[:cut], 0.0) + framer.feed(data[cut:], 0.001)
        assert found == [Frame(0, OURS, bytes.fromhex("001234"))], cut
        assert framer.discarded == 0


def test_chunks_of_a_usb_adapter_16_ms_apart_are_one_frame() -> None:
    data = rtu(bytes.fromhex("10000000 7bf6") + bytes(246))
    framer = line()
    chunks = [data[n : n + 62] for n in range(0, len(data), 62)]
    found = [item for n, chunk in enumerate(chunks) for item in framer.feed(chunk, n * 0.016)]
    assert [len(item.pdu) for item in found] == [252]


def test_the_longest_request_is_taken() -> None:
    longest = bytes.fromhex("17000000010000 0079f2".replace(" ", "")) + bytes(242)
    assert len(rtu(longest)) == 255
    assert line().feed(rtu(longest), 0.0) == [Frame(0, OURS, longest)]


def test_a_broadcast_is_given_out_as_unit_0() -> None:
    assert line().feed(rtu("0600011234", 0), 0.0) == [Frame(0, 0, bytes.fromhex("0600011234"))]


def test_an_answer_has_unit_id_and_crc() -> None:
    request = Frame(0, 17, READ)
    assert line().wrap(request, bytes.fromhex("0302abcd")) == rtu("0302abcd", 17)


# --- RTU: what is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("function", REQUESTS)
def test_one_wrong_bit_anywhere_is_silence(function: int) -> None:
    data = rtu(REQUESTS[function])
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit >> 3] ^= 1 << (bit & 7)
        framer = line()
        found = framer.feed(bytes(broken), 0.0) + framer.expire(1.0)
        assert found == [], bit
        assert framer.discarded == 1
        assert ours(framer.feed(rtu(READ), 2.0)) == [READ.hex()], "the next one is lost too"


NOISE = [b"\0", b"\xff", b"\0\0", b"\xff\xff\xff", b"\x01", b"\x01\x03", b"\x01\x10\x00\x00\x00\x7b\xf6", b"\x05\x03\xfa",
         bytes(range(256)), b"\xaa" * 300, b"\x01" * 40, rtu(READ)[:-1], rtu(READ)[1:]]  # fmt: skip


@pytest.mark.parametrize("noise", NOISE)
def test_a_frame_right_behind_noise_is_not_lost(noise: bytes) -> None:
    framer = line()
    found = framer.feed(noise + rtu(READ), 0.0) + framer.expire(SHORTEST_GAP_S)
    assert ours(found) == [READ.hex()]
    assert framer.discarded >= 1
    assert not framer.is_waiting


@pytest.mark.parametrize("unit_id", [OURS, OTHER])
@pytest.mark.parametrize("function", REQUESTS)
def test_a_request_behind_noise_cut_anywhere_comes_out_whole(function: int, unit_id: int) -> None:
    data = b"\0" + rtu(REQUESTS[function], unit_id)
    request = Frame(0, unit_id, bytes.fromhex(REQUESTS[function]))
    for cut in range(1, len(data)):
        framer = line()
        found = framer.feed(data[:cut], 0.0) + framer.feed(data[cut:], 0.016) + framer.expire(1.0)
        assert found == [request], cut
        assert framer.discarded == 1


def test_a_frame_behind_a_silence_is_found_at_once_whatever_was_before() -> None:
    framer = line()
    framer.feed(rtu("100000007bf6")[:-2] + bytes(100), 0.0)
    assert ours(framer.feed(rtu(READ), 0.021)) == [READ.hex()]


def test_after_noise_and_a_silence_the_first_of_two_requests_is_found() -> None:
    framer = line()
    framer.feed(b"\xff\xff\xff\xff\xff", 0.0)
    assert ours(framer.feed(rtu(READ) + rtu("07"), 0.021)) == [READ.hex(), "07"]


@given(noise=st.binary(max_size=40), seed=st.integers(0, 3))
@settings(max_examples=examples(300))
def test_whatever_the_noise_the_frame_is_found(noise: bytes, seed: int) -> None:
    framer = line()
    request = bytes.fromhex(["0300000002", "050000ff00", "100000000204aabbccdd", "16000000f20025"][seed])
    found = framer.feed(noise + rtu(request), 0.0) + framer.expire(1.0)
    assert request.hex() in ours(found)


@given(st.lists(st.tuples(st.binary(max_size=300), st.floats(0, 0.1)), max_size=10))
def test_no_bytes_make_it_raise_or_keep_more_than_it_may(chunks: list[tuple[bytes, float]]) -> None:
    for framer in (line(), AsciiRequests()):
        now_s = 0.0
        for chunk, pause_s in chunks:
            now_s += pause_s
            for found in framer.feed(chunk, now_s):
                assert 1 <= len(found.pdu) <= 254
            assert len(framer._buffer) <= 513


def test_an_unfinished_frame_ends_with_the_silence() -> None:
    framer = line()
    assert framer.feed(rtu(READ)[:5], 0.0) == []
    assert framer.is_waiting
    assert framer.expire(0.019) == []
    assert framer.is_waiting
    assert framer.expire(0.020) == []
    assert not framer.is_waiting
    assert framer.feed(rtu(READ)[5:], 0.021) == []
    assert ours(framer.feed(rtu(READ), 0.05)) == [READ.hex()]


def test_a_slow_line_waits_longer_than_the_shortest_gap() -> None:
    framer = RtuRequests([OURS], silence_s=0.035)  # 3.5 characters at 1100 baud
    assert framer.gap_s == 0.035
    framer.feed(rtu(READ)[:5], 0.0)
    assert ours(framer.feed(rtu(READ)[5:], 0.034)) == [READ.hex()]


def test_ten_thousand_bytes_of_noise_without_a_pause_keep_little_and_hide_nothing_for_long() -> None:
    framer = line()
    for n in range(1000):
        framer.feed(b"\x01\x10\x00\x00\x00\x7b\xf6\x55\x55\x55", n * 0.001)
        assert len(framer._buffer) <= 512
    found = framer.feed(rtu(READ), 1.0) + framer.expire(2.0)
    assert ours(found) == [READ.hex()]


def test_noise_on_a_stream_is_a_fault_and_takes_no_time() -> None:
    framer = RtuRequests([OURS], silence_s=1.0, most_noise=2048)
    began_s = time.process_time()
    assert framer.feed(b"\x10\xf6" * 131_072, 0.0) == []
    assert time.process_time() - began_s < 0.2
    assert framer.fault is not None
    assert framer._buffer == b""


@pytest.mark.parametrize("step", [1, 256, 300, 5000])
def test_one_byte_of_noise_more_than_the_limit_is_a_fault(step: int) -> None:
    """Each byte counts once; the last three may still begin a frame."""
    framer = RtuRequests([OURS], silence_s=1.0, most_noise=2048)
    noise = bytes(2048 + 3)
    for place in range(0, len(noise), step):
        assert framer.feed(noise[place : place + step], 0.0) == []
    assert framer.fault is None
    assert framer.feed(b"\0", 0.0) == []
    assert framer.fault == "2049 bytes that are no frame"


def test_nothing_behind_a_fault_is_taken_from_a_stream() -> None:
    framer = RtuRequests([OURS], silence_s=1.0, most_noise=300)
    assert framer.feed(bytes(512) + rtu(READ), 0.0) == []
    assert framer.fault is not None
    assert framer.feed(rtu(READ), 0.1) == []
    assert framer.expire(9.0) == []
    assert not framer.is_waiting


def test_noise_between_frames_on_a_stream_is_no_fault() -> None:
    framer = RtuRequests([OURS], silence_s=1.0, most_noise=2048)
    for n in range(100):
        assert ours(framer.feed(b"\xff" * 100 + rtu(READ), n * 0.1)) == [READ.hex()]
    assert framer.fault is None


def test_a_flood_of_requests_in_one_piece_is_taken_apart_in_linear_time() -> None:
    count = 30_000
    framer = line()
    began_s = time.process_time()
    assert len(framer.feed(rtu(READ) * count, 0.0)) == count
    assert time.process_time() - began_s < 2.0


# --- RTU: functions and lengths that we do not know --------------------------------------------------


@pytest.mark.parametrize("pdu", ["41", "6401020304", "2b0d0001", "2b", "64" + "00" * 252])
def test_a_function_that_we_do_not_know_is_given_out_when_its_checksum_is_right(pdu: str) -> None:
    assert ours(line().feed(rtu(pdu), 0.0)) == [pdu]


@pytest.mark.parametrize("unit_id", [OURS, OTHER])
def test_a_frame_inside_an_unknown_function_is_data_of_it(unit_id: int) -> None:
    pdu = b"\x41" + rtu(READ) + b"\0"
    data = rtu(pdu, unit_id)
    for cut in range(1, len(data)):
        framer = line()
        assert framer.feed(data[:cut], 0.0) == [], cut
        assert ours(framer.feed(data[cut:], 0.016)) == ([pdu.hex()] if unit_id == OURS else []), cut
        assert not framer.is_waiting, cut


def test_behind_an_unknown_function_that_is_too_long_a_frame_is_found_at_once() -> None:
    """A frame has at most 256 bytes: of 256 without a checksum none belongs to one of that function."""
    for size, found_at_once in ((247, []), (248, [READ.hex()]), (249, [READ.hex()]), (600, [READ.hex()])):
        framer = line()
        noise = b"\x01\x41" + bytes(size - 2)
        assert ours(framer.feed(noise + rtu(READ), 0.0)) == found_at_once, size
        assert ours(framer.expire(1.0)) == ([] if found_at_once else [READ.hex()]), size


def test_a_frame_of_256_bytes_is_waited_for_and_a_longer_one_is_not() -> None:
    longest = b"\x15\xfb" + bytes(251)
    for function in (longest, b"\x41" + bytes(252)):
        assert len(rtu(function)) == 256
        framer = line()
        assert framer.feed(rtu(function)[:255], 0.0) == []
        assert ours(framer.feed(rtu(function)[255:], 0.016)) == [function.hex()]
    framer = line()
    assert framer.feed(b"\0" + rtu(longest)[:255], 0.0) == []
    assert ours(framer.feed(rtu(longest)[255:], 0.016)) == [longest.hex()]
    too_long = b"\x15\xfc" + bytes(100)
    assert ours(line().feed(rtu(too_long)[:-2] + rtu(READ), 0.0)) == [READ.hex()]


@pytest.mark.parametrize(
    "pdu", ["03000000", "030000000200", "0600010203ff", "05", "0f0000000a02ff0300", "1600"]
)
def test_a_request_of_the_wrong_length_is_given_out_so_that_it_gets_its_exception(pdu: str) -> None:
    framer = line()
    found = framer.feed(rtu(pdu), 0.0) + framer.expire(0.05)
    assert ours(found) == [pdu]


def test_a_write_that_looks_like_an_answer_for_its_first_eight_bytes_is_taken_whole() -> None:
    """One write in 65536 does; it would be refused for ever, always the same one."""
    for address in range(0x10000):
        for count in range(1, 124):
            head = struct.pack(">BBHH", OURS, 16, address, count)
            crc = crc16(head)
            if crc & 0xFF == count * 2:
                data = bytes((crc >> 8,)) + bytes(count * 2 - 1)
                request = head[1:] + bytes((count * 2,)) + data
                assert crc16(head + bytes((count * 2,)) + data[:1]) == 0, "it does look like an answer"
                framer = line()
                found = framer.feed(rtu(request)[:8], 0.0)
                assert ours(found + framer.feed(rtu(request)[8:], 0.016)) == [request.hex()]
                return
    raise AssertionError("there is no such write")


# --- RTU: other stations ----------------------------------------------------------------------------


@pytest.mark.parametrize("function", ANSWERS)
def test_what_another_station_is_asked_and_answers_is_passed_over(function: int) -> None:
    framer = line()
    asked = REQUESTS[function & 0x7F]
    found = framer.feed(rtu(asked, OTHER), 0.0)
    found += framer.feed(rtu(ANSWERS[function], OTHER), 0.005)
    assert not framer.is_waiting
    assert ours(found + framer.feed(rtu(READ), 0.010)) == [READ.hex()]
    assert framer.discarded == 0


@pytest.mark.parametrize("function", ANSWERS)
def test_a_request_to_another_station_is_given_out_and_its_answer_is_not(function: int) -> None:
    asked, answered = REQUESTS[function & 0x7F], ANSWERS[function]
    framer = line()
    assert framer.feed(rtu(asked, OTHER), 0.0) == [Frame(0, OTHER, bytes.fromhex(asked))]
    found = framer.feed(rtu(answered, OTHER), 0.005)
    assert found == ([Frame(0, OTHER, bytes.fromhex(asked))] if answered == asked else [])


@pytest.mark.parametrize("function", ANSWERS)
def test_another_stations_dialogue_and_a_request_to_us_in_one_chunk_come_apart(function: int) -> None:
    data = rtu(REQUESTS[function & 0x7F], OTHER) + rtu(ANSWERS[function], OTHER) + rtu(READ)
    framer = line()
    found = framer.feed(data, 0.0) + framer.expire(0.05)
    assert ours(found) == [READ.hex()]


@given(st.data())
@settings(max_examples=examples(200))
def test_a_dialogue_of_many_stations_cut_anywhere_gives_our_requests_and_no_others(
    data: st.DataObject,
) -> None:
    wire, expected = b"", []
    for _ in range(data.draw(st.integers(1, 8))):
        function = data.draw(st.sampled_from([1, 2, 3, 4, 5, 6, 15, 16, 22, 23]))
        if data.draw(st.booleans()):
            wire += rtu(REQUESTS[function], OTHER) + rtu(ANSWERS[function], OTHER)
        else:
            wire += rtu(REQUESTS[function])
            expected.append(REQUESTS[function])
    framer, found, now_s = line(), [], 0.0
    while wire:
        size = data.draw(st.integers(1, 30))
        found += framer.feed(wire[:size], now_s)
        wire, now_s = wire[size:], now_s + 0.016
    assert ours(found) == expected


def test_a_frame_to_us_inside_another_stations_data_is_not_taken_for_one() -> None:
    inside = rtu("050000ff00")
    write = bytes.fromhex("100000000408") + inside
    answer = bytes((3, len(inside))) + inside
    framer = line()
    found = framer.feed(rtu(write, OTHER), 0.0) + framer.feed(rtu(answer, OTHER), 0.005)
    assert ours(found + framer.expire(1.0)) == []


def test_such_a_frame_is_not_taken_when_the_others_comes_in_pieces_either() -> None:
    inside = rtu("050000ff00")
    data = rtu(bytes((3, len(inside))) + inside, OTHER)
    for cut in range(1, len(data)):
        framer = line()
        assert ours(framer.feed(data[:cut], 0.0) + framer.feed(data[cut:], 0.016)) == [], cut


# --- RTU: echo --------------------------------------------------------------------------------------


def test_an_adapter_that_hears_itself_does_not_make_us_answer_ourselves() -> None:
    framer = line(has_echo=True)
    write = "0600011234"
    [request] = framer.feed(rtu(write), 0.0)
    answer = framer.wrap(request, request.pdu)
    assert answer == rtu(write), "an answer to FC 6 is the request again"
    assert framer.feed(answer[:3], 0.010) + framer.feed(answer[3:], 0.012) == []
    assert ours(framer.feed(rtu(write), 0.1)) == [write], "asked again it is a request"


def test_a_request_that_comes_instead_of_the_echo_is_taken() -> None:
    framer = line(has_echo=True)
    [request] = framer.feed(rtu("0600011234"), 0.0)
    framer.wrap(request, request.pdu)
    assert ours(framer.feed(rtu(READ), 0.1)) == [READ.hex()]


# --- ASCII ------------------------------------------------------------------------------------------


def test_an_ascii_frame_has_these_characters() -> None:
    assert ascii_(READ) == b":010300000002FA\r\n"
    assert AsciiRequests().wrap(Frame(0, 1, READ), bytes.fromhex("0302abcd")) == b":010302ABCD82\r\n"


@pytest.mark.parametrize("data", [b":010300000002FA\r\n", b":010300000002fa\r\n", b":010300000002Fa\r\n"])
def test_hex_digits_may_be_upper_or_lower(data: bytes) -> None:
    assert AsciiRequests().feed(data, 0.0) == [Frame(0, 1, READ)]


def test_an_ascii_frame_comes_out_with_its_last_character_however_slowly() -> None:
    framer = AsciiRequests()
    data = ascii_(READ)
    for index in range(len(data)):
        found = framer.feed(data[index : index + 1], index * 10.0)
        assert found == ([Frame(0, 1, READ)] if index == len(data) - 1 else []), index


@pytest.mark.parametrize(
    "data",
    [b":010300000002FB\r\n", b":010300000002F\r\n", b":01030000000 2FA\r\n", b":0103000000g2FA\r\n", b":01FF\r\n",
     b"010300000002FA\r\n", b":010300000002FA\n", b":\r\n", b":" + b"00" * 257 + b"\r\n", b":\xff\xfe\xfd\r\n"],
)  # fmt: skip
def test_what_is_no_ascii_frame_is_silence_and_the_next_one_is_not_lost(data: bytes) -> None:
    framer = AsciiRequests()
    assert framer.feed(data, 0.0) == []
    assert framer.feed(b"\r\n" + ascii_(READ), 0.1) == [Frame(0, 1, READ)]


@pytest.mark.parametrize(
    "noise", [b"\0\xff", b":0103", b":010300000002FA", b"\r\n\r\n", b"::::", b"A" * 2000]
)
def test_an_ascii_frame_behind_noise_is_not_lost(noise: bytes) -> None:
    framer = AsciiRequests()
    assert framer.feed(noise + ascii_(READ), 0.0) == [Frame(0, 1, READ)]


def test_an_ascii_line_without_an_end_is_not_kept() -> None:
    framer = AsciiRequests()
    for _ in range(100):
        framer.feed(b":" + b"0" * 100, 0.0)
        framer.feed(b"0" * 600, 0.0)
        assert len(framer._buffer) <= 513


def test_the_longest_ascii_frame_is_taken_and_no_longer_one() -> None:
    longest = ascii_(bytes((65,)) + bytes(252))
    assert len(longest) == 513
    assert len(AsciiRequests().feed(longest, 0.0)) == 1
    assert AsciiRequests().feed(ascii_(bytes((65,)) + bytes(253)), 0.0) == []


def test_as_many_ascii_characters_are_kept_as_may_become_a_frame() -> None:
    longest = ascii_(bytes((65,)) + bytes(252))
    framer = AsciiRequests()
    assert framer.feed(b"A" * 300 + longest[:-1], 0.0) == []
    assert framer.is_waiting
    assert len(framer.feed(longest[-1:], 0.1)) == 1
    assert framer.feed(b":" + b"0" * 511, 0.2) == []
    assert framer.is_waiting
    assert framer.feed(b"0", 0.3) == []
    assert not framer.is_waiting


def test_an_ascii_echo_is_no_request() -> None:
    framer = AsciiRequests(has_echo=True)
    write = ascii_(bytes.fromhex("0600011234"))
    [request] = framer.feed(write, 0.0)
    assert framer.feed(framer.wrap(request, request.pdu), 0.1) == []
    assert len(framer.feed(write, 0.2)) == 1


def test_the_echoes_of_the_last_eight_ascii_answers_are_known() -> None:
    framer = AsciiRequests(has_echo=True)
    sent = [framer.wrap(Frame(0, OURS, READ), bytes((3, 2, 0, n))) for n in range(9)]
    assert [len(framer.feed(data, 0.0)) for data in sent] == [1, 0, 0, 0, 0, 0, 0, 0, 0]


# --- MBAP -------------------------------------------------------------------------------------------


def test_an_answer_on_tcp_has_the_transaction_and_unit_of_its_request() -> None:
    framer = MbapRequests()
    [request] = framer.feed(frame(0xABCD, 9, READ), 0.0)
    assert framer.wrap(request, b"\x83\x02") == bytes.fromhex("abcd00000003098302")


def test_a_datagram_is_one_whole_frame_or_nothing() -> None:
    data = frame(7, 1, READ)
    assert datagram_request(data) == Frame(7, 1, READ)
    for size in range(len(data)):
        assert datagram_request(data[:size]) is None, size
    for wrong in (data + b"\0", data + data, b"\xff" * 12, frame(7, 1, b"\x03" * 254), bytes(70_000)):
        assert datagram_request(wrong) is None
    assert datagram_request(frame(7, 1, b"\x03" * 253)) is not None


# --- bounds and counts ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 513, 514, 600])
def test_discarded_noise_of_any_length_is_counted_once(size: int) -> None:
    framer = line()
    framer.feed(b"\x00" * size, 0.0)
    framer.expire(1.0)
    assert framer.discarded == (1 if size <= 512 else 2)


def test_a_new_framer_has_discarded_nothing() -> None:
    assert [AsciiRequests().discarded, MbapRequests().discarded, line().discarded] == [0, 0, 0]


def test_without_the_option_a_repeated_own_frame_is_no_echo() -> None:
    request = Frame(0, OURS, bytes.fromhex("0600011234"))
    for framer, data in ((line(), rtu(request.pdu)), (AsciiRequests(), ascii_(request.pdu))):
        assert framer.wrap(request, request.pdu) == data
        assert framer.feed(data, 0.0) == [request]


def test_half_a_frame_on_a_stream_is_waited_for() -> None:
    framer = MbapRequests()
    assert not framer.is_waiting
    assert framer.feed(bytes.fromhex("000100000006"), 0.0) == []
    assert framer.is_waiting
    assert framer.feed(bytes.fromhex("010300000002"), 0.0) == [Frame(1, 1, READ)]
    assert not framer.is_waiting
