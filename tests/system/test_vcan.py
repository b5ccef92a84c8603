"""Kernel CAN: can-utils and mbpoll as the peers of a gateway in a process of its own.

These run where virtual CAN exists (tools/vcan); in an emulated machine Python takes ten to twenty
times as long as elsewhere, hence the patience.
"""

import asyncio
import re
import struct
import subprocess
import time

import can
import pytest
from conftest import eventually, free_port, program, wait_for_port

from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.link import CanLink
from fieldbus.canbus.messages import CanMessage
from fieldbus.errors import LinkDownError
from fieldbus.model import Access, Kind, Point

pytestmark = [pytest.mark.vcan, pytest.mark.timeout(300)]
PATIENCE_S = 90

DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 256 EngineStatus: 8 ECU
 SG_ EngineSpeed : 0|16@1+ (0.125,0) [0|8000] "rpm" GW
BO_ 512 PanelStatus: 2 GW
 SG_ CoolantTemp : 0|16@1- (0.1,0) [-40|210] "degC" ECU
BO_ 2566844926 Ext: 8 ECU
 SG_ Torque : 7|16@0- (1,0) [0|0] "Nm" GW
BA_DEF_ BO_ "GenMsgCycleTime" INT 0 65535;
BA_ "GenMsgCycleTime" BO_ 256 1000;
"""

PLANT = """version: 1
gateway: {{name: gw}}
links:
  can0: {{type: can, interface: socketcan, channel: vcan0}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {port}}}
devices:
  engine: {{link: can0, database: engine.dbc}}
  panel:
    link: hmi
    points:
      engine_speed: {{table: holding, address: 0, type: float32}}
      torque: {{table: holding, address: 2, type: int16}}
      setpoint: {{table: holding, address: 10, type: float32, access: readwrite}}
routes:
  - {{from: engine.EngineStatus.EngineSpeed, to: panel.engine_speed}}
  - {{from: engine.Ext.Torque, to: panel.torque}}
  - {{from: panel.setpoint, to: engine.PanelStatus.CoolantTemp}}
"""


@pytest.fixture
def gateway(tmp_path, fieldbus):
    """A gateway between vcan0 and a Modbus port; returns the port."""
    port = free_port()
    (tmp_path / "engine.dbc").write_text(DBC)
    (tmp_path / "plant.yaml").write_text(PLANT.format(port=port))
    process = fieldbus("run", str(tmp_path / "plant.yaml"))
    wait_for_port(port, PATIENCE_S)
    yield port
    out = process.stop(60)
    assert process.popen.returncode == 0, out
    assert "Traceback" not in out


def mbpoll(port, *arguments):
    """Return what mbpoll reads (or writes), as text."""
    tool = program("mbpoll", "mbpoll")
    command = [tool, "-m", "tcp", "-p", str(port), "-o", "5", "-1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout


def test_mbpoll_reads_what_a_can_node_sent_with_cansend(gateway):
    cansend = program("cansend", "can-utils")
    deadline = time.monotonic() + PATIENCE_S
    out = ""
    while "1500" not in out:
        assert time.monotonic() < deadline, out
        subprocess.run([cansend, "vcan0", "100#E02E000000000000"], check=True)  # 12000 * 0.125
        out = mbpoll(gateway, "-t", "4:float", "-B", "-r", "1", "127.0.0.1")
    assert re.search(r"\[1\]:\s+1500$", out, re.MULTILINE), out


def test_an_extended_big_endian_signal_arrives_too(gateway):
    cansend = program("cansend", "can-utils")
    deadline = time.monotonic() + PATIENCE_S
    out = ""
    while not re.search(r"\[3\]:\s+.*\(-2\)", out):
        assert time.monotonic() < deadline, out
        subprocess.run([cansend, "vcan0", "18FEF1FE#FFFE000000000000"], check=True)
        out = mbpoll(gateway, "-t", "4", "-r", "3", "127.0.0.1")


def test_candump_shows_the_frame_that_a_register_change_caused(gateway, start):
    candump = start(program("candump", "can-utils"), "-n", "1", "vcan0,200:7FF")
    time.sleep(2)
    data = struct.pack(">f", -12.5).hex()
    out = mbpoll(gateway, "-t", "4:float", "-B", "-r", "11", "127.0.0.1", "--", "-12.5")
    assert "Written 1 references" in out, (out, data)
    text, _ = candump.popen.communicate(timeout=PATIENCE_S)
    assert re.search(r"vcan0\s+200\s+\[2\]\s+83 FF", text), text  # -125, little endian


async def test_a_silent_node_makes_its_register_0b(gateway):
    cansend = program("cansend", "can-utils")
    deadline = time.monotonic() + PATIENCE_S
    while "1500" not in mbpoll(gateway, "-t", "4:float", "-B", "-r", "1", "127.0.0.1"):
        assert time.monotonic() < deadline
        subprocess.run([cansend, "vcan0", "100#E02E000000000000"], check=True)
    deadline = time.monotonic() + PATIENCE_S
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway)
    answer = b""
    while answer != bytes.fromhex("00010000000301830b"):
        assert time.monotonic() < deadline, answer
        writer.write(bytes.fromhex("000100000006010300000002"))
        answer = await reader.read(100)
        await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()


def described(frame_id, *, is_fd=False, length=8):
    signal = Signal("S", 0, 8)
    point = Point("ecu", "M.S", Kind.INT, Access.READWRITE, carries_quality=True)
    return CanMessage("ecu", Message("M", frame_id, False, length, [signal], is_fd), {signal: point})


async def run_link(link, batches):
    await link.connect()
    return asyncio.create_task(link.run(batches.append, lambda _: None))


async def test_fd_frames_are_received_and_own_frames_are_not():
    heard, own = described(0x300, is_fd=True, length=64), described(0x301)
    point = next(iter(own.points.values()))
    listening = described(0x301)
    options = {"interface": "socketcan", "channel": "vcan1", "fd": True}
    link = CanLink("can1", options, [heard, own, listening], [point])
    batches = []
    running = await run_link(link, batches)
    peer = can.Bus(**options)
    try:
        await asyncio.sleep(0.2)
        await link.write({point: 9})
        peer.send(
            can.Message(arbitration_id=0x300, is_extended_id=False, is_fd=True, data=bytes([7]) + bytes(63))
        )
        await eventually(lambda: batches, 20)
        await asyncio.sleep(0.5)
        assert [list(batch.values) for batch in batches] == [[7]]
        frame = peer.recv(5)
        assert (frame.arbitration_id, frame.data[0]) == (0x301, 9)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
        peer.shutdown()


async def test_an_interface_that_goes_down_is_a_lost_link_and_comes_back():
    link = CanLink("can1", {"interface": "socketcan", "channel": "vcan1"}, [described(0x310)])
    batches = []
    running = await run_link(link, batches)
    try:
        subprocess.run([program("ip", "iproute2"), "link", "set", "vcan1", "down"], check=True)
        with pytest.raises(LinkDownError) as caught:
            await asyncio.wait_for(running, 20)
        assert "down" in str(caught.value).lower()
        await link.close()
    finally:
        subprocess.run([program("ip", "iproute2"), "link", "set", "vcan1", "up"], check=True)
    running = await run_link(link, batches)
    peer = can.Bus(interface="socketcan", channel="vcan1")
    try:
        await asyncio.sleep(0.2)
        peer.send(can.Message(arbitration_id=0x310, is_extended_id=False, data=bytes([5]) + bytes(7)))
        await eventually(lambda: batches and list(batches[-1].values) == [5], 20)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
        peer.shutdown()
