"""Logs of every format: read as they are, written so that others read the same, hostile ones survived."""

import gzip
import itertools
import os
import subprocess
import zlib

import can
import pytest
from conftest import program
from hypothesis import example, given
from hypothesis import strategies as st

from fieldbus.canbus.bus import BITRATE_SWITCH, ERROR, EXTENDED, FD, REMOTE
from fieldbus.canbus.logs import blf, candump
from fieldbus.canbus.logs import reading as logs
from fieldbus.canbus.logs.logged import ERROR_STATE, FD_LENGTHS, LogError, LoggedFrame
from fieldbus.canbus.logs.reading import read_log
from fieldbus.canbus.logs.writing import LogWriter

START_NS = 1_345_212_884_005_318_000

FRAMES = [
    LoggedFrame(START_NS, "1", 0x7A1, bytes.fromhex("1122334455667788")),
    LoggedFrame(START_NS + 1000, "2", 0x18FEF100 | EXTENDED, b"\x01\x02", 0, False),
    LoggedFrame(START_NS + 2000, "1", 0x7FF, b""),
    LoggedFrame(START_NS + 2000, "1", 0x123 | EXTENDED, b"\xff" * 8),
    LoggedFrame(START_NS + 999_999_000, "1", 0x100 | REMOTE, bytes(8)),
    LoggedFrame(START_NS + 1_000_000_000, "1", 0x101 | REMOTE, b""),
    LoggedFrame(START_NS + 86_400_000_001_000, "2", 0x200, bytes(range(64)), FD | BITRATE_SWITCH),
    LoggedFrame(START_NS + 86_400_000_002_000, "2", 0x201 | EXTENDED, b"\x07" * 12, FD | ERROR_STATE, False),
]


def put(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write(path, frames):
    writer = LogWriter(path)
    for frame in frames:
        writer.write(frame)
    writer.close()
    return path


class TestCandump:
    @pytest.mark.parametrize(
        ("text", "frame"),
        [
            (
                "(1345212884.318850) vcan0 7A1#1122334455667788",
                LoggedFrame(1345212884318850000, "vcan0", 0x7A1, bytes.fromhex("1122334455667788")),
            ),
            ("(1.000001) can0 000#", LoggedFrame(1000001000, "can0", 0, b"")),
            ("(1.5) can0 123#00\r", LoggedFrame(1500000000, "can0", 0x123, b"\0")),
            (
                "(1.123456789) can0 00000123#aAbB R",
                LoggedFrame(1123456789, "can0", 0x123 | EXTENDED, b"\xaa\xbb"),
            ),
            (
                "(1345212884.318850) slcan:1 1FFFFFFF#00 T",
                LoggedFrame(1345212884318850000, "slcan:1", 0x1FFFFFFF | EXTENDED, b"\0", 0, False),
            ),
            ("(1.000000) c 123#R", LoggedFrame(10**9, "c", 0x123 | REMOTE, b"")),
            (
                "(1.000000) c 00000123#R8 T",
                LoggedFrame(10**9, "c", 0x123 | REMOTE | EXTENDED, bytes(8), 0, False),
            ),
            ("(1.000000) c 123##0", LoggedFrame(10**9, "c", 0x123, b"", FD)),
            ("(1.000000) c 123##5AA", LoggedFrame(10**9, "c", 0x123, b"\xaa", FD | BITRATE_SWITCH)),
            ("(1.000000) c 123##2" + "00" * 64, LoggedFrame(10**9, "c", 0x123, bytes(64), FD | ERROR_STATE)),
            (
                "(1.000000) c 20000080#0000000000000000",
                LoggedFrame(10**9, "c", ERROR | 0x80, bytes(8)),
            ),
            (
                "(1.000000) c 123#1122334455667788_B",
                LoggedFrame(10**9, "c", 0x123, bytes.fromhex("1122334455667788")),
            ),
        ],
    )
    def test_a_line_is_a_frame(self, text, frame):
        assert candump.parse(text) == frame

    @pytest.mark.parametrize(
        "text",
        [
            "", "(1.0) can0", "1.0 can0 123#00", "(1.0) can0 123", "(1.0) can0 123#0", "(1.0) can0 123#0g",
            "(1.0) can0 123#112233445566778899", "(1.0) can0 800#", "(1.0) can0 FFF#", "(1.0) can0 1234#00",
            "(1.0) can0 40000000#", "(1.0) can0 FFFFFFFF#", "(1.0) can0 A0000001#", "(1.0) can0 123#R9",
            "(1.0) can0 20000001#R", "(1.0) can0 20000001##0", "(1.0) can0 123##", "(1.0) can0 123##0" + "00" * 65,
            "(1) can0 123#00", "(-1.0) can0 123#00", "(nan.0) can0 123#00", "(1.0) can0 123#00 X",
            "(1.0) can0 123#00 R junk", "(1.0) can0 123#1122334455667788_8", "(²1.0) can0 123#00",
            "(999999999999.0) can0 123#00", "(1.0) " + "c" * 65 + " 123#00", "(1.0) can0 123#00" + "0" * 1_000_000,
        ],
    )  # fmt: skip
    def test_what_is_no_frame_is_none(self, text):
        assert candump.parse(text) is None

    @given(st.text())
    @example("(1.0) c\x1f 123#00")
    def test_no_text_raises(self, text):
        assert candump.parse(text) is None or "#" in text

    @given(st.from_regex(r"\(\d{1,12}\.\d{1,10}\) [a-z]{1,3} [0-9A-F]{2,9}#[#R]?[0-9A-F]{0,140}(_[9A-F])?( [TR])?",
                         fullmatch=True))  # fmt: skip
    def test_what_is_nearly_a_line_never_raises_and_is_within_limits(self, text):
        frame = candump.parse(text)
        if frame is not None:
            assert len(frame.data) <= (64 if frame.is_fd else 8)
            assert frame.can_id & 0x1FFFFFFF <= (0x1FFFFFFF if frame.can_id & (EXTENDED | ERROR) else 0x7FF)

    @given(
        st.integers(0, 10**17).map(lambda us: us * 1000),
        st.sampled_from(["can0", "1"]),
        st.one_of(st.integers(0, 0x7FF), st.integers(0, 0x1FFFFFFF).map(lambda number: number | EXTENDED)),
        st.binary(max_size=8),
        st.booleans(),
        st.sampled_from([0, REMOTE, FD, FD | BITRATE_SWITCH, FD | ERROR_STATE]),
    )
    def test_what_is_written_is_read_back(self, time_ns, channel, can_id, data, is_received, kind):
        if kind == REMOTE:
            frame = LoggedFrame(time_ns, channel, can_id | REMOTE, bytes(len(data)), 0, is_received)
        else:
            frame = LoggedFrame(time_ns, channel, can_id, data, kind, is_received)
        if time_ns < 10**20:
            assert candump.parse(candump.format_line(frame)) == frame

    def test_bad_lines_are_counted_and_named_and_cost_only_themselves(self, tmp_path):
        lines = ["(1.000000) c 001#00", "rubbish", "", "(2.000000) c 002#0", "(3.000000) c 003#00 T", "x" * 1_000_000,
                 "(4.000000) c 004#00"]  # fmt: skip
        reader = read_log(put(tmp_path, "a.log", "\n".join(lines)))
        assert [frame.can_id for frame in reader] == [1, 3, 4]
        assert (reader.frames, reader.bad_lines) == (3, 3)
        assert [(line.number, line.reason) for line in reader.first_bad] == [
            (2, "not a line as `candump -L` writes it"),
            (4, "not a line as `candump -L` writes it"),
            (6, "too long"),
        ]

    def test_line_numbers_are_right_across_blocks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(logs, "_BLOCK", 7)
        text = "".join(f"({number}.000000) c 001#00\n" for number in range(100)) + "bad\n"
        reader = read_log(put(tmp_path, "a.log", text))
        assert [frame.time_ns for frame in reader] == [number * 10**9 for number in range(100)]
        assert [line.number for line in reader.first_bad] == [101]

    @pytest.mark.parametrize(
        "content", [b"x" + os.urandom(300_000), b"\0" * 5_000_000, b"x\n" * 100_000, b"\n" * 100_000]
    )
    def test_garbage_ends_soon_and_in_little_memory(self, tmp_path, content):
        reader = read_log(put(tmp_path, "a.log", content))
        try:
            assert list(reader) == []
        except LogError as error:
            assert "1000 lines hold no frame" in str(error)
            assert error.line == 1
        assert reader.bad_lines <= 1000

    def test_gzipped_logs_are_read_up_to_a_size(self, tmp_path, monkeypatch):
        path = put(tmp_path, "a.log.gz", gzip.compress(b"(1.000000) c 001#00\n" * 50_000))
        assert sum(1 for _ in read_log(path)) == 50_000
        monkeypatch.setattr(logs, "MAX_UNPACKED_BYTES", 600_000)
        with pytest.raises(LogError, match="unpacks to more than"):
            list(read_log(path))
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(LogError, match=r"a\.log\.gz: not a whole gzip file"):
            list(read_log(path))
        put(tmp_path, "b.log.gz", b"plain text")
        with pytest.raises(LogError, match="not a gzipped file"):
            list(read_log(tmp_path / "b.log.gz"))

    def test_python_can_reads_what_we_write(self, tmp_path):
        path = write(tmp_path / "a.log", FRAMES)
        assert [_seen(message) for message in can.LogReader(path)] == [_seen_frame(frame) for frame in FRAMES]


def _seen(message):
    data = bytes(message.dlc) if message.is_remote_frame else bytes(message.data)
    return (round(message.timestamp * 1e6), message.arbitration_id, message.is_extended_id, message.is_remote_frame,
            message.is_fd, message.bitrate_switch, message.error_state_indicator, message.is_rx, data)  # fmt: skip


def _seen_frame(frame):
    return (frame.time_ns // 1000, frame.can_id & 0x1FFFFFFF, bool(frame.can_id & EXTENDED),
            bool(frame.can_id & REMOTE), frame.is_fd, bool(frame.flags & BITRATE_SWITCH),
            bool(frame.flags & ERROR_STATE), frame.is_received, frame.data)  # fmt: skip


class TestRoundTrips:
    def test_candump_to_blf_to_asc_to_candump_is_equal(self, tmp_path):
        path = write(tmp_path / "0.log", FRAMES)
        for name in ("1.blf", "2.asc", "3.log"):
            frames = list(read_log(path))
            assert frames == FRAMES
            path = write(tmp_path / name, frames)
        assert path.read_bytes() == (tmp_path / "0.log").read_bytes()

    @pytest.mark.parametrize("suffix", [".log", ".asc", ".blf"])
    def test_error_frames_stay_error_frames(self, tmp_path, suffix):
        frame = LoggedFrame(START_NS, "1", ERROR | 0x44, b"\0\x04\0\0\0\0\x60\0")
        [found] = read_log(write(tmp_path / f"a{suffix}", [frame]))
        assert found.can_id & ERROR
        if suffix != ".asc":  # which says no more than that there was one
            assert found == frame

    def test_blf_keeps_nanoseconds(self, tmp_path):
        frames = [LoggedFrame(START_NS + step, "1", 1, b"") for step in (7, 8, 1_000_000_001)]
        assert list(read_log(write(tmp_path / "a.blf", frames))) == frames

    def test_channels_with_names_get_numbers(self, tmp_path):
        frames = [LoggedFrame(START_NS, name, 1, b"") for name in ("can0", "vcan1", "engine", "can2", "x0")]
        found = [frame.channel for frame in read_log(write(tmp_path / "a.blf", frames))]
        assert found == ["1", "2", "3", "4", "5"]

    @pytest.mark.parametrize("suffix", [".log", ".asc", ".blf"])
    def test_a_log_without_frames_is_a_log(self, tmp_path, suffix):
        assert list(read_log(write(tmp_path / f"a{suffix}", []))) == []

    @pytest.mark.parametrize("suffix", [".asc", ".blf"])
    def test_python_can_reads_what_we_write(self, tmp_path, suffix):
        path = write(tmp_path / f"a{suffix}", FRAMES)
        options = {"relative_timestamp": False} if suffix == ".asc" else {}
        assert [_seen(message) for message in can.LogReader(path, **options)] == [
            _seen_frame(frame) for frame in FRAMES
        ]

    @pytest.mark.parametrize("suffix", [".log", ".blf", ".csv"])
    def test_we_read_what_python_can_writes(self, tmp_path, suffix):
        frames = [frame for frame in FRAMES if suffix != ".csv" or not frame.is_fd]
        writer = can.Logger(tmp_path / f"a{suffix}")
        for frame in frames:
            writer.on_message_received(_message(frame))
        writer.stop()
        found = list(read_log(tmp_path / f"a{suffix}"))
        for frame, own in zip(frames, found, strict=True):
            assert abs(own.time_ns - frame.time_ns) < 2000
            assert own.can_id == frame.can_id
            if not (suffix == ".log" and own.can_id & REMOTE):  # which loses how many bytes it asks for
                assert own.data == frame.data
            if suffix != ".csv":
                assert (own.flags, own.is_received) == (frame.flags, frame.is_received)

    def test_we_read_the_trc_that_python_can_writes(self, tmp_path):
        frames = [frame for frame in FRAMES if not frame.is_fd and not frame.can_id & REMOTE]
        writer = can.Logger(tmp_path / "a.trc")
        for frame in frames:
            writer.on_message_received(_message(frame))
        writer.stop()
        reader = read_log(tmp_path / "a.trc")
        found = list(reader)
        assert [frame[1:] for frame in found] == [frame[1:] for frame in frames]
        assert all(
            abs(own.time_ns - frame.time_ns) < 100_000 for own, frame in zip(found, frames, strict=True)
        )
        assert reader.notes == []


@pytest.mark.system
class TestCanUtils:
    def test_we_read_the_asc_that_they_write_and_they_read_ours(self, tmp_path):
        frames = [frame._replace(channel=f"can{int(frame.channel) - 1}", is_received=True, flags=frame.flags & ~ERROR_STATE)
                  for frame in FRAMES]  # fmt: skip
        write(tmp_path / "a.log", frames)
        command = [
            program("log2asc", "can-utils"),
            "-I",
            tmp_path / "a.log",
            "-O",
            tmp_path / "a.asc",
            "can0",
            "can1",
        ]
        subprocess.run(command, check=True, timeout=20)
        found = list(read_log(tmp_path / "a.asc"))
        assert [frame[2:4] for frame in found] == [frame[2:4] for frame in frames]
        assert [frame.channel for frame in found] == [str(int(frame.channel[3:]) + 1) for frame in frames]
        assert [frame.time_ns - found[0].time_ns for frame in found] == [
            frame.time_ns - frames[0].time_ns for frame in frames
        ]
        write(tmp_path / "b.asc", frames)
        command = [program("asc2log", "can-utils"), "-I", tmp_path / "b.asc", "-O", tmp_path / "b.log"]
        subprocess.run(command, check=True, timeout=20, stderr=subprocess.DEVNULL)
        theirs = list(read_log(tmp_path / "b.log"))
        assert [frame[1:] for frame in theirs] == [frame[1:] for frame in frames]


def _message(frame):
    return can.Message(
        timestamp=frame.time_ns / 1e9, arbitration_id=frame.can_id & 0x1FFFFFFF,
        is_extended_id=bool(frame.can_id & EXTENDED), is_remote_frame=bool(frame.can_id & REMOTE), is_fd=frame.is_fd,
        bitrate_switch=bool(frame.flags & BITRATE_SWITCH), is_rx=frame.is_received,
        error_state_indicator=bool(frame.flags & ERROR_STATE), channel=int(frame.channel) - 1,
        dlc=len(frame.data), data=None if frame.can_id & REMOTE else frame.data,
    )  # fmt: skip


ASC = """date Fri Aug 17 02:14:44.318 PM 2012
base hex  timestamps {kind}
internal events logged
// version 9.0.0
Begin Triggerblock Fri Aug 17 02:14:44.318 PM 2012
   0.000000 Start of measurement
   0.100000 1  123             Rx   d 2 11 22
   0.200000 Statistic: whatever
   0.300000 1  124             Rx   d 8 11 22
   0.400000 1  GGG             Rx   d 1 11
   0.500000 2  18FEF100x       Tx   d 1 FF
   0.600000 1  FFFFFFFFx       Rx   d 0
   0.700000 1  125             Rx   d zz
   0.800000 1  126             Rx   d 0
End TriggerBlock
"""


class TestOtherTexts:
    def test_absolute_times_of_asc_count_from_its_date(self, tmp_path):
        reader = read_log(put(tmp_path, "a.asc", ASC.format(kind="absolute")))
        frames = list(reader)
        assert [frame.can_id for frame in frames] == [0x123, 0x18FEF100 | EXTENDED, 0x126]
        steps = [frame.time_ns - frames[0].time_ns for frame in frames]
        assert steps == [0, 400_000_000, 700_000_000]
        assert frames[0].time_ns % 10**9 == 418_000_000
        assert [line.number for line in reader.first_bad] == [9, 10, 12, 13]
        assert "2 data bytes where 8 are announced" in reader.first_bad[0].reason

    def test_relative_times_of_asc_add_up_over_all_its_lines(self, tmp_path):
        frames = list(read_log(put(tmp_path, "a.asc", ASC.format(kind="relative"))))
        assert [frame.time_ns - frames[0].time_ns for frame in frames] == [0, 1_400_000_000, 3_500_000_000]

    @pytest.mark.parametrize("events", ["", "internal events logged\n", "no internal events logged\n"])
    def test_without_a_start_times_begin_at_0_and_that_is_said(self, tmp_path, events):
        text = f"base hex\n{events}   1.500000 1  123             Rx   d 1 11\n"
        reader = read_log(put(tmp_path, "a.asc", text))
        assert [frame.time_ns for frame in reader] == [1_500_000_000]
        assert reader.notes == ["the file does not say when it began: times start at 0"]

    @pytest.mark.parametrize("suffix", [".asc", ".trc", ".csv"])
    @pytest.mark.parametrize(
        "content",
        [os.urandom(100_000), b"", b"\n", b"x" * 3_000_000, b"1 1 1 1 1\n" * 5000, b";$STARTTIME=1e308\n;$FILEVERSION=2.0\n1\n",
         b"date x 1\nbase dec\n1.0 1 1 Rx d 99999999999 1\n" * 3, b"1.0,0x1,1,0,0,8,!!\n" * 3],
    )  # fmt: skip
    def test_garbage_is_no_frame_and_no_surprise(self, tmp_path, suffix, content):
        reader = read_log(put(tmp_path, f"a{suffix}", content))
        try:
            frames = list(itertools.islice(reader, 10_000))
        except LogError:
            return
        assert all(len(frame.data) <= 64 for frame in frames)

    def test_trc_lines_that_are_broken_are_named(self, tmp_path):
        text = (
            ";$FILEVERSION=1.1\n;$STARTTIME=41138.5\n;\n"
            "  1)      1059.9  Rx         0300  7  00 00 00 00 04 00 00\n"
            "  2)      zzz     Rx         0300  7  00 00 00 00 04 00 00\n"
            "  3)      1060.1  Tx     18FEF100  1  05\n"
        )
        reader = read_log(put(tmp_path, "a.trc", text))
        first, second = reader
        assert (first.can_id, second.can_id, second.is_received) == (0x300, 0x18FEF100 | EXTENDED, False)
        assert second.time_ns - first.time_ns == 200_000
        assert first.time_ns == 1345204800_000_000_000 + 1_059_900_000
        assert [line.number for line in reader.first_bad] == [5]


class TestBlf:
    @pytest.fixture
    def content(self, tmp_path):
        frames = [LoggedFrame(START_NS + step * 1000, "1", step & 0x7FF, step.to_bytes(8, "big"))
                  for step in range(9000)]  # fmt: skip
        return write(tmp_path / "whole.blf", frames).read_bytes(), frames

    def test_a_file_that_was_cut_off_gives_the_frames_before_and_says_so(self, tmp_path, content):
        data, frames = content
        for end in (len(data) - 4, len(data) // 2, 200, 150):
            path = put(tmp_path, "cut.blf", data[:end])
            found = []
            with pytest.raises(LogError, match=r"cut\.blf: cut off"):
                for frame in read_log(path):
                    found += [frame]
            assert found == frames[: len(found)]
        assert len(list(read_log(put(tmp_path, "whole.blf", data)))) == 9000

    def test_no_single_wrong_byte_is_a_surprise(self, tmp_path):
        data = write(tmp_path / "a.blf", FRAMES).read_bytes()
        for place in range(len(data)):
            for value in (0, 0xFF):
                path = put(tmp_path, "b.blf", data[:place] + bytes([value]) + data[place + 1 :])
                try:
                    frames = list(read_log(path))
                except LogError:
                    continue
                assert all(len(frame.data) <= 64 for frame in frames)

    def test_no_wrong_byte_inside_a_container_is_a_surprise(self, tmp_path):
        data = write(tmp_path / "a.blf", FRAMES).read_bytes()
        inside = zlib.decompress(data[144 + 32 :])
        for place in range(len(inside)):
            for value in (0, 1, 0x7F, 0xFF):
                changed = inside[:place] + bytes([value]) + inside[place + 1 :]
                path = put(tmp_path, "b.blf", data[:144] + container(changed))
                try:
                    frames = list(read_log(path))
                except LogError:
                    continue
                assert all(len(frame.data) <= 64 for frame in frames)

    def test_what_unpacks_without_end_is_refused(self, tmp_path, content):
        path = put(tmp_path, "b.blf", content[0][:144] + container(bytes(64 * 1024 * 1024)))
        reader = read_log(path)
        assert list(reader) == []
        assert "unpacks to more than 16 MiB" in reader.first_bad[0].reason

    def test_an_object_that_claims_to_go_on_for_ever_costs_no_memory(self, tmp_path, content):
        endless = b"LOBJ" + bytes([32, 0, 1, 0]) + b"\xff\xff\xff\xff" + bytes([65, 0, 0, 0]) + bytes(1000)
        frame = b"LOBJ" + bytes([32, 0, 1, 0]) + b"\xff\xff\xff\xff" + bytes([1, 0, 0, 0]) + bytes(1000)
        blocks = container(endless) + container(bytes(100_000)) * 200
        for inside in (blocks, container(frame)):
            # What follows is found again.
            reader = read_log(put(tmp_path, "b.blf", content[0][:144] + inside + content[0][144:]))
            assert len(list(reader)) == 9000
            assert "an object of 4294967295 bytes" in reader.first_bad[0].reason

    def test_frames_may_go_on_in_the_next_container(self, tmp_path, content):
        data, frames = content
        inside = b""
        place = 144
        while place < len(data):
            size = int.from_bytes(data[place + 8 : place + 12], "little")
            inside += zlib.decompress(data[place + 32 : place + size])
            place += size + size % 4
        for step in (17, 1000):
            parts = b"".join(container(inside[at : at + step]) for at in range(0, 48 * 200, step))
            found = list(read_log(put(tmp_path, "b.blf", data[:144] + parts)))
            assert found == frames[: len(found)]
            assert len(found) >= 180

    def test_fd_64_objects_and_ten_microseconds_are_read(self, tmp_path):
        writer = can.BLFWriter(tmp_path / "a.blf")
        writer.stop()
        head = (tmp_path / "a.blf").read_bytes()[:144]
        body = blf._CAN_FD_64.pack(3, 9, 12, 0, 0x123, 0, 0x3000, 0, 0, 0, 0, 0, 1, 0, 0) + b"\x05" * 10
        size = 32 + len(body)
        item = blf._OBJECT.pack(b"LOBJ", 32, 1, size, 101) + blf._STAMP_V1.pack(1, 0, 0, 7) + body
        [frame] = read_log(put(tmp_path, "b.blf", head + container(item)))
        assert frame == LoggedFrame(70_000, "3", 0x123, b"\x05" * 10 + b"\0\0", FD | BITRATE_SWITCH, False)


def container(data):
    packed = zlib.compress(data, 1)
    size = 32 + len(packed)
    return (
        blf._OBJECT.pack(b"LOBJ", 16, 1, size, 10)
        + blf._CONTAINER.pack(2, len(data))
        + packed
        + bytes(size % 4)
    )


class TestFiles:
    def test_unknown_suffixes_name_the_known_ones(self, tmp_path):
        with pytest.raises(
            LogError, match=r"'\.mdf' is no log format; known are \.log, \.asc, \.blf, \.trc, \.csv"
        ):
            read_log(tmp_path / "a.mdf")
        with pytest.raises(LogError, match=r"'\.trc' cannot be written; known are \.log, \.asc, \.blf"):
            LogWriter(tmp_path / "a.trc")

    def test_a_missing_log_is_said_when_it_is_read(self, tmp_path):
        with pytest.raises(LogError, match=r"a\.log: no such file or directory"):
            list(read_log(tmp_path / "a.log"))

    def test_a_file_is_not_overwritten_unawares(self, tmp_path):
        path = put(tmp_path, "a.log", "precious")
        with pytest.raises(LogError, match="is there already"):
            LogWriter(path)
        assert path.read_text() == "precious"
        LogWriter(path, overwrites=True).close()
        assert path.read_text() == ""

    @pytest.mark.parametrize("suffix", [".log", ".asc", ".blf"])
    def test_what_was_flushed_can_be_read_though_the_file_was_never_closed(self, tmp_path, suffix):
        writer = LogWriter(tmp_path / f"a{suffix}")
        for frame in FRAMES:
            writer.write(frame)
        writer.flush()
        copy = put(tmp_path, f"copy{suffix}", (tmp_path / f"a{suffix}").read_bytes())
        assert list(read_log(copy)) == FRAMES
        writer.write(FRAMES[0]._replace(time_ns=FRAMES[-1].time_ns))
        writer.close()
        assert len(list(read_log(tmp_path / f"a{suffix}"))) == len(FRAMES) + 1
        with pytest.raises(LogError, match="is closed"):
            writer.write(FRAMES[0])

    def test_fd_lengths_are_those_of_the_standard(self):
        assert [can.util.dlc2len(code) for code in range(16)] == list(FD_LENGTHS)
