"""The whole program on links of all types that poll, with devices made of pymodbus behind socat."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import create_connection

import pytest
from conftest import Process, free_port, program, wait_for_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

DEVICES = '''
"""Devices whose holding register 5 says which they are; the last one dials in, again and again."""
import asyncio, sys
from pymodbus.framer import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer, ModbusUdpServer
from pymodbus.simulator import DataType, SimData, SimDevice

tcp, udp, rtu_tcp, modem, rtu, ascii, dial = sys.argv[1:]

def device(mark):
    return SimDevice(id=1, simdata=[SimData(0, values=[0] * 5 + [mark] * 20, datatype=DataType.REGISTERS)])

async def carry(reader, writer):
    while data := await reader.read(4096):
        writer.write(data)

async def dial_in():
    while True:
        await asyncio.sleep(0.1)
        try:
            up_reader, up = await asyncio.open_connection("127.0.0.1", int(dial))
        except OSError:
            continue
        down_reader, down = await asyncio.open_connection("127.0.0.1", int(modem))
        up.write(b"SN-0001")
        pumps = [asyncio.ensure_future(carry(*ends)) for ends in ((up_reader, down), (down_reader, up))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        up.transport.abort()
        down.transport.abort()

async def main():
    place = lambda port: ("127.0.0.1", int(port))
    for server in (
        ModbusTcpServer(device(101), address=place(tcp)),
        ModbusUdpServer(device(102), address=place(udp)),
        ModbusTcpServer(device(103), address=place(rtu_tcp), framer=FramerType.RTU),
        ModbusTcpServer(device(104), address=place(modem)),
        ModbusSerialServer(device(105), port=rtu, baudrate=19200, framer=FramerType.RTU),
        ModbusSerialServer(device(106), port=ascii, baudrate=19200, framer=FramerType.ASCII),
    ):
        await server.serve_forever(background=True)
    await dial_in()

asyncio.run(main())
'''

PLANT = """version: 1
gateway: {{name: gw}}
links:
  tcp: {{type: modbus-tcp, host: 127.0.0.1, port: {away}, backup: "127.0.0.1:{tcp}", connections: 4}}
  udp: {{type: modbus-udp, host: 127.0.0.1, port: {udp}}}
  rtu_tcp: {{type: modbus-rtu-tcp, host: 127.0.0.1, port: {rtu_tcp}}}
  dial: {{type: modbus-dial-in, port: {dial}, registration: SN-0001}}
  rtu: {{type: modbus-rtu, port: rtu, baudrate: 19200, parity: none, stopbits: 1}}
  ascii: {{type: modbus-ascii, port: ascii, baudrate: 19200, bytesize: 8, parity: none, stopbits: 1}}
  tls:
    type: modbus-tls
    host: 127.0.0.1
    port: {tls}
    tls: {{ca: ca.pem, certificate: ca.pem, key: ca.key, server_name: plc.test}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}}}
devices:
{devices}
  panel:
    link: hmi
    points:
{panel}
routes:
{routes}
"""
MARKS = {"tcp": 101, "udp": 102, "rtu_tcp": 103, "dial": 104, "rtu": 105, "ascii": 106, "tls": 101}


@pytest.fixture
def plant(tmp_path: Path, start: Callable[..., Process]) -> Iterator[tuple[Path, int]]:
    """Start the devices; give the configuration and the port at which it serves what it reads."""
    socat, openssl = program("socat", "socat"), program("openssl", "openssl")
    ports = {name: free_port() for name in ("away", "tcp", "udp", "rtu_tcp", "modem", "dial", "tls", "hmi")}
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "1", "-subj", "/CN=plc", "-addext", "subjectAltName=DNS:plc.test",
         "-keyout", "ca.key", "-out", "ca.pem"],
        cwd=tmp_path, check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    for name in ("rtu", "ascii"):
        start(socat, f"pty,raw,echo=0,link={name}", f"pty,raw,echo=0,link={name}_far", cwd=tmp_path)
    listen = (
        f"OPENSSL-LISTEN:{ports['tls']},bind=127.0.0.1,reuseaddr,fork,cert=ca.pem,key=ca.key,cafile=ca.pem"
    )
    start(socat, listen, f"TCP:127.0.0.1:{ports['tcp']}", cwd=tmp_path)
    for _ in range(200):
        if all((tmp_path / f"{name}_far").exists() for name in ("rtu", "ascii")):
            break
        time.sleep(0.02)
    (tmp_path / "devices.py").write_text(DEVICES)
    wanted = [str(ports[name]) for name in ("tcp", "udp", "rtu_tcp", "modem")]
    start(sys.executable, "devices.py", *wanted, "rtu_far", "ascii_far", str(ports["dial"]), cwd=tmp_path)
    wait_for_port(ports["modem"])
    config = tmp_path / "plant.yaml"
    devices = "".join(
        f"  on_{name}: {{link: {name}, scan: 100ms, points: {{mark: {{table: holding, address: 5}}}}}}\n"
        for name in MARKS
    )
    panel = "".join(f"      {name}: {{table: holding, address: {n}}}\n" for n, name in enumerate(MARKS))
    routes = "".join(f"  - {{from: on_{name}.mark, to: panel.{name}}}\n" for name in MARKS)
    config.write_text(PLANT.format(**ports, devices=devices, panel=panel, routes=routes))
    yield config, ports["hmi"]


def served(port: int) -> dict[str, int]:
    """Return what the gateway serves, by link; {} if not all of it has a value."""
    try:
        with create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, 0, len(MARKS)))
            answer = sock.recv(260)
    except ConnectionRefusedError:
        return {}
    if answer[7] != 3:
        return {}
    return dict(zip(MARKS, struct.unpack(f">{len(MARKS)}H", answer[9:]), strict=True))


def test_one_gateway_polls_devices_on_links_of_all_types(
    plant: tuple[Path, int], fieldbus: Callable[..., Process]
) -> None:
    config, port = plant
    running = fieldbus("run", str(config), cwd=config.parent)
    deadline = time.monotonic() + 30
    while served(port) != MARKS and time.monotonic() < deadline:
        time.sleep(0.1)
    found = served(port)
    said = running.stop()
    assert found == MARKS, said
    assert running.popen.returncode == 0
    assert "Traceback" not in said
    assert "internal error" not in said
    for name in MARKS:
        assert f"{name}: connected to" in said

    reading = fieldbus("read", str(config), "on_*", "--json", cwd=config.parent)
    out, _ = reading.popen.communicate(timeout=60)
    assert {item["point"]: (item["value"], item["quality"]) for item in json.loads(out)} == {
        f"on_{name}.mark": (mark, "good") for name, mark in MARKS.items()
    }


HEAD = """version: 1
gateway: {name: t}
devices:
"""
DEVICE = "  d%d: {link: net%d, points: {a: {table: holding, address: 0}}}\n"

WRONG: dict[str, str | None] = {
    "type: modbus-tcp": "host: 'host' is missing",
    "type: modbus-tcp, host: a, port: 0": "port: 0 is not at least 1",
    "type: modbus-tcp, host: a, port: 65536": "port: 65536 is not at most 65535",
    "type: modbus-tcp, host: a, connections: 0": "connections: 0 is not at least 1",
    "type: modbus-tcp, host: a, backup: 'b:0'": "backup: 'b:0' is neither HOST nor HOST:PORT",
    "type: modbus-tcp, host: a, backup: 'b:x'": "backup: 'b:x' is neither HOST nor HOST:PORT",
    "type: modbus-tls, host: a": "tls: 'tls' is missing",
    "type: modbus-tls, host: a, tls: {}": "tls.ca: 'ca' is missing",
    "type: modbus-tls, host: a, tls: {ca: none.pem}": "tls.ca: there is no file 'none.pem'",
    "type: modbus-tls, host: a, tls: {ca: c.yaml, certificate: none.pem}":
        "tls.certificate: there is no file 'none.pem'",
    "type: modbus-tls, host: a, tls: {ca: c.yaml, key: c.yaml}":
        "tls: a `key` without a `certificate` proves nothing",
    "type: modbus-tls, host: a, tls: {ca: c.yaml, key_password: secret}":
        "tls.key_password: a secret does not stand in the config: write {env: NAME} or {file: PATH}",
    "type: modbus-udp": "host: 'host' is missing",
    "type: modbus-udp, host: a, backup: b": "backup: unknown key 'backup'",
    "type: modbus-rtu": "port: 'port' is missing",
    "type: modbus-rtu, port: /dev/x, baudrate: 0": "baudrate: 0 is not at least 110",
    "type: modbus-rtu, port: /dev/x, bytesize: 7": "RTU frames need 8 bits a character",
    "type: modbus-rtu, port: /dev/x, parity: X": "parity: 'X' is not one of none, even, odd",
    "type: modbus-rtu, port: /dev/x, stopbits: 3": "stopbits: 3 is not 1 or 2",
    "type: modbus-rtu, port: 5": "port: 5 is not text",
    "type: modbus-ascii, port: /dev/x, bytesize: 6": "bytesize: 6 is not 7 or 8",
    "type: modbus-rtu-tcp": "host: 'host' is missing",
    "type: modbus-rtu-tcp, host: a, baudrate: 9600": "baudrate: unknown key 'baudrate'",
    "type: modbus-dial-in, port: 5000": "registration: 'registration' is missing",
    "type: modbus-dial-in, registration: x": "port: 'port' is missing",
    "type: modbus-dial-in, port: 5000, registration: ''": "a registration has 1 to 256 bytes",
    "type: modbus-dial-in, port: 5000, registration: {hex: zz}":
        "registration.hex: 'zz' is not made of hex digits such as 4D 31",
    "type: modbus-dial-in, port: 5000, registration: x, framing: ascii":
        "framing: 'ascii' is not one of tcp, rtu",
    "type: modbus-rtu-udp, host: a": "type: 'modbus-rtu-udp' is not a type of link",
    "type: modbus-ascii, port: /dev/x": None,
    "type: modbus-dial-in, port: 5000, registration: {hex: 4D 31}, heartbeat: ping": None,
}  # fmt: skip


def problems(folder: Path, links: list[str]) -> list[list[str]]:
    """Return what `fieldbus check` says of each of some links, all of which are in one file."""
    text = HEAD + "".join(DEVICE % (n, n) for n in range(len(links))) + "links:\n"
    text += "".join(f"  net{n}: {{{link}}}\n" for n, link in enumerate(links))
    (folder / "c.yaml").write_text(text)
    command = [sys.executable, "-m", "fieldbus", "check", "c.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=40, check=False)
    assert "Traceback" not in done.stderr
    first = text[: text.index("  net0")].count("\n") + 1
    found: list[list[str]] = [[] for _ in links]
    for line in done.stdout.splitlines():
        match = re.match(r"c\.yaml:(\d+):\d+: links\.net(\d+)[.:] ?(.*)", line)
        if match:
            assert int(match[1]) == first + int(match[2]), f"another line: {line}"
            found[int(match[2])].append(match[3])
    return found


def test_check_says_what_is_wrong_with_the_settings_of_each_type(tmp_path: Path) -> None:
    said = dict(zip(WRONG, problems(tmp_path, list(WRONG)), strict=True))
    for link, expected in WRONG.items():
        if expected is None:
            assert said[link] == [], link
        else:
            assert any(text.startswith(expected) for text in said[link]), f"{link}: {said[link]}"


@pytest.mark.parametrize(
    "links",
    [
        ["type: modbus-tcp, host: ''"],
        ["type: modbus-tcp, host: a, backup: ''"],
        ["type: modbus-tcp, host: a, backup: ':502'"],
        ["type: modbus-rtu, port: ''"],
        ["type: modbus-rtu, port: /dev/ttyUSB0"] * 2,
        ["type: modbus-dial-in, port: 5000, registration: M1"] * 2,
        [f"type: modbus-dial-in, port: 5000, registration: {name}" for name in ("M1", "M12")],
    ],
    ids=["no host", "no backup", "a backup without a host", "no port", "a serial port twice",
         "a registration twice", "a registration that begins as another"],
)  # fmt: skip
def test_check_refuses_links_that_cannot_be_right(tmp_path: Path, links: list[str]) -> None:
    assert any(problems(tmp_path, links))
