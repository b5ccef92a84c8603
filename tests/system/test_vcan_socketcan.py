"""Buses of Linux's own CAN on virtual interfaces, with can-utils as peers.

These run where virtual CAN exists (tools/vcan), possibly in an emulated machine, whose clock is honest
and whose processor is slow: bounds on time are wide where only the scheduler is to blame.
"""

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from statistics import median

import pytest
from conftest import eventually, program

from fieldbus.canbus.bus import BITRATE_SWITCH, ERROR, EXTENDED, FD, OWN, REMOTE
from fieldbus.canbus.kernel.error_frames import BUS_OFF, decode_error_frame
from fieldbus.canbus.kernel.filters import EXACT_STANDARD
from fieldbus.canbus.kernel.receiving import Many, Single
from fieldbus.canbus.kernel.socketcan import open_socketcan
from fieldbus.errors import LinkDownError, RefusedError

pytestmark = [pytest.mark.vcan, pytest.mark.timeout(240)]

KERNEL_DEFAULT = 106_496
"""The kernel doubles it to its own default."""


def ip(*arguments):
    subprocess.run([program("ip", "iproute2"), *arguments], check=True, capture_output=True)


@pytest.fixture
def interface():
    """vcan1, to be spoilt."""
    yield "vcan1"
    subprocess.run(["ip", "link", "del", "vcan1"], check=False, capture_output=True)
    ip("link", "add", "vcan1", "type", "vcan")
    ip("link", "set", "vcan1", "mtu", "72", "up")


@pytest.fixture
async def buses():
    """Open buses that are closed with the test."""
    opened = []

    async def begin(channel="vcan0", **options):
        opened.append(await open_socketcan(channel, **options))
        return opened[-1]

    yield begin
    for bus in opened:
        await bus.close()


def everything(bus):
    found = []
    while frames := bus.drain(500):
        found += frames
    return found


def cangen(count, *arguments):
    tool = program("cangen", "can-utils")
    subprocess.run([tool, "vcan0", "-g", "0", "-n", str(count), *arguments], check=True, timeout=120)


@pytest.mark.parametrize("way", [Many, Single])
@pytest.mark.parametrize("size", [KERNEL_DEFAULT, None])
async def test_of_a_burst_nothing_is_missing_that_is_not_counted(buses, size, way):
    bus = await buses() if size is None else await buses(receive_buffer=size)
    if way is Single:
        bus._receiver = Single(bus._raw)
    else:
        assert isinstance(bus._receiver, Many)
    peer = await buses()
    before_ns = time.time_ns()
    cangen(3000, "-I", "123", "-L", "8", "-D", "i")
    after_ns = time.time_ns()
    assert bus.dropped == 0
    bus.status()
    dropped = bus.dropped  # nothing has been read: it is known at once
    frames = everything(bus)
    assert len(frames) + dropped == 3000
    assert (dropped == 0) == (size is None)
    numbers = [int.from_bytes(frame.data, "little") for frame in frames]
    assert numbers == list(range(len(frames)))  # what was lost are the last
    stamps = [frame.time_ns for frame in frames]
    assert stamps == sorted(stamps)
    assert before_ns <= stamps[0] <= stamps[-1] <= after_ns
    peer.send(1, b"")
    assert len(everything(bus)) == 1
    assert bus.dropped == dropped  # which this frame said once more
    bus.status()
    assert bus.dropped == dropped


async def test_what_status_has_counted_while_frames_waited_is_not_counted_again(buses):
    bus, peer = await buses(receive_buffer=KERNEL_DEFAULT), await buses()
    received = 0
    for _ in range(5):
        for number in range(500):
            peer.send(0x100, number.to_bytes(2, "little"))
        received += len(bus.drain(50))
        bus.status()
    received += len(everything(bus))
    bus.status()
    assert bus.dropped > 0
    assert received + bus.dropped == 2500


async def test_every_kind_of_frame_comes_as_it_was_sent(buses):
    bus, peer = await buses(), await buses()
    sent = [
        (0x123, b"12345678", 0),
        (EXTENDED | 0x18FEF1FE, b"", 0),
        (REMOTE | 0x7FF, bytes(5), 0),
        (0x200, bytes(range(64)), FD),
        (EXTENDED | 0x200, bytes(range(12)), FD | BITRATE_SWITCH),
        (0x201, b"1", FD),
    ]
    for frame in sent:
        assert peer.send(*frame)
    assert [(f.can_id, f.data, f.flags) for f in everything(bus)] == [(*f[:2], f[2] | OWN) for f in sent]
    assert everything(peer) == []


async def test_a_frame_that_this_machine_only_forwards_is_not_its_own(buses):
    cangw = program("cangw", "can-utils")
    subprocess.run([cangw, "-A", "-s", "vcan0", "-d", "vcan1", "-e"], check=True)
    try:
        peer, bus = await buses("vcan0"), await buses("vcan1")
        peer.send(0x10, b"forward")
        (frame,) = everything(bus)
        assert (frame.can_id, frame.data, frame.flags) == (0x10, b"forward", 0)
    finally:
        subprocess.run([cangw, "-F"], check=True)


async def test_filters_filter(buses):
    bus, peer = await buses(), await buses()

    def heard(filters):
        bus.select(filters)
        for can_id in range(0x800):
            peer.send(can_id, b"")
        peer.send(EXTENDED | 0x100, b"")
        peer.send(REMOTE | 0x100, b"")
        peer.send(ERROR | 0x40, bytes(8))
        return [frame.can_id for frame in everything(bus)]

    always = ERROR | 0x40
    others = [EXTENDED | 0x100, REMOTE | 0x100]
    assert heard([]) == [always]
    assert heard([(0x100, EXACT_STANDARD)]) == [0x100, always]
    assert heard([(0x100, EXTENDED | 0x7F0), (0x105, 0x7FF)]) == [
        *range(0x100, 0x110), REMOTE | 0x100, always,
    ]  # fmt: skip
    assert heard([(EXTENDED | 0x100, EXTENDED | 0x1FFF_FFFF)]) == [EXTENDED | 0x100, always]
    assert heard(None) == [*range(0x800), *others, always]
    many = range(0, 0x800, 3)  # 683: more than the kernel takes
    found = set(heard([(can_id, EXACT_STANDARD) for can_id in many]))
    assert found > set(many)
    assert len(found) < 1200


async def test_filters_are_exchanged_without_losing_or_doubling_a_frame(buses):
    bus = await buses()
    tool = program("cangen", "can-utils")
    options = ("-g", "0", "-n", "3000", "-I", "123", "-L", "8", "-D", "i")
    sender = subprocess.Popen([tool, "vcan0", *options])
    changes = 0
    while sender.poll() is None:
        bus.select(
            [(0x123, EXACT_STANDARD)]
            if changes % 3
            else None
            if changes % 2
            else [(0x120, 0x7F0), (0x123, 0x7FF)]
        )
        changes += 1
    assert changes > 20
    numbers = [int.from_bytes(frame.data, "little") for frame in everything(bus)]
    assert numbers == list(range(3000))


async def test_an_error_frame_of_a_controller_arrives(buses):
    bus, peer = await buses(), await buses()
    bus.select([])
    peer.send(ERROR | 0x240, bytes([0, 0, 0, 0, 0, 0, 255, 3]))
    (frame,) = everything(bus)
    assert frame.can_id & ERROR
    said = decode_error_frame(frame.can_id, frame.data)
    assert (said.state, said.causes, said.tx_errors, said.rx_errors) == (BUS_OFF, ("bus-off",), 255, 3)


async def test_status_counts_each_frame_of_a_virtual_bus_once(buses):
    bus, peer = await buses(), await buses()
    before = bus.status()
    for _ in range(10):
        peer.send(1, b"1234")
    after = bus.status()
    assert (after.frames - before.frames, after.data_bytes - before.data_bytes) == (10, 40)
    assert (after.state, after.bitrate) == (None, None)
    assert await bus.restart() == "vcan0 has no controller"


# --- the interface


@pytest.mark.parametrize("channel", ["vcan9", "lo", "", "a" * 16, "a\0b", "vcan0 "])
async def test_what_is_no_can_interface_is_a_link_that_is_down(channel):
    with pytest.raises(LinkDownError) as caught:
        await open_socketcan(channel, fd=True)
    assert str(caught.value) in ("no such device", f"'{channel}' cannot be the name of an interface")


async def test_an_interface_that_is_down_cannot_be_opened(interface):
    ip("link", "set", interface, "down")
    with pytest.raises(LinkDownError, match=r"^network is down$"):
        await open_socketcan(interface, fd=False)
    ip("link", "set", interface, "up")
    await (await open_socketcan(interface, fd=False)).close()


def loops():
    import uvloop

    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("loop_factory", loops())
@pytest.mark.parametrize("change", [("set", "vcan1", "down"), ("del", "vcan1")])
@pytest.mark.parametrize("who", ["reader", "sender"])
def test_an_interface_that_goes_away_ends_the_bus_and_a_new_one_can_be_opened(
    interface, loop_factory, change, who
):
    expected = {"set": "network is down", "del": "no such device"}[change[0]]

    async def run():
        bus = await open_socketcan(interface, fd=True)
        told = []

        def ready():
            try:
                bus.drain(100)
            except LinkDownError as error:
                told.append(str(error))

        def lost(error):
            told.append(str(error))

        bus.start(ready, lost)
        await asyncio.sleep(0.1)
        assert told == []
        ip("link", *change)
        if who == "sender":
            with pytest.raises(LinkDownError, match=expected):
                bus.send(1, b"")
        await eventually(lambda: told, 20)
        assert set(told) == {expected}
        for act in (lambda: bus.drain(1), lambda: bus.send(1, b""), lambda: bus.select(None)):
            with pytest.raises(LinkDownError, match=expected):
                act()
        bus.status()
        await bus.close()
        await bus.close()
        if change[0] == "del":
            ip("link", "add", "vcan1", "type", "vcan")
        ip("link", "set", "vcan1", "up")
        again, peer = await open_socketcan(interface, fd=True), await open_socketcan(interface, fd=True)
        frames = []
        again.start(lambda: frames.extend(again.drain(100)), lost)
        peer.send(5, b"back")
        await eventually(lambda: frames, 20)
        assert frames[0].data == b"back"
        await again.close()
        await peer.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())


async def test_more_than_one_drains_worth_is_announced_again(buses):
    bus, peer = await buses(), await buses()
    found = []
    bus.start(lambda: found.append(len(bus.drain(10))), found.append)
    for _ in range(95):
        peer.send(1, b"")
    await eventually(lambda: sum(found) == 95, 20)
    assert found == [10] * 9 + [5]


async def test_a_frame_that_the_interface_cannot_have_harms_nothing(interface, buses):
    ip("link", "set", interface, "down")
    ip("link", "set", interface, "mtu", "16")
    ip("link", "set", interface, "up")
    bus, peer = await buses(interface, fd=True), await buses(interface)
    for act in (
        lambda: bus.send(1, bytes(12), FD),
        lambda: bus.send(1, bytes(9)),
        lambda: bus.repeat(1, [bytes(12)], 0.1, FD),
    ):
        with pytest.raises(RefusedError):
            act()
    assert bus.send(1, b"12345678")
    assert [frame.data for frame in everything(peer)] == [b"12345678"]


# --- the kernel's clock


def gaps(stamps):
    return [later - earlier for earlier, later in itertools.pairwise(stamps)]


async def received_from(bus, seconds):
    await asyncio.sleep(seconds)
    return everything(bus)


async def test_a_sequence_rotates_and_its_content_changes_without_touching_the_rhythm(buses):
    bus, peer = await buses(), await buses()
    began_ns = time.time_ns()
    cyclic = bus.repeat(0x300, [bytes([0, n]) for n in range(4)], 0.1)
    generation = 0
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        await asyncio.sleep(0.03)
        generation += 1
        cyclic.update([bytes([generation & 0xFF, n]) for n in range(4)], at_once=False)
        if generation % 20 == 0:
            cyclic.keep_alive()
    frames = everything(peer)
    cyclic.stop()
    everything(peer)
    assert await received_from(peer, 0.4) == []
    assert (frames[0].time_ns - began_ns) / 1e9 < 0.09  # the first at once
    assert [frame.data[1] for frame in frames] == [n % 4 for n in range(len(frames))]
    generations = [frame.data[0] for frame in frames]
    assert generations == sorted(generations)
    assert generations[-1] > 10
    between = gaps([frame.time_ns / 1e9 for frame in frames])
    assert 0.095 < median(between) < 0.11
    assert len(frames) >= 25


async def test_an_update_that_goes_out_at_once_is_one_more_frame(buses):
    bus, peer = await buses(), await buses()
    cyclic = bus.repeat(0x301, [b"old"], 1.0)
    await asyncio.sleep(0.3)
    cyclic.update([b"new"], at_once=True)
    frames = await received_from(peer, 2.0)
    assert [frame.data for frame in frames[:4]] == [b"old", b"new", b"new", b"new"]
    at_s = [(frame.time_ns - frames[0].time_ns) / 1e9 for frame in frames]
    assert 0.25 < at_s[1] < 0.8
    assert 0.95 < at_s[2] < 1.2  # where it would have been anyway


async def test_another_number_of_frames_begins_with_the_first(buses):
    bus, peer = await buses(), await buses()
    cyclic = bus.repeat(0x302, [b"a", b"b", b"c"], 0.05)
    await asyncio.sleep(0.26)
    everything(peer)
    cyclic.update([b"d", b"e"], at_once=False)
    fewer = [frame.data for frame in await received_from(peer, 0.3)]
    assert fewer[:4] == [b"d", b"e", b"d", b"e"]
    cyclic.update([b"f", b"g", b"h", b"i"], at_once=False)
    more = [frame.data for frame in await received_from(peer, 0.4)]
    assert more[:5] == [b"f", b"g", b"h", b"i", b"f"]


async def test_can_fd_frames_and_long_sequences_are_repeated_too(buses):
    bus, peer = await buses(), await buses()
    sequence = [bytes([n, *range(63)]) for n in range(256)]
    cyclic = bus.repeat(0x303, sequence, 0.002, FD | BITRATE_SWITCH)
    assert bus.repeat(0x304, [b""] * 257, 0.1) is None
    frames = await received_from(peer, 3)
    cyclic.stop()
    assert len(frames) > 300
    assert [frame.data for frame in frames[:300]] == [sequence[n % 256] for n in range(300)]
    assert {frame.flags for frame in frames} == {FD | BITRATE_SWITCH | OWN}


async def test_a_second_repetition_takes_the_first_ones_place(buses):
    bus, peer = await buses(), await buses()
    first = bus.repeat(0x305, [b"first"], 0.05)
    second = bus.repeat(0x305, [b"2nd", b"3rd"], 0.05)
    everything(peer)
    first.update([b"first"], at_once=True)
    first.keep_alive()
    first.stop()
    assert {frame.data for frame in await received_from(peer, 0.5)} == {b"2nd", b"3rd"}
    second.stop()
    everything(peer)
    assert await received_from(peer, 0.3) == []


REPEATER = """
import asyncio
from fieldbus.canbus.kernel.socketcan import open_socketcan

async def main():
    bus = await open_socketcan("vcan0", fd=False)
    cyclic = bus.repeat(0x310, [bytes([n]) for n in range(10)], 0.1)
    while True:
        await asyncio.sleep(0.5)
        cyclic.keep_alive()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("change", "said"), [(("set", "vcan1", "down"), "network is down"), (("del", "vcan1"), "no such device")]
)
async def test_a_repetition_on_an_interface_that_goes_away_says_so(interface, buses, change, said):
    bus = await buses(interface)
    cyclic = bus.repeat(0x306, [b"a"], 0.05)
    ip("link", *change)
    with pytest.raises(LinkDownError, match=said):
        cyclic.keep_alive()
    cyclic.stop()


def test_the_rhythm_outlives_a_stopped_process_for_five_seconds(start, tmp_path):
    out = tmp_path / "candump"
    with out.open("w") as file:
        candump = subprocess.Popen([program("candump", "can-utils"), "-t", "a", "vcan0,310:7FF"], stdout=file)

    def stamps():
        return [float(stamp) for stamp in re.findall(r"\((\d+\.\d+)\)", out.read_text())]

    def wait_for(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    try:
        time.sleep(1)
        repeater = start(sys.executable, "-c", REPEATER)
        pid = repeater.popen.pid
        wait_for(lambda: len(stamps()) > 10)
        os.kill(pid, signal.SIGSTOP)
        stopped_s = time.time()
        time.sleep(1.5)
        os.kill(pid, signal.SIGCONT)
        gone_on_s = time.time()
        time.sleep(1.5)
        meanwhile = [stamp for stamp in stamps() if stopped_s < stamp < gone_on_s + 0.5]
        assert len(meanwhile) >= 17
        assert 0.095 < median(gaps(meanwhile)) < 0.11
        assert max(gaps(meanwhile)) < 0.3

        os.kill(pid, signal.SIGSTOP)
        stopped_s = time.time()
        time.sleep(8)
        lived_s = stamps()[-1] - stopped_s
        assert 4.0 < lived_s < 6.0, lived_s

        before = len(stamps())
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: len(stamps()) > before + 10)
        os.kill(pid, signal.SIGKILL)
        killed_s = time.time()
        time.sleep(1)
        assert stamps()[-1] - killed_s < 0.3
    finally:
        candump.terminate()
        candump.wait(10)
    data = re.findall(r"\[1\]\s+(\w\w)", out.read_text())
    steps = {(int(later, 16) - int(earlier, 16)) % 10 for earlier, later in itertools.pairwise(data)}
    assert steps == {1}, "each frame of the sequence in its turn, also after a pause"
