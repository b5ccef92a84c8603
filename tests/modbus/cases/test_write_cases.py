"""Devices of the field and how they are written: pairs, commits, pulses, functions, wrong responses."""

import asyncio
import logging
from contextlib import closing, suppress

import pytest
from support.table_device import TableDevice
from support.virtual import World

from fieldbus.errors import ConfigError
from fieldbus.gateway import oneshot
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import ControlServer, ask
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import WriteOutcome

HEAD = """
version: 1
gateway: {{name: gw, data_dir: gw-data}}
links:
  net:   {{type: modbus-tcp, host: 127.0.0.1, port: {port}, timeout: 500ms}}
  panel: {{type: modbus-server, host: 127.0.0.1, port: 1504}}
devices:
  plc: {{link: net, scan: 1s, points: {points}}}
  hmi: {{link: panel, points: {{
    a: {{table: holding, address: 0, access: readwrite, initial: 0}},
    b: {{table: holding, address: 1, access: readwrite, initial: 0}}}}}}
routes: {routes}
"""
SLOT = """{start: {table: holding, address: 3038, access: readwrite, group: slot, max: 2359},
   end: {table: holding, address: 3039, access: readwrite, group: slot}}"""
PAIR = "[{from: hmi.a, to: plc.start}, {from: hmi.b, to: plc.end}]"


class Plc(asyncio.Protocol):
    """A device of registers; `special` may answer a request in its own way."""

    def __init__(self, words, special=lambda pdu: None):
        self.words, self.special = dict(words), special
        self.writes = []
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        while data:
            size = 6 + int.from_bytes(data[4:6], "big")
            frame, data = data[:size], data[size:]
            answer = self.answer(frame[7:])
            if answer is not None:
                self.transport.write(frame[:4] + (len(answer) + 1).to_bytes(2, "big") + frame[6:7] + answer)

    def answer(self, pdu):
        address, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        if pdu[0] == 3:
            data = b"".join(self.words.get(n, 0).to_bytes(2, "big") for n in range(address, address + count))
            return bytes((3, len(data))) + data
        self.writes.append(pdu.hex())
        said = self.special(pdu)
        if said is not None and said[0] & 0x80:
            return said
        values = (
            [count] if pdu[0] == 6 else [int.from_bytes(pdu[n : n + 2], "big") for n in range(6, len(pdu), 2)]
        )
        self.words |= dict(enumerate(values, address))
        return said or pdu[:5]


def played(tmp_path, plc, points, routes, script):
    """Run a gateway beside a device; `script` sets what the panel's registers hold, by `put`."""
    world = World()
    file = tmp_path / "gw.yaml"
    file.write_text(HEAD.format(port=1502, points=points, routes=routes))

    async def main():
        await asyncio.get_running_loop().create_server(lambda: plc, "127.0.0.1", 1502)
        gateway = Gateway(load(file, clock=world.clock()[0]))
        running = asyncio.create_task(gateway.run())
        await asyncio.sleep(3)
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", 1504)

        async def put(*values):
            data = b"".join(value.to_bytes(2, "big") for value in values)
            pdu = b"\x10\0\0" + len(values).to_bytes(2, "big") + bytes((len(data),)) + data
            transport.write(b"\0\1\0\0" + (len(pdu) + 1).to_bytes(2, "big") + b"\x01" + pdu)
            await asyncio.sleep(3)

        await script(put)
        gateway.stop()
        await running

    world.run(main())


def refuses_bad_pairs(pdu):
    values = [int.from_bytes(pdu[n : n + 2], "big") for n in range(6, len(pdu), 2)]
    return None if len(values) == 2 and values[0] < values[1] else bytes((pdu[0] | 0x80, 3))


def test_a_pair_is_one_request_also_when_one_of_it_changed(tmp_path):
    plc = Plc({3038: 1000, 3039: 1200}, refuses_bad_pairs)

    async def script(put):
        plc.writes.clear()
        await put(1400, 1600)
        await put(1400, 1700)
        assert plc.writes == ["100bde00020405780640", "100bde0002040578" + "06a4"]
        await put(1800, 900)
        assert (plc.words[3038], plc.words[3039]) == (1400, 1700)
        assert len(plc.writes) == 3, "a refusal is not split"
        await put(2400, 2500)
        assert len(plc.writes) == 3, "one that is refused refuses all"
        await put(500, 600)
        assert (plc.words[3038], plc.words[3039]) == (500, 600)

    played(tmp_path, plc, SLOT, PAIR, script)


COMMIT = """{limit: {table: holding, address: 61441, access: readwrite, then: {commit: 1}},
   commit: {table: holding, address: 61696, access: write}}"""


def test_a_commit_follows_only_a_limit_that_was_accepted(tmp_path):
    plc = Plc({}, lambda pdu: b"\x86\x03" if pdu[1:3] == b"\xf0\x01" and pdu[4] > 100 else None)

    async def script(put):
        plc.writes.clear()
        await put(120)
        assert plc.writes == ["06f0010078"]
        await put(70)
        assert plc.writes[1:] == ["06f0010046", "06f1000001"]

    played(tmp_path, plc, COMMIT, "[{from: hmi.a, to: plc.limit}]", script)


@pytest.mark.parametrize("is_sampled", [False, True])
def test_a_write_with_a_wrong_response_is_done_once(tmp_path, caplog, is_sampled):
    """Its address is 0, whatever was written; the value can be read."""
    plc = Plc({}, lambda pdu: b"\x06\0\0" + pdu[3:5])
    caplog.set_level(logging.INFO)

    async def script(put):
        plc.writes.clear()
        await put(120)
        await asyncio.sleep(30)
        assert plc.writes == ["0613880078"]

    points = "{setpoint: {table: holding, address: 5000, access: readwrite}}"
    played(tmp_path, plc, points, "[{from: hmi.a, to: plc.setpoint}]", script)
    assert "address 0 in the response, 5000 was written" in caplog.text


def test_a_write_that_nobody_can_check_is_repeated_after_growing_pauses(tmp_path):
    plc = Plc({}, lambda pdu: b"\x06\0\0" + pdu[3:5])

    async def script(put):
        plc.writes.clear()
        for _ in range(20):  # the source is alive: it says the same again and again
            await put(120)
        same = len(plc.writes)
        assert 1 < same < 8
        await put(121)
        assert plc.writes[same:] == ["0613880079"], "another value goes out at once"

    points = "{setpoint: {table: holding, address: 5000, access: write}}"
    played(tmp_path, plc, points, "[{from: hmi.a, to: plc.setpoint}]", script)


def test_what_one_message_changes_is_written_in_the_order_of_its_sources(tmp_path):
    """Not in that of the routes: registers go by their address."""
    plc = Plc({})

    async def script(put):
        plc.writes.clear()
        await put(7, 9)
        assert plc.writes == ["0600640007", "0600320009"]

    points = """{first: {table: holding, address: 100, access: write},
       second: {table: holding, address: 50, access: write}}"""
    played(tmp_path, plc, points, "[{from: hmi.b, to: plc.second}, {from: hmi.a, to: plc.first}]", script)


# --- one-shot, and through a gateway that runs --------------------------------------------------------


def plant(tmp_path, device, points, **more):
    file = tmp_path / "gw.yaml"
    settings = "".join(f", {key}: {value}" for key, value in more.items())
    file.write_text(f"""
version: 1
gateway: {{name: gw, data_dir: gw-data}}
links: {{net: {{type: modbus-tcp, host: 127.0.0.1, port: {device.port}, timeout: 500ms}}}}
devices: {{plc: {{link: net, scan: 1s{settings}, points: {points}}}}}
""")
    return load(file)


async def written(plant, **values):
    found = await oneshot.write(
        plant, {plant.points[f"plc.{name}"]: value for name, value in values.items()}, 5.0
    )
    return {result.point.name: (result.outcome, result.reason) for result in found}


def pairs(_, pdu):
    return refuses_bad_pairs(pdu) if pdu[0] == 16 else b"\x86\x04" if pdu[0] == 6 else None


async def test_a_pair_is_one_request_in_a_one_shot_write_too(tmp_path):
    async with TableDevice({3038: 1000, 3039: 1200}, pairs) as device:
        both = plant(tmp_path, device, SLOT)
        assert await written(both, start=500, end=600) == dict.fromkeys(
            ("start", "end"), (WriteOutcome.WRITTEN, None)
        )
        failed = (WriteOutcome.FAILED, "device exception 03")
        assert await written(both, start=700, end=650) == {"start": failed, "end": failed}
        assert await written(both, end=900) == {"end": (WriteOutcome.WRITTEN, None)}
        assert device.get([3038, 3039]) == b"\x01\xf4\x03\x84"
        found = await written(both, start=2400, end=2500)
        assert {outcome for outcome, _ in found.values()} == {WriteOutcome.REFUSED}
        assert [pdu[0] for pdu in device.writes] == [16, 16, 16]


async def test_a_pair_is_one_request_through_a_running_gateway_too(tmp_path):
    async with TableDevice({3038: 1000, 3039: 1200}, pairs) as device:
        gateway = Gateway(plant(tmp_path, device, SLOT))
        door = ControlServer(gateway)
        tasks = [asyncio.create_task(gateway.run()), asyncio.create_task(door.run())]
        async with asyncio.timeout(10):
            while not (gateway.plant.data_dir / "gateway.json").exists() or not device.requests:
                await asyncio.sleep(0.02)

        async def write(**values):
            request = {"do": "write", "values": {f"plc.{name}": value for name, value in values.items()}}
            answer = await ask(gateway.plant.data_dir, request)
            return [item["outcome"] for item in answer["answers"]]

        try:
            assert await write(start=500, end=600) == ["written", "written"]
            assert await write(end=650, start=700) == ["failed", "failed"]
            assert await write(start=2400, end=2500) == ["refused", "refused"]
            assert await write(start=100, end="x") == ["refused", "refused"]
        finally:
            gateway.stop()
            await tasks[0]
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert [pdu[0] for pdu in device.writes] == [16, 16]
        assert device.get([3038, 3039]) == b"\x01\xf4\x02\x58"


async def test_settings_that_want_their_own_function_get_it(tmp_path):
    only = {46607: 6, 46610: 16}

    def answer(_, pdu):
        is_wrong = pdu[0] > 4 and only[int.from_bytes(pdu[1:3], "big")] != pdu[0]
        return bytes((pdu[0] | 0x80, 1)) if is_wrong else None

    points = """{charge_current: {table: holding, address: 46607, access: readwrite, function: 6},
      soc_limit: {table: holding, address: 46610, access: readwrite, function: 16}}"""
    async with TableDevice({46607: 50, 46610: 90}, answer) as device:
        found = await written(plant(tmp_path, device, points), charge_current=60, soc_limit=80)
        assert set(found.values()) == {(WriteOutcome.WRITTEN, None)}
        assert [pdu[0] for pdu in device.writes] == [6, 16]


async def test_a_pulse_is_written_and_a_slow_setting_is_verified_in_its_time(tmp_path):
    """Bit 0 falls back at once; bit 4 is taken over 400 ms after it was written."""

    def answer(_, pdu):
        if pdu[0] == 6:
            value = int.from_bytes(pdu[3:5], "big") & ~1
            asyncio.get_running_loop().call_later(0.4, device.put, 47, value.to_bytes(2, "big"))
            return pdu
        return None

    points = """{reset: {table: holding, address: 47, bit: 0, access: write, read_from: 47, verify: false},
      boost: {table: holding, address: 47, bit: 4, access: readwrite, verify: {after: 600ms}},
      plain: {table: holding, address: 47, bit: 5, access: readwrite}}"""
    async with TableDevice({47: 0}, answer) as device:
        fan = plant(tmp_path, device, points)
        assert await written(fan, reset=True) == {"reset": (WriteOutcome.WRITTEN, None)}
        assert await written(fan, boost=True) == {"boost": (WriteOutcome.VERIFIED, None)}
        [(outcome, doubt)] = (await written(fan, plain=True)).values()
        assert outcome is WriteOutcome.WRITTEN
        assert doubt == "read back, the device has another value"


async def test_what_a_board_that_answers_only_the_whole_was_given_is_verified(tmp_path):
    """It answers every read from coil 0 on; only coil 5 is on at first."""
    coils = [0, 0, 0, 0, 0, 1, 0, 0]

    def answer(_, pdu):
        address, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        if pdu[0] == 1:
            return bytes((1, 1, sum(coils[n] << n for n in range(min(count, 8)))))
        coils[address] = int(count > 0)
        return pdu

    points = "{valve5: {table: coil, address: 5, access: readwrite, verify: true}}"
    async with TableDevice({}, answer) as device:
        board = plant(tmp_path, device, points, first_address=0)
        sample = await oneshot.read(board, [board.points["plc.valve5"]], 5.0)
        assert [item.value for item in sample.values()] == [True]
        for value in (False, True):
            assert await written(board, valve5=value) == {"valve5": (WriteOutcome.VERIFIED, None)}
            assert coils[5] == value


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_one_shot_write_on_a_line_that_echoes_ends_as_the_drive_says(tmp_path, refuses, caplog):
    """RTU frames on TCP; nothing in the configuration says that the adapter hears itself."""

    def framed(body):
        crc = 0xFFFF
        for byte in body:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
        return body + crc.to_bytes(2, "little")

    async def serve(reader, writer):
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readexactly(8)
                writer.write(request)  # the echo
                await asyncio.sleep(0.02)
                if request[1] == 3:
                    writer.write(framed(bytes((7, 3, 2 * request[5])) + b"\0\7" * request[5]))
                else:
                    writer.write(framed(b"\x07\x86\x03") if refuses else request)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    file = tmp_path / "gw.yaml"
    file.write_text(f"""
version: 1
gateway: {{name: gw, data_dir: gw-data}}
links: {{bus: {{type: modbus-rtu-tcp, host: 127.0.0.1, port: {port}, timeout: 300ms}}}}
devices: {{plc: {{link: bus, unit_id: 7, points: {{
  speed: {{table: holding, address: 0}}, setpoint: {{table: holding, address: 5, access: readwrite}}}}}}}}
""")
    async with server:
        found = await written(load(file), setpoint=50)
    expected = (WriteOutcome.FAILED, "device exception 03") if refuses else (WriteOutcome.WRITTEN, None)
    assert found == {"setpoint": expected}
    assert "quirks: {echo: true}" in caplog.text


async def test_a_slow_write_has_its_own_timeout(tmp_path):
    points = "{a: {table: holding, address: 1, access: write}}"

    class Slow(TableDevice):
        async def _serve(self, reader, writer):
            with closing(writer), suppress(OSError):
                while request := await reader.read(260):
                    await asyncio.sleep(0.8)
                    writer.write(request[:12])

    async with Slow() as device:
        assert await written(plant(tmp_path, device, points), a=5) == {"a": (WriteOutcome.UNKNOWN, "timeout")}
        slow = plant(tmp_path, device, points, write_timeout="2s")
        assert await written(slow, a=5) == {"a": (WriteOutcome.WRITTEN, None)}


# --- refused at load ----------------------------------------------------------------------------------


def points_of(**named):
    return "{" + ", ".join(f"{name}: {{{text}}}" for name, text in named.items()) + "}"


HOLDING = "table: holding, address: %d, access: readwrite"
WRONG = [
    (points_of(b="table: holding, address: 5, bit: 1, access: write"), "give `read_from: ADDRESS`"),
    (points_of(b="table: holding, address: 5, bits: 1-3, access: write"), "mask_write: true"),
    (points_of(w="table: holding, address: 5, flags: {1: on}, access: write"), "cannot be read"),
    (points_of(a=HOLDING % 5 + ", group: g", b=HOLDING % 7 + ", group: g"), "holding 6 lies between a and this"),
    (points_of(a=HOLDING % 5 + ", group: g", b="table: coil, address: 6, access: readwrite, group: g"),
     "one request writes one table"),
    (points_of(a=HOLDING % 5 + ", group: g", b=HOLDING % 6 + ", group: g, function: 16"), "another `function`"),
    (points_of(a="table: holding, address: 5, group: g"), "`group` is for points that are written"),
    (points_of(a=HOLDING % 5 + ", then: {none: 1}"), "'none', which is no point"),
    (points_of(a=HOLDING % 5 + ", then: {b: 1}", b="table: holding, address: 6"), "which is not written"),
    (points_of(a=HOLDING % 5 + ", then: {b: 70000}", b=HOLDING % 6), "`then` writes 70000 to 'b'"),
    (points_of(a=HOLDING % 5 + ", then: {b: 1}", b=HOLDING % 6 + ", then: {a: 1}"), "break the ring"),
    (points_of(a=HOLDING % 5 + ", function: 15"), "use one of 6, 16, 22"),
    (points_of(a=HOLDING % 5 + ", function: 22"), "single bits of one register"),
    (points_of(a=HOLDING % 5 + ", read_from: {table: coil, address: 1}"), "of single bits"),
]  # fmt: skip


@pytest.mark.parametrize(("points", "text"), WRONG)
def test_what_cannot_be_written_so_is_refused_at_load(tmp_path, points, text):
    class Nowhere:
        port = 15999

    with pytest.raises(ConfigError) as caught:
        plant(tmp_path, Nowhere, points)
    assert text in str(caught.value)


def test_a_bit_with_access_write_is_taken_where_it_can_be_written(tmp_path):
    class Nowhere:
        port = 15999

    bit = "{b: {table: holding, address: 5, bit: 1, access: write%s}}"
    plant(tmp_path, Nowhere, bit % "", quirks="{mask_write: true}")
    plant(tmp_path, Nowhere, bit % ", read_from: 512")
    plant(tmp_path, Nowhere, bit % ", function: 22")
