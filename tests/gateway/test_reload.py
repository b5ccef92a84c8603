"""The configuration changes while the gateway works: who is not concerned does not notice."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Broker, eventually, free_port
from fake_plc import FakePlc

from fieldbus.cli.run import load_again
from fieldbus.errors import ConfigError
from fieldbus.gateway.commands.access import LOCAL
from fieldbus.gateway.commands.command import Command
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import ControlServer, stream
from fieldbus.gateway.runtime import Gateway
from fieldbus.model import Sample, Value

CONFIG = """\
version: 1
gateway: {name: press-line, data_dir: kept}
links:
  net_a: {type: modbus-tcp, host: 127.0.0.1, port: PORT_A, timeout: 300ms}
  net_b: {type: modbus-tcp, host: 127.0.0.1, port: PORT_B, timeout: 300ms}
  hmi: {type: modbus-server, host: 127.0.0.1, port: PORT_HMI}
  archive: {type: store}
devices:
  press:
    link: net_a
    scan: 50ms
    points:
      temperature: {table: holding, address: 0}
      speed: {table: holding, address: 10, access: readwrite, min: 0, max: 3000}
  oven:
    link: net_b
    scan: 50ms
    points:
      temperature: {table: holding, address: 0}
      setpoint: {table: holding, address: 20, access: readwrite}
      mirror: {table: holding, address: 30, access: write}
  panel:
    link: hmi
    points:
      press: {table: holding, address: 0}
      oven: {table: holding, address: 1}
      online: {table: discrete, address: 0}
      wish: {table: holding, address: 10, access: readwrite}
routes:
  - {from: press.temperature, to: panel.press}
  - {from: oven.temperature, to: panel.oven}
  - {from: sys.press.online, to: panel.online}
  - {from: press.temperature, to: oven.mirror}
  - {from: panel.wish, to: oven.setpoint}
  - {from: "*.temperature", to: archive}
"""
NOT_KNOWN = b"\x83\x0b"


class Bench:
    """Two PLCs, a panel's registers, and the gateway between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.press, self.oven = FakePlc(), FakePlc()
        self.hmi = free_port()
        self.file = folder / "plant.yaml"
        self.text = ""
        self.master: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.configure(CONFIG)

    def configure(self, text: str) -> None:
        self.text = text
        ports = {"PORT_A": self.press.port, "PORT_B": self.oven.port, "PORT_HMI": self.hmi}
        for name, port in ports.items():
            text = text.replace(name, str(port))
        self.file.write_text(text)

    def edit(self, *changes: tuple[str, str]) -> None:
        """Change the configuration's text."""
        text = self.text
        for before, after in changes:
            assert text.count(before) == 1, f"{before!r} is there {text.count(before)} times"
            text = text.replace(before, after)
        self.configure(text)

    async def begin(self, *changes: tuple[str, str]) -> None:
        """Work with the configuration, with these changes."""
        self.edit(*changes)
        self.gateway = Gateway(load(self.file), load=load_again)
        self.running = asyncio.create_task(self.gateway.run())

    async def up(self, *changes: tuple[str, str]) -> None:
        """Begin, and wait until all values are where they belong."""
        await self.begin(*changes)
        await eventually(lambda: self.value("press.temperature") == 72, what="press")
        await eventually(lambda: self.value("oven.temperature") == 180, what="oven")
        await eventually(lambda: (30, 72) in self.oven.written, what="mirror")
        await self.connect_master()

    async def connect_master(self) -> None:
        """Have a panel that keeps its connection to our registers."""
        await self.leave_master()
        self.master = await asyncio.open_connection("127.0.0.1", self.hmi)

    async def leave_master(self) -> None:
        if self.master is not None:
            self.master[1].close()
            with suppress(OSError):
                await self.master[1].wait_closed()

    async def ask(self, request_hex: str, unit_id: int = 1) -> bytes:
        """Ask our registers on the panel's one connection."""
        assert self.master is not None
        reader, writer = self.master
        request = bytes.fromhex(request_hex)
        writer.write(struct.pack(">HHHB", 7, 0, len(request) + 1, unit_id) + request)
        async with asyncio.timeout(5):
            head = await reader.readexactly(7)
            return await reader.readexactly(struct.unpack(">HHHB", head)[2] - 1)

    async def register(self, address: int, unit_id: int = 1) -> int | None:
        answer = await self.ask(f"03{address:04x}0001", unit_id)
        return None if answer == NOT_KNOWN else struct.unpack(">BBH", answer)[2]

    async def until_register(self, address: int, value: int | None, unit_id: int = 1) -> None:
        deadline_s = time.monotonic() + 5
        while (found := await self.register(address, unit_id)) != value:
            assert time.monotonic() < deadline_s, f"register {address} is {found}, not {value}"
            await asyncio.sleep(0.02)

    def sample(self, address: str) -> Sample:
        return self.gateway.router.sample(self.gateway.points[address])

    def value(self, address: str) -> Value | None:
        return self.sample(address).value

    async def command(self, point: str, value: Value, actor: str = LOCAL) -> tuple[str, str | None]:
        answer = await self.gateway.desk.execute(Command("local", "here", actor, point, value))
        return str(answer.outcome), answer.reason

    async def close(self) -> None:
        await self.leave_master()
        self.gateway.stop()
        async with asyncio.timeout(10):
            await self.running
        await self.press.stop()
        await self.oven.stop()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    await found.press.start()
    await found.oven.start()
    found.press.registers = {0: 72, 1: 73, 10: 100}
    found.oven.registers = {0: 180}
    yield found
    await found.close()


async def test_an_edit_of_one_point_costs_nobody_else_a_connection_or_more_than_one_scan(bench):
    await bench.up()
    oven, hmi = bench.gateway.plant.links["net_b"], bench.gateway.plant.links["hmi"]
    missed = oven.counters["scans_missed"]
    began_s = time.monotonic()
    bench.edit(
        ("temperature: {table: holding, address: 0}\n      speed",
         "temperature: {table: holding, address: 1}\n      speed")
    )  # fmt: skip
    said = await bench.gateway.load_again()
    assert said == "3 links go on as they are, net_a opened anew"
    await eventually(lambda: bench.value("press.temperature") == 73)
    await asyncio.sleep(0.3)
    assert len(bench.oven.masters) == 1 == bench.oven.connected
    assert len(bench.press.masters) == 2
    assert bench.press.connected == 1
    assert bench.gateway.plant.links["net_b"] is oven
    assert bench.gateway.plant.links["hmi"] is hmi
    assert oven.counters["scans_missed"] - missed <= 1
    assert bench.oven.longest_gap_s(began_s) < 0.4  # of 0.05; the machine may be busy
    await bench.until_register(0, 73)  # on the panel's own old connection


async def test_routes_alone_restart_nothing_and_write_nothing_twice(bench):
    await bench.up()
    links = dict(bench.gateway.plant.links)
    written = list(bench.oven.written)
    bench.edit(("  - {from: oven.temperature, to: panel.oven}\n", ""))
    assert await bench.gateway.load_again() == "4 links go on as they are"
    await asyncio.sleep(0.3)
    assert dict(bench.gateway.plant.links) == links
    assert (len(bench.press.masters), len(bench.oven.masters)) == (1, 1)
    assert bench.oven.written == written  # the mirror has its value already
    assert await bench.register(0) == 72


async def test_an_empty_reload_repeats_nothing_and_keeps_what_registers_have(bench):
    await bench.up()
    written = list(bench.oven.written)
    await bench.ask("06000a0017")  # the panel's wish
    await eventually(lambda: (20, 23) in bench.oven.written)
    written.append((20, 23))
    for _ in range(3):
        await bench.gateway.load_again()
        assert [await bench.register(address) for address in (0, 1, 10)] == [72, 180, 23]
    await asyncio.sleep(0.2)
    assert bench.oven.written == written


async def test_what_is_doubtful_in_a_new_configuration_is_said_once(bench, caplog):
    await bench.up()
    bench.configure(bench.text + "access:\n  operator: [oven.nothing]\n")
    with caplog.at_level(logging.WARNING, "fieldbus"):
        await bench.gateway.load_again()
        await bench.gateway.load_again()
    told = [record.message for record in caplog.records if "oven.nothing" in record.message]
    assert len(told) == 1
    assert "'oven.nothing' is no point that can be written" in told[0]


async def test_a_new_route_gets_the_next_sample_though_it_does_not_change(bench):
    await bench.up(("  - {from: oven.temperature, to: panel.oven}\n", ""))
    assert await bench.register(1) is None
    bench.edit(("routes:\n", "routes:\n  - {from: oven.temperature, to: panel.oven}\n"))
    await bench.gateway.load_again()
    await bench.until_register(1, 180)


async def test_a_panel_that_was_made_anew_gets_what_its_sources_have(bench):
    await bench.up()
    bench.edit(
        ("oven: {table: holding, address: 1}", "oven: {table: holding, address: 2}"),
    )
    await bench.gateway.load_again()
    await asyncio.sleep(0.1)
    await bench.connect_master()
    await bench.until_register(2, 180)
    await bench.until_register(0, 72)
    assert await bench.ask("0200000001") == b"\x02\x01\x01"  # sys.press.online
    assert (len(bench.press.masters), len(bench.oven.masters)) == (1, 1)


async def test_a_register_that_no_route_fills_any_more_has_no_value(bench):
    await bench.up()
    bench.edit(("  - {from: oven.temperature, to: panel.oven}\n", ""))
    await bench.gateway.load_again()
    assert await bench.register(1) is None
    assert await bench.register(0) == 72


async def test_a_register_never_shows_the_value_of_the_source_that_it_had_before(bench):
    await bench.up()
    bench.oven.registers[50] = 55
    bench.edit(
        ("    points:\n      temperature: {table: holding, address: 0}\n      setpoint",
         ("    points:\n      temperature: {table: holding, address: 0}\n"
         "      other: {table: holding, address: 50}\n      setpoint")),
        ("{from: oven.temperature, to: panel.oven}", "{from: oven.other, to: panel.oven}"),
    )  # fmt: skip
    await bench.oven.stop()
    reloading = asyncio.create_task(bench.gateway.load_again())
    await reloading
    assert await bench.register(1) is None
    await bench.oven.start()
    await bench.until_register(1, 55)


async def test_a_start_command_of_before_is_not_given_to_a_new_target(bench):
    await bench.up(("  - {from: panel.wish, to: oven.setpoint}\n", ""))
    await bench.ask("06000a0017")
    bench.edit(("routes:\n", "routes:\n  - {from: panel.wish, to: oven.setpoint}\n"))
    await bench.gateway.load_again()
    await asyncio.sleep(0.3)
    assert all(address != 20 for address, _ in bench.oven.written)
    await bench.ask("06000a0018")
    await eventually(lambda: (20, 24) in bench.oven.written)
    assert (20, 23) not in bench.oven.written


async def test_links_and_devices_come_and_go(bench):
    await bench.up()
    third = FakePlc()
    third.registers = {0: 5}
    await third.start()
    try:
        bench.edit(
            ("links:\n", f"links:\n  net_c: {{type: modbus-tcp, host: 127.0.0.1, port: {third.port}}}\n"),
            ("devices:\n", ("devices:\n  pump:\n    link: net_c\n    scan: 50ms\n"
             "    points: {flow: {table: holding, address: 0}}\n")),
            ("routes:\n", "routes:\n  - {from: pump.flow, to: oven.extra}\n"),
            ("      mirror:", "      extra: {table: holding, address: 40, access: write}\n      mirror:"),
        )  # fmt: skip
        said = await bench.gateway.load_again()
        assert said == "3 links go on as they are, net_b, net_c opened anew"
        await eventually(lambda: (40, 5) in bench.oven.written)
        assert bench.value("sys.net_c.connected") is True
        assert bench.value("sys.pump.online") is True
        bench.configure(CONFIG)
        said = await bench.gateway.load_again()
        assert said == "3 links go on as they are, net_b opened anew, net_c no more"
        await eventually(lambda: third.connected == 0)
        assert "sys.net_c.connected" not in bench.gateway.points
        assert "pump.flow" not in bench.gateway.points
        assert len(bench.press.masters) == 1
    finally:
        await third.stop()


async def test_system_points_are_right_after_a_reload(bench):
    await bench.up()
    before = {name: bench.value(name) for name in bench.gateway.points if name.startswith("sys.")}
    assert before["sys.net_a.connected"] is True
    bench.edit(("speed: {table: holding, address: 10", "speed: {table: holding, address: 11"))
    await bench.gateway.load_again()
    await eventually(lambda: bench.value("sys.net_a.connected") is True)
    await eventually(lambda: bench.value("sys.press.online") is True)
    assert bench.value("sys.net_b.connected") is True
    assert bench.value("sys.oven.online") is True
    assert bench.value("sys.net_a.reconnects") == 0
    bench.gateway.refresh()
    assert bench.value("sys.net_b.requests") == bench.gateway.plant.links["net_b"].counters["requests"]
    health = bench.gateway.health()
    assert all(link["connected"] for link in health["links"].values())
    assert bench.gateway.stuck() is None


async def test_the_status_unit_knows_links_that_came_by_a_reload(bench):
    await bench.up(("port: PORT_HMI}", "port: PORT_HMI, status_unit: 247}"))
    devices = bench.gateway.plant.devices["hmi_status"].points
    bench.edit(("links:\n", "links:\n  more: {type: store, file: more.db}\n"))
    await bench.gateway.load_again()
    assert len(bench.gateway.plant.devices["hmi_status"].points) > len(devices)
    await asyncio.sleep(0.1)
    await bench.connect_master()
    item = next(
        part
        for part in bench.gateway.plant.devices["hmi_status"].parts
        if part.point.name == "more.connected"
    )
    table = "02" if item.table.is_bits else "04"

    async def state() -> bytes:
        return await bench.ask(f"{table}{item.address:04x}0001", 247)

    deadline_s = time.monotonic() + 5
    while not (await state()).endswith(b"\x01"):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


async def test_guards_and_access_change_without_a_restart(bench):
    bench.configure(CONFIG + "access: {local: [oven.setpoint]}\nguards: {oven.setpoint: {max_change: 10}}\n")
    await bench.up()
    assert await bench.command("press.speed", 5) == (
        "refused", "'local' may not write press.speed (nothing under `access` says so)",
    )  # fmt: skip
    assert (await bench.command("oven.setpoint", 50))[0] == "refused"
    bench.edit(
        ("access: {local: [oven.setpoint]}", "access: {local: [oven.setpoint, press.*]}"),
        ("max_change: 10", "max_change: 100"),
    )
    assert await bench.gateway.load_again() == "4 links go on as they are"
    assert (await bench.command("press.speed", 5))[0] in ("written", "verified")
    assert (await bench.command("oven.setpoint", 50))[0] in ("written", "verified")
    bench.edit(("access: {local: [oven.setpoint, press.*]}", "access: {}"))
    await bench.gateway.load_again()
    assert (await bench.command("oven.setpoint", 51))[0] == "refused"
    assert (len(bench.press.masters), len(bench.oven.masters)) == (1, 1)


async def test_a_budget_is_not_refilled_by_a_reload(bench):
    bench.configure(CONFIG + "guards: {oven.setpoint: {non_volatile: 2}}\n")
    await bench.up()
    for value in (1, 2):
        assert (await bench.command("oven.setpoint", value))[0] in ("written", "verified")
    bench.edit(("mirror: {table: holding, address: 30", "mirror: {table: holding, address: 31"))
    await bench.gateway.load_again()
    await eventually(lambda: (31, 72) in bench.oven.written)
    outcome, reason = await bench.command("oven.setpoint", 3)
    assert (outcome, reason) == ("refused", "its 2 writes a day are used up (non_volatile)")


async def test_a_safe_value_is_not_written_because_of_a_reload(bench, caplog):
    bench.configure(CONFIG + "guards: {oven.mirror: {fallback: {after: 500ms, value: 0}}}\n")
    await bench.up()
    await asyncio.sleep(0.7)
    caplog.set_level(logging.INFO, logger="fieldbus")
    for address in (11, 12):  # the source is opened anew; the target, too
        bench.edit((f"speed: {{table: holding, address: {address - 1}",
                    f"speed: {{table: holding, address: {address}"))  # fmt: skip
        await bench.gateway.load_again()
        await asyncio.sleep(0.3)
    assert (30, 0) not in bench.oven.written
    assert "its source is back" not in caplog.text
    await bench.press.stop()
    await eventually(lambda: (30, 0) in bench.oven.written)
    bench.edit(("setpoint: {table: holding, address: 20", "setpoint: {table: holding, address: 21"))
    await bench.gateway.load_again()
    await asyncio.sleep(0.3)
    assert "its source is back" not in caplog.text


@pytest.mark.parametrize("kind", ["csv", "yaml", "dbc", "routes", "secret"])
async def test_a_file_that_changed_on_the_disk_is_noticed(bench, kind):
    files = {
        "csv": ("map.csv", "name,table,address\nflow,holding,0\n", "name,table,address\nflow,holding,1\n"),
        "yaml": ("map.yaml", "points: {flow: {table: holding, address: 0}}\n",
                 "points: {flow: {table: holding, address: 1}}\n"),
        "dbc": ("bus.dbc", 'VERSION ""\nBU_: A\nBO_ 256 M: 8 A\n SG_ S : 0|16@1+ (1,0) [0|0] "" A\n',
                'VERSION ""\nBU_: A\nBO_ 256 M: 8 A\n SG_ S : 0|16@1+ (2,0) [0|0] "" A\n'),
        "routes": ("routes.csv", "from,to\noven.temperature,panel.press\n",
                   "from,to\npress.temperature,panel.press\n"),
    }  # fmt: skip
    files["secret"] = ("broker.password", "before", "after")
    name, before, after = files[kind]
    (bench.folder / name).write_text(before)
    if kind == "dbc":
        bench.edit(
            ("links:\n", "links:\n  can0: {type: can, interface: virtual, channel: reload}\n"),
            ("devices:\n", "devices:\n  engine: {link: can0, database: bus.dbc}\n"),
        )
    elif kind == "secret":
        broker = (
            f"{{type: mqtt, host: 127.0.0.1, port: {free_port()}, username: u, password: {{file: {name}}}}}"
        )
        bench.edit(("links:\n", f"links:\n  broker: {broker}\n"))
    elif kind == "routes":
        bench.configure(bench.text.partition("routes:\n")[0] + "routes: routes.csv\n")
    else:
        bench.edit(("devices:\n", f"devices:\n  pump: {{link: net_a, unit_id: 2, map: {name}}}\n"))
    await bench.begin()
    await eventually(lambda: bench.value("oven.temperature") == 180)
    assert (await bench.gateway.load_again()).endswith("links go on as they are")
    (bench.folder / name).write_text(after)
    said = await bench.gateway.load_again()
    if kind == "routes":
        assert said == "4 links go on as they are"
        await bench.connect_master()
        await bench.until_register(0, 72)
    else:
        link = {"dbc": "can0", "secret": "broker"}.get(kind, "net_a")
        assert said.endswith(f"{link} opened anew")


BAD = [
    ("version: 1", "version: 2"),
    ("version: 1\n", ""),
    ("version: 1", "version: ["),
    ("version: 1", "\tversion: 1"),
    ("version: 1", "version: 1\nversion: 1"),
    ("version: 1", "version: 1\nsurprise: 1"),
    ("gateway: {name: press-line, data_dir: kept}", ""),
    ("name: press-line", "name: press line"),
    ("name: press-line", "name: other"),
    ("data_dir: kept", "data_dir: elsewhere"),
    ("data_dir: kept", "data_dir: kept, spool: {max_size: 4MiB}"),
    ("type: store", "type: stroe"),
    ("port: PORT_A", "port: 70000"),
    ("port: PORT_A", "port: '502'"),
    ("port: PORT_B, timeout: 300ms", "port: PORT_B, timeout: 300"),
    ("  net_b: {type", "  net b: {type"),
    ("  net_b: {type: modbus-tcp, host: 127.0.0.1, port: PORT_B, timeout: 300ms}\n", ""),
    ("  net_b: {type: modbus-tcp, host", "  net_b: {type: modbus-tcp, hots"),
    ("link: hmi", "link: hmm"),
    ("      press: {table: holding, address: 0}", "      press: {table: holding, address: 65536}"),
    ("      press: {table: holding, address: 0}", "      press: {table: holdign, address: 0}"),
    ("      press: {table: holding, address: 0}", "      press: {table: holding, address: 1}"),
    ("mirror: {table: holding, address: 30, access: write}", "mirror: {table: input, address: 30, access: write}"),
    ("devices:\n  press:", "devices:\n  sys:"),
    ("to: oven.mirror", "to: oven.miror"),
    ("from: sys.press.online", "from: sys.press.onlien"),
    ("to: archive", "to: archiv"),
    ("from: panel.wish, to: oven.setpoint", "from: panel.wish, to: oven.temperature"),
    ("to: oven.setpoint}", "to: oven.setpoint, deadband: -1}"),
    ("to: oven.setpoint}", "to: oven.setpoint, when: always}"),
    ("routes:\n", "guards: {oven.nothing: {step: 1}}\nroutes:\n"),
    ("routes:\n", "guards: {oven.setpoint: {only_if: nonsense}}\nroutes:\n"),
    ("routes:\n", "access: [everybody]\nroutes:\n"),
    ("devices:\n  press:\n    link: net_a\n", "devices:\n  press:\n    link: net_a\n    map: none.csv\n"),
    ("devices:\n  press:\n    link: net_a\n", "devices:\n  press:\n    link: net_a\n    map: ../x.csv\n"),
    ("links:\n", "links:\n  b: {type: mqtt, host: 127.0.0.1, username: u, password: {env: NOT_SET}}\n"),
    ("links:\n", "links:\n  b: {type: mqtt, host: 127.0.0.1, password: literal}\n"),
    ("links:\n", "links:\n  b: {type: mqtt, host: 127.0.0.1, tls: {ca: none.pem}}\n"),
]  # fmt: skip


async def test_bad_configurations_change_nothing_and_each_is_reported(bench):
    assert len(BAD) >= 30
    await bench.up()
    plant = bench.gateway.plant
    written = list(bench.oven.written)
    for before, after in BAD:
        bench.configure(CONFIG)
        bench.edit((before, after))
        with pytest.raises(ConfigError) as caught:
            await bench.gateway.load_again()
        problems = [item for item in caught.value.problems if not item.is_warning]
        assert problems, after
        assert all(str(item).startswith(str(bench.file)) for item in problems), after
        assert bench.gateway.plant is plant
    for spoil in (
        lambda: bench.file.write_bytes(b"\xff\xfe\x00"),
        lambda: bench.file.write_text(""),
        bench.file.unlink,
        bench.file.mkdir,
    ):
        spoil()
        with pytest.raises(ConfigError):
            await bench.gateway.load_again()
    bench.file.rmdir()
    assert bench.gateway.plant is plant
    assert (len(bench.press.masters), len(bench.oven.masters)) == (1, 1)
    assert bench.oven.written == written
    bench.press.registers[0] = 80
    await bench.until_register(0, 80)
    bench.configure(CONFIG)
    assert await bench.gateway.load_again() == "4 links go on as they are"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("name: press-line", "name: other"), "name"),
        (("data_dir: kept", "data_dir: elsewhere"), "data_dir"),
        (("data_dir: kept", "data_dir: kept, spool: {max_age: 1d}"), "spool"),
    ],
)
async def test_what_needs_a_restart_is_refused_and_says_so(bench, change, key):
    await bench.up()
    bench.edit(change)
    with pytest.raises(ConfigError) as caught:
        await bench.gateway.load_again()
    [problem] = caught.value.problems
    column = bench.file.read_text().splitlines()[1].index(f"{key}: ") + len(key) + 3
    assert str(problem) == (
        f"{bench.file}:2:{column}: gateway.{key}: `{key}` of the gateway cannot be changed while it runs (restart it)"
    )


async def test_reloads_at_the_same_time_are_done_one_after_the_other(bench):
    await bench.up()
    bench.edit(("speed: {table: holding, address: 10", "speed: {table: holding, address: 11"))
    said = await asyncio.gather(*(bench.gateway.load_again() for _ in range(4)))
    assert sorted(said) == sorted(
        ["3 links go on as they are, net_a opened anew", *["4 links go on as they are"] * 3]
    )
    await eventually(lambda: bench.press.connected == 1)
    await asyncio.sleep(0.2)
    assert len(bench.press.masters) == 2
    assert len(bench.oven.masters) == 1


async def test_a_reload_while_a_link_is_away_leaves_it_trying(bench):
    await bench.up()
    await bench.oven.stop()
    await eventually(lambda: bench.value("sys.net_b.connected") is False)
    oven = bench.gateway.plant.links["net_b"]
    bench.edit(("speed: {table: holding, address: 10", "speed: {table: holding, address: 11"))
    async with asyncio.timeout(2):
        assert await bench.gateway.load_again() == "3 links go on as they are, net_a opened anew"
    assert bench.gateway.plant.links["net_b"] is oven
    assert await bench.register(1) is None
    bench.edit(("setpoint: {table: holding, address: 20", "setpoint: {table: holding, address: 21"))
    async with asyncio.timeout(2):  # the one that is away is opened anew, which does not wait for it either
        await bench.gateway.load_again()
    await bench.oven.start()
    await eventually(lambda: bench.value("oven.temperature") == 180)
    await bench.until_register(1, 180)


async def test_the_gateway_ends_during_a_reload(bench):
    await bench.up()
    bench.edit(("speed: {table: holding, address: 10", "speed: {table: holding, address: 11"))
    reloading = asyncio.create_task(bench.gateway.load_again())
    await asyncio.sleep(0)
    bench.gateway.stop()
    async with asyncio.timeout(10):
        await bench.running
        await reloading
    await eventually(lambda: bench.press.connected == 0)


async def test_what_is_no_more_leaves_nothing_behind(bench):
    await bench.up()
    for number in range(20):
        bench.edit((f"mirror: {{table: holding, address: {30 + number}",
                    f"mirror: {{table: holding, address: {31 + number}"))  # fmt: skip
        await bench.gateway.load_again()
    await eventually(lambda: (50, 72) in bench.oven.written)
    gateway = bench.gateway
    points = set(gateway.points.values())
    assert set(gateway.delivered) <= points
    assert {group for group in gateway.router.latest if not set(group.points) <= points} == set()


async def test_a_broker_is_not_left_because_a_plc_changes(bench, tmp_path):
    broker = Broker(tmp_path)
    try:
        await bench.up(
            ("links:\n", f"links:\n  broker: {{type: mqtt, host: 127.0.0.1, port: {broker.port}}}\n"),
            (
                "routes:\n",
                'routes:\n  - {from: "press.*", to: "broker:site/{device}/{point}", durable: true}\n',
            ),
        )
        link = bench.gateway.plant.links["broker"]
        await eventually(lambda: bench.value("sys.broker.connected") is True)
        await eventually(lambda: link.counters["published"] > 3)
        control, session = link._control._connection, link._publisher._session
        bench.edit(("speed: {table: holding, address: 10", "speed: {table: holding, address: 11"))
        assert await bench.gateway.load_again() == "4 links go on as they are, net_a opened anew"
        bench.press.registers[0] = 81
        await eventually(lambda: bench.value("press.temperature") == 81)
        stream = next(iter(bench.gateway.exchange.streams().values()))
        await eventually(lambda: stream.backlog == 0)
        assert bench.gateway.plant.links["broker"] is link
        assert link._control._connection is control
        assert link._publisher._session is session
        assert link._publisher.is_connected
    finally:
        broker.stop()


async def test_who_watches_sees_what_came_by_a_reload(bench):
    await bench.up()
    door = asyncio.create_task(ControlServer(bench.gateway).run())
    file = bench.gateway.plant.data_dir / "gateway.json"
    await eventually(file.exists)
    lines = stream(bench.gateway.plant.data_dir, str(bench.file.resolve()))
    try:
        first = await anext(lines)
        assert "oven.temperature" in {item["point"] for item in first["points"]}
        bench.edit(
            ("      mirror:", "      extra: {table: holding, address: 1}\n      mirror:"),
        )
        bench.oven.registers[1] = 17
        await bench.gateway.load_again()
        async with asyncio.timeout(5):
            async for line in lines:
                if ("oven.extra", 17) in {(item["point"], item["value"]) for item in line["points"]}:
                    break
    finally:
        await lines.aclose()
        await eventually(
            lambda: (
                not any(
                    "ControlServer._serve" in repr(task) for task in asyncio.all_tasks() if task is not door
                )
            )
        )
        door.cancel()
        await asyncio.gather(door, return_exceptions=True)


async def test_commands_under_way_are_answered_although_a_reload_closes_their_link(bench):
    await bench.up()
    for number in range(5):
        bench.edit((f"mirror: {{table: holding, address: {30 + number}",
                    f"mirror: {{table: holding, address: {31 + number}"))  # fmt: skip
        commands = [asyncio.create_task(bench.command("oven.setpoint", 100 + item)) for item in range(8)]
        reloading = asyncio.create_task(bench.gateway.load_again())
        async with asyncio.timeout(10):
            outcomes = {outcome for outcome, _ in await asyncio.gather(*commands)}
            await reloading
        # A request that had left when the link was closed may have been carried out.
        assert outcomes <= {"written", "verified", "failed", "expired", "unknown outcome"}
        await eventually(lambda place=31 + number: (place, 72) in bench.oven.written)


PEER = """\
version: 1
gateway: {name: hq, data_dir: kept-too}
links:
  broker: {type: mqtt, host: 127.0.0.1, port: BROKER}
  panel: {type: modbus-server, host: 127.0.0.1, port: PORT_PANEL}
devices:
  press_line: {type: gateway, link: broker, gateway: press-line}
  display:
    link: panel
    points: {oven: {table: holding, address: 0}, press: {table: holding, address: 1}}
routes:
  - {from: press_line.press.temperature, to: display.press}
"""


async def test_a_new_route_from_another_gateway_gets_what_that_has(bench, tmp_path):
    broker = Broker(tmp_path)
    try:
        await bench.up(
            ("links:\n", f"links:\n  broker: {{type: mqtt, host: 127.0.0.1, port: {broker.port}}}\n")
        )
        panel = free_port()
        file = tmp_path / "hq.yaml"
        file.write_text(PEER.replace("BROKER", str(broker.port)).replace("PORT_PANEL", str(panel)))
        other = Gateway(load(file), load=load_again)
        running = asyncio.create_task(other.run())
        await bench.leave_master()
        try:
            await eventually(lambda: "press_line.oven.temperature" in other.points, 10)
            bench.hmi = panel
            await asyncio.sleep(0.2)
            await bench.connect_master()
            await bench.until_register(1, 72)
            assert await bench.register(0) is None
            file.write_text(file.read_text() + "  - {from: press_line.oven.temperature, to: display.oven}\n")
            assert await other.load_again() == "2 links go on as they are"
            await bench.until_register(0, 180)
            # and one whose value we had all the time
            text = file.read_text().replace(
                "press: {table: holding, address: 1}", "press: {table: holding, address: 2}"
            )
            file.write_text(text)
            assert await other.load_again() == "1 links go on as they are, panel opened anew"
            await asyncio.sleep(0.2)
            await bench.connect_master()
            await bench.until_register(2, 72)
            await bench.until_register(0, 180)
        finally:
            other.stop()
            async with asyncio.timeout(10):
                await running
    finally:
        broker.stop()


async def test_a_smaller_audit_log_is_obeyed_after_a_reload(bench):
    await bench.up()
    assert bench.gateway.audit.max_total == 2 << 30
    bench.configure(bench.text.replace("data_dir: kept", "data_dir: kept, audit: {max_size: 100MiB}"))
    await bench.gateway.load_again()
    assert bench.gateway.audit.max_total == 100 << 20
