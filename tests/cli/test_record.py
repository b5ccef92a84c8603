"""`fieldbus record`: CAN buses as a log file."""

import asyncio
import itertools
import os
import signal
import threading
import time

import can
import pytest
from typer.testing import CliRunner

from fieldbus.canbus.bus import ERROR, EXTENDED, FD, OWN, BusStatus, Frame
from fieldbus.canbus.logs.reading import read_log
from fieldbus.cli import record as record_module
from fieldbus.cli.main import app
from fieldbus.cli.record import Recording, _parse_filter
from fieldbus.errors import LinkDownError

_CHANNELS = itertools.count()


@pytest.fixture
def channel():
    return f"record{next(_CHANNELS)}x"


@pytest.fixture
def plant(tmp_path, channel):
    """A configuration with two CAN links and one that is none."""
    (tmp_path / "plant.yaml").write_text(
        "version: 1\n"
        "gateway: {name: test}\n"
        "links:\n"
        f"  can0: {{type: can, interface: virtual, channel: {channel}a}}\n"
        f"  can1: {{type: can, interface: virtual, channel: {channel}b}}\n"
        "  hmi: {type: modbus-server, host: 127.0.0.1, port: 9}\n"
        "devices: {}\n"
        "routes: []\n"
    )
    return tmp_path / "plant.yaml"


@pytest.fixture(autouse=True)
def _leave_logging_alone(monkeypatch):
    monkeypatch.setattr("fieldbus.gateway.log.set_up", lambda level="info": None)


def record(*arguments, code=0):
    done = CliRunner().invoke(app, ["record", *map(str, arguments)])
    assert done.exit_code == code, f"{done.output}\n{done.exception}"
    return done


class Sender(threading.Thread):
    """Sends frames on a virtual bus for as long as it lives."""

    def __init__(self, channel, *messages):
        super().__init__(daemon=True)
        self.bus = can.Bus(interface="virtual", channel=channel)
        self.messages = messages
        self.over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()
        self.bus.shutdown()

    def run(self):
        while not self.over.wait(0.01):
            for message in self.messages:
                self.bus.send(message)


def message(number, data=b"\x01\x02", **options):
    return can.Message(arbitration_id=number, data=data, is_extended_id=number > 0x7FF, **options)


@pytest.mark.parametrize("suffix", [".log", ".asc", ".blf"])
def test_all_frames_of_all_links_are_written_for_as_long_as_is_asked(plant, channel, tmp_path, suffix):
    output = tmp_path / f"drive{suffix}"
    first = Sender(f"{channel}a", message(0x123), message(0x18FEF100, b""))
    with first, Sender(f"{channel}b", message(0x200, bytes(12), is_fd=True)):
        began_s = time.monotonic()
        done = record(plant, output, "--for", "300ms")
        assert 0.3 <= time.monotonic() - began_s < 5
    frames = list(read_log(output))
    assert done.stderr.splitlines()[-1] == f"{len(frames)} frames written to {output}; 0 lost"
    seen = {(frame.channel, frame.can_id, frame.data, frame.flags) for frame in frames}
    names = ("can0", "can1") if suffix == ".log" else ("1", "2")
    assert seen == {
        (names[0], 0x123, b"\x01\x02", 0),
        (names[0], 0x18FEF100 | EXTENDED, b"", 0),
        (names[1], 0x200, bytes(12), FD),
    }
    assert abs(frames[0].time_ns - time.time_ns()) < 60 * 10**9


def test_links_and_identifiers_can_be_chosen(plant, channel, tmp_path):
    sender = Sender(
        f"{channel}a", *(message(number) for number in (0x100, 0x101, 0x110, 0x00000100, 0x18FEF100))
    )
    with sender, Sender(f"{channel}b", message(0x100)):
        options = [
            "--for",
            "200ms",
            "--link",
            "can0",
            "--filter",
            "100",
            "--filter",
            "18FEF100",
            "--filter",
            "110:7F0",
        ]
        record(plant, tmp_path / "a.log", *options)
    frames = list(read_log(tmp_path / "a.log"))
    assert {frame.channel for frame in frames} == {"can0"}
    assert {frame.can_id for frame in frames} == {0x100, 0x110, 0x18FEF100 | EXTENDED}


def test_filters_are_those_of_candump():
    assert _parse_filter("123") == (0x123, 0x7FF | EXTENDED)
    assert _parse_filter("0x7FF") == (0x7FF, 0x7FF | EXTENDED)
    assert _parse_filter("00000123") == (0x123 | EXTENDED, 0x1FFFFFFF | EXTENDED)
    assert _parse_filter("100:700") == (0x100, 0x700 | EXTENDED)


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_overwritten(plant, tmp_path):
    output = tmp_path / "a.log"
    output.write_text("precious")
    assert "is there already; --force overwrites it" in record(plant, output, "--for", "50ms", code=1).stderr
    assert output.read_text() == "precious"
    record(plant, output, "--for", "50ms", "--force")
    assert output.read_text() == ""


def test_what_cannot_be_recorded_is_said_and_leaves_no_file(plant, tmp_path):
    output = tmp_path / "a.log"
    assert (
        "there is no CAN link 'can2' (did you mean 'can"
        in record(plant, output, "--link", "can2", code=1).stderr
    )
    assert "there is no CAN link 'hmi'" in record(plant, output, "--link", "hmi", code=1).stderr
    record(plant, tmp_path / "a.txt", code=2)
    record(plant, output, "--filter", "xyz", code=2)
    record(plant, output, "--filter", "FFF", code=2)
    record(plant, output, "--for", "soon", code=2)
    assert "no such file" in record(plant, tmp_path / "nowhere" / "a.log", "--for", "1s", code=1).stderr
    text = plant.read_text().replace("interface: virtual", "interface: nonsense")
    plant.write_text(text)
    assert "can0: " in record(plant, output, "--for", "1s", code=1).stderr
    output.write_text("precious")
    record(plant, output, "--for", "1s", "--force", code=1)
    assert output.read_text() == "precious"


def test_a_signal_ends_the_recording_and_the_file_is_whole(plant, channel, tmp_path):
    with Sender(f"{channel}a", message(0x123)):
        killer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        killer.start()
        done = record(plant, tmp_path / "a.blf")
        killer.join()
    frames = list(read_log(tmp_path / "a.blf"))
    assert len(frames) > 5
    assert f"{len(frames)} frames written" in done.stderr


class FakeBus:
    """A bus that gives what it is told to, and can be lost."""

    def __init__(self, frames=(), dropped=0):
        self.frames = list(frames)
        self.dropped = dropped
        self.is_gone = False
        self.closed = False
        self.sent = []

    def start(self, ready, lost):
        self.ready, self.lost = ready, lost
        asyncio.get_running_loop().call_soon(ready)

    def drain(self, limit):
        if self.is_gone:
            raise LinkDownError("no such device")
        taken, self.frames = self.frames[:limit], self.frames[limit:]
        return taken

    def select(self, filters):
        self.filters = filters

    def send(self, *args):
        raise AssertionError("a recorder sends nothing")

    def status(self):
        return BusStatus()

    async def close(self):
        self.closed = True


class FakeLink:
    options = {"interface": "socketcan", "channel": "vcan7"}  # noqa: RUF012 - a stand-in
    endpoint = "socketcan vcan7"


@pytest.fixture
def buses(monkeypatch):
    """Buses that are opened one after the other."""
    waiting = []

    async def open_bus(options, **_):
        item = waiting.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    monkeypatch.setattr(record_module, "open_bus", open_bus)
    monkeypatch.setattr(record_module, "_TRY_AGAIN_S", 0.01)
    return waiting


async def test_what_the_kernel_lost_is_counted_and_who_sent_is_kept(buses, tmp_path):
    bus = FakeBus(
        [Frame(0x100, b"", 10**9), Frame(0x101, b"", 2 * 10**9, OWN), Frame(ERROR | 4, bytes(8), 3 * 10**9)],
        17,
    )
    buses.append(bus)
    recording = Recording({"can0": FakeLink()}, None)
    await recording.run(tmp_path / "a.log", 0.1, overwrites=False)
    assert (recording.frames, recording.lost, bus.closed) == (3, 17, True)
    assert (tmp_path / "a.log").read_text() == (
        "(0000000001.000000) vcan7 100#\n(0000000002.000000) vcan7 101# T\n"
        "(0000000003.000000) vcan7 20000004#0000000000000000\n"
    )


async def test_a_bus_that_is_lost_is_opened_again(buses, tmp_path):
    first, second = FakeBus([Frame(0x100, b"", 0)], 3), FakeBus([Frame(0x101, b"", 0)], 4)
    buses.extend([first, LinkDownError("not yet"), second])
    recording = Recording({"can0": FakeLink()}, None)
    asyncio.get_running_loop().call_later(0.05, lambda: first.lost(LinkDownError("gone")))
    await recording.run(tmp_path / "a.log", 0.3, overwrites=False)
    assert (recording.frames, recording.lost, first.closed, second.closed) == (2, 7, True, True)


async def test_a_bus_that_is_gone_when_it_is_drained_is_lost_too(buses, tmp_path):
    first, second = FakeBus(), FakeBus([Frame(0x101, b"", 0)])
    first.is_gone = True
    buses.extend([first, second])
    recording = Recording({"can0": FakeLink()}, None)
    await recording.run(tmp_path / "a.log", 0.2, overwrites=False)
    assert recording.frames == 1


async def test_a_recorder_that_is_killed_leaves_what_it_had_a_second_before(buses, tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "_FLUSH_S", 0.05)
    buses.append(FakeBus([Frame(0x100 + index, b"", 0) for index in range(100)]))
    recording = Recording({"can0": FakeLink()}, None)
    running = asyncio.create_task(recording.run(tmp_path / "a.blf", 5, overwrites=False))
    await asyncio.sleep(0.3)
    copy = tmp_path / "copy.blf"
    copy.write_bytes((tmp_path / "a.blf").read_bytes())
    assert len(list(read_log(copy))) == 100
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(list(read_log(tmp_path / "a.blf"))) == 100


async def test_a_full_disk_ends_the_recording(buses, tmp_path, monkeypatch):
    buses.append(FakeBus([Frame(0x100, b"", 0)] * 10))

    def write(self, frame):
        raise record_module.LogError(self.path, "no space left on device")

    monkeypatch.setattr(record_module.LogWriter, "write", write)
    recording = Recording({"can0": FakeLink()}, None)
    with pytest.raises(record_module.LogError, match="no space left on device"):
        await recording.run(tmp_path / "a.log", 5, overwrites=False)
