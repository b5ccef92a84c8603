"""What may stand in a `modbus-server` link, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from fieldbus import __version__
from fieldbus.errors import ConfigError
from fieldbus.gateway.config.loader import load
from fieldbus.modbus.places import Framing, SerialPlace, TcpPlace, TlsFiles, UdpPlace
from fieldbus.modbus.server import ModbusServerLink
from fieldbus.modbus.server_access import Right
from fieldbus.modbus.server_settings import ServerLinkSettings

TLS = {"ca": "ca.pem", "certificate": "own.pem", "key": "own.key"}
FILES = TlsFiles(Path("ca.pem"), Path("own.pem"), Path("own.key"))


def made(**keys: object) -> ServerLinkSettings:
    return ServerLinkSettings.model_validate({"type": "modbus-server", **keys})


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({}, TcpPlace("127.0.0.1", 502)),
        ({"host": "0.0.0.0", "port": 1502}, TcpPlace("0.0.0.0", 1502)),
        ({"transport": "udp", "port": 1502}, UdpPlace("127.0.0.1", 1502)),
        ({"transport": "rtu-tcp"}, TcpPlace("127.0.0.1", 502, Framing.RTU)),
        ({"transport": "tls", "tls": TLS}, TcpPlace("127.0.0.1", 802, tls=FILES)),
        ({"transport": "rtu", "port": "/dev/ttyS9"}, SerialPlace("/dev/ttyS9", 9600, 8, "E", 1)),
        ({"transport": "rtu", "port": "/dev/ttyS9", "parity": "none", "baudrate": 115200},
         SerialPlace("/dev/ttyS9", 115200, 8, "N", 2)),
        ({"transport": "ascii", "port": "/dev/ttyS9", "turnaround": "10ms"},
         SerialPlace("/dev/ttyS9", 9600, 7, "E", 1, Framing.ASCII, turnaround_s=0.01)),
        ({"transport": "rtu", "port": "/dev/ttyS9", "rs485": {"delay": "1ms", "rts_on_send": False}},
         SerialPlace("/dev/ttyS9", 9600, 8, "E", 1, rs485=True, rts_level_for_tx=False, rts_delay_s=0.001)),
    ],
)  # fmt: skip
def test_a_transport_is_a_place(keys: dict[str, object], place: object) -> None:
    assert made(**keys).place(lambda _, name: Path(name), lambda _, __: None) == place


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"transport": "rtu"}, "`transport: rtu` needs the path of a serial port as `port`"),
        ({"transport": "ascii", "port": 502}, "needs the path of a serial port"),
        ({"port": "/dev/ttyS9"}, "'/dev/ttyS9' is not a port of the network"),
        ({"transport": "tls"}, "needs `tls` with ca, certificate and key"),
        ({"tls": TLS}, "`tls` means nothing with `transport: tcp`"),
        ({"roles": {"operator": "read"}}, "`roles` means nothing with `transport: tcp`"),
        ({"baudrate": 9600}, "`baudrate` means nothing with `transport: tcp`"),
        ({"transport": "rtu", "port": "/dev/ttyS9", "allow": ["10.0.0.0/8"]}, "`allow` means nothing"),
        ({"transport": "rtu", "port": "/dev/ttyS9", "host": "0.0.0.0"}, "`host` means nothing"),
        ({"transport": "udp", "max_sessions": 3}, "`max_sessions` means nothing with `transport: udp`"),
        ({"transport": "rtu", "port": "/dev/ttyS9", "bytesize": 7}, "RTU frames need 8 bits"),
        ({"transport": "rtu", "port": "/dev/ttyS9", "status_unit": 248}, "on a line unit ids end at 247"),
        ({"status_unit": 0}, "greater than or equal to 1"),
        ({"allow": ["10.0.0.0/33"]}, "10.0.0.0/33"),
        ({"allow": ["10.0.0.1/8"]}, "has host bits set"),
        ({"allow": ["plc.local"]}, "plc.local"),
        ({"transport": "tls", "tls": TLS, "roles": {"operator": "admin"}}, "'none', 'read' or 'readwrite'"),
        ({"identification": {"vendor_name": "Müller"}}, "pattern"),
        ({"identification": {"vendor_name": "x" * 245}}, "at most 244"),
        (
            {"transport": "tls", "tls": {**TLS, "key_password": "sesame"}},
            "a secret does not stand in the config",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_and_why(keys: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError) as found:
        made(**keys)
    assert complaint in str(found.value)


CONFIG = """\
version: 1
gateway: {name: press-line}
links:
  hmi: {type: modbus-server, %s}
devices:
  panel: {link: hmi, unit_id: %d, points: {start: {table: coil, address: 0, access: readwrite}}}
"""


def loaded(folder: Path, keys: str, unit_id: int = 1) -> ModbusServerLink:
    file = folder / "config.yaml"
    file.write_text(CONFIG % (keys, unit_id))
    link = load(file).links["hmi"]
    assert isinstance(link, ModbusServerLink)
    return link


def test_we_are_who_the_gateway_is_unless_it_is_said(tmp_path: Path) -> None:
    who = loaded(tmp_path, "port: 1502")._identification
    assert who.texts == ("fieldbus", "gateway", __version__, "", "fieldbus gateway", "", "press-line")
    said = "port: 1502, identification: {vendor_name: Acme, revision: '7', user_application_name: ''}"
    who = loaded(tmp_path, said)._identification
    assert who.texts == ("Acme", "gateway", "7", "", "fieldbus gateway", "", "")


def test_networks_and_roles_arrive_in_the_link(tmp_path: Path) -> None:
    for name in ("ca.pem", "own.pem", "own.key"):
        (tmp_path / name).write_text("")
    keys = "transport: tls, tls: {ca: ca.pem, certificate: own.pem, key: own.key}, allow: [10.0.0.0/8, 127.0.0.1], roles: {operator: readwrite, default: read}"
    link = loaded(tmp_path, keys)
    assert link.endpoint == "127.0.0.1:802"
    assert isinstance(link.place, TcpPlace)
    assert link.place.tls is not None
    assert link.place.tls.ca == tmp_path / "ca.pem"
    assert link._guard.admits("10.1.2.3")
    assert not link._guard.admits("192.0.2.1")
    assert link._guard.right_of("operator") is Right.READWRITE
    assert link._guard.right_of("") is Right.READ


def test_every_file_that_is_missing_is_said_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        loaded(tmp_path, "transport: tls, tls: {ca: ca.pem, certificate: ../own.pem}")
    assert {problem.path for problem in found.value.problems} == {
        "links.hmi.tls.ca",
        "links.hmi.tls.certificate",
    }
    assert {problem.line for problem in found.value.problems} == {4}
    assert "leaves the config's folder" in str(found.value)


@pytest.mark.parametrize("keys", ["transport: rtu, port: /dev/ttyS9", "transport: rtu-tcp"])
def test_unit_0_of_a_line_cannot_be_a_device(tmp_path: Path, keys: str) -> None:
    with pytest.raises(ConfigError, match="unit 0 of a serial line is all units at once"):
        loaded(tmp_path, keys, unit_id=0)
    loaded(tmp_path, "port: 1502", unit_id=0)


def test_the_problem_of_a_port_is_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        loaded(tmp_path, "port: 70000")
    [problem] = found.value.problems
    assert problem.path == "links.hmi.port"
    assert "70000" in problem.message
