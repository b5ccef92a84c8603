"""What a configuration may say of CAN links, devices and messages, and what is built of it."""

import pytest

from fieldbus.canbus.j1939.address import Name
from fieldbus.errors import ConfigError
from fieldbus.gateway.config.loader import load
from fieldbus.model import Access

DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 256 Status: 8 ECU
 SG_ Speed : 0|16@1+ (0.125,0) [0|8000] "rpm" GW
 SG_ Temp : 16|8@1+ (1,-40) [-40|210] "degC" GW
 SG_ Alive : 48|4@1+ (1,0) [0|15] "" GW
 SG_ Odd : 53|8@1+ (1,0) [0|255] "" GW
BO_ 257 Paged: 8 ECU
 SG_ Page M : 0|8@1+ (1,0) [0|255] "" GW
 SG_ One m1 : 8|8@1+ (1,0) [0|255] "" GW
 SG_ Two m2 : 8|8@1+ (1,0) [0|255] "" GW
BO_ 258 Timed: 8 ECU
 SG_ Value : 0|8@1+ (1,0) [0|255] "" GW
BO_ 259 Rare: 8 ECU
 SG_ Value : 0|8@1+ (1,0) [0|255] "" GW
BO_ 512 Command: 4 GW
 SG_ Mode : 0|8@1+ (1,0) [0|10] "" ECU
 SG_ Torque : 8|8@1- (1,0) [-100|100] "Nm" ECU
 SG_ Count : 16|4@1+ (1,0) [0|15] "" ECU
 SG_ Crc : 24|8@1+ (1,0) [0|255] "" ECU
BA_DEF_ BO_ "GenMsgCycleTime" INT 0 65535;
BA_DEF_ SG_ "GenSigTimeoutTime" INT 0 65535;
BA_DEF_DEF_ "GenMsgCycleTime" 0;
BA_DEF_DEF_ "GenSigTimeoutTime" 0;
BA_ "GenMsgCycleTime" BO_ 256 100;
BA_ "GenMsgCycleTime" BO_ 257 100;
BA_ "GenMsgCycleTime" BO_ 258 100;
BA_ "GenMsgCycleTime" BO_ 512 100;
BA_ "GenSigTimeoutTime" SG_ 258 Value 700;
VAL_ 512 Mode 0 "off" 1 "run" ;
"""
J1939 = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 2364539904 EEC1: 8 ECU
 SG_ EngSpeed : 24|16@1+ (0.125,0) [0|8031.875] "rpm" GW
BO_ 2566841854 ANY: 8 ECU
 SG_ Hours : 0|32@1+ (0.05,0) [0|210554060.75] "h" GW
BO_ 2348810494 TSC1: 8 GW
 SG_ Mode : 0|2@1+ (1,0) [0|3] "" ECU
 SG_ Demand : 8|16@1+ (0.125,0) [0|8031.875] "rpm" ECU
BA_DEF_ "ProtocolType" STRING;
BA_DEF_DEF_ "ProtocolType" "";
BA_ "ProtocolType" "J1939";
"""
PLANT = """version: 1
gateway: {name: gw}
links:
  can0: {type: can, LINK}
  hmi: {type: modbus-server, host: 127.0.0.1, port: 15020}
devices:
  ecu:
    link: can0
    database: bus.dbc
    DEVICE
    messages:
      MESSAGE
  panel:
    link: hmi
    points:
      shown: {table: holding, address: 0, type: float32}
      asked: {table: holding, address: 2, access: readwrite, min: 0, max: 10}
routes:
  - ROUTE
"""
VIRTUAL = "interface: virtual, channel: x"
WRITES = "{from: panel.asked, to: ecu.Command.Mode}"


@pytest.fixture
def plant(tmp_path):
    """Load a configuration of which some lines are the test's."""

    def make(
        message="Status: {}",
        *,
        device="description: a node",
        link=VIRTUAL,
        route="{from: ecu.Status.Speed, to: panel.shown}",
        dbc=DBC,
    ):
        if dbc is J1939:
            route = "{from: ecu.EEC1.EngSpeed, to: panel.shown}" if "Status" in route else route
            message = "EEC1: {}" if message == "Status: {}" else message
        text = PLANT.replace("LINK", link).replace("DEVICE", device)
        (tmp_path / "bus.dbc").write_text(dbc)
        (tmp_path / "plant.yaml").write_text(text.replace("MESSAGE", message).replace("ROUTE", route))
        return load(tmp_path / "plant.yaml")

    return make


def message_of(plant, name):
    return next(item for item in plant.links["can0"].messages if item.message.name == name)


def only_problem(plant, *arguments, **more):
    with pytest.raises(ConfigError) as caught:
        plant(*arguments, **more)
    found = [item for item in caught.value.problems if not item.is_warning]
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


# --- deadlines


@pytest.mark.parametrize(
    ("name", "message", "device", "common_s", "branch_s"),
    [
        ("Status", "Status: {}", "", 0.3, None),  # three of the database's cycles
        ("Status", "Status: {cycle: 1s}", "", 3.0, None),
        ("Status", "Status: {timeout: 50ms}", "", 0.05, None),  # only the configuration goes below 200 ms
        ("Status", "Status: {cycle: 10ms}", "", 0.2, None),
        ("Status", "Status: {timeout: 1s, cycle: 5s}", "timeout: 7s", 1.0, None),
        ("Status", "Status: {}", "timeout: 7s", 0.3, None),  # the device's is where nothing else is known
        ("Timed", "Status: {}", "", 0.7, None),
        ("Timed", "Timed: {cycle: 2s}", "", 6.0, None),  # no longer than the cycle: not meant for us
        ("Timed", "Timed: {timeout: 2s}", "", 2.0, None),
        ("Paged", "Status: {}", "", 0.3, 0.6),  # two branches take turns
        ("Paged", "Paged: {timeout: 2s}", "", 2.0, 2.0),
        ("Rare", "Status: {}", "timeout: 7s", 7.0, None),
        ("Rare", "Rare: {timeout: 1s}", "timeout: 7s", 1.0, None),
    ],
)
def test_the_deadline_is_the_first_that_there_is(plant, name, message, device, common_s, branch_s):
    found = message_of(plant(message, device=device or "description: x"), name)
    for signal in found.message.signals:
        wanted_s = branch_s if signal.condition else common_s
        assert found.deadline_of(signal.condition) == pytest.approx(wanted_s)


def test_of_which_nothing_is_known_the_deadline_is_learned(plant):
    found = message_of(plant(), "Rare")
    assert found.deadline_of(()) is None
    assert found.learns_deadline


def test_only_what_has_no_deadline_at_all_learns_one(plant):
    assert not message_of(plant(device="timeout: 7s"), "Rare").learns_deadline


# --- J1939


def test_a_source_address_is_the_messages_then_the_devices_then_the_databases(plant):
    def source(name, message="EEC1: {}", device="description: x"):
        return message_of(plant(message, device=device, dbc=J1939), name).source_address

    assert source("EEC1") == 0
    assert source("ANY") is None  # 254 in the database: anybody
    assert source("EEC1", device="source_address: 7") == 7
    assert source("ANY", device="source_address: 7") == 7
    assert source("EEC1", device="source_address: any") is None
    assert source("EEC1", "EEC1: {source_address: 9}", "source_address: 7") == 9
    assert source("ANY", "EEC1: {source_address: 9}", "source_address: 7") == 7
    assert source("EEC1", "EEC1: {source_address: any}", "source_address: 7") is None


def test_a_destination_is_the_messages_or_the_databases(plant):
    assert message_of(plant("TSC1: {destination: 3}", dbc=J1939), "TSC1").destination == 3
    assert message_of(plant("TSC1: {destination: 255}", dbc=J1939), "TSC1").destination == 255
    assert message_of(plant(dbc=J1939), "TSC1").destination == 0
    assert message_of(plant(dbc=J1939), "EEC1").destination == 255


def test_what_the_database_says_of_the_protocol_can_be_overruled(plant):
    assert message_of(plant(dbc=J1939), "EEC1").is_j1939
    plain = message_of(plant(dbc=J1939, device="protocol: plain"), "EEC1")
    assert (plain.is_j1939, plain.source_address) == (False, None)
    assert not message_of(plant(), "Status").is_j1939
    assert not message_of(plant(device="protocol: j1939"), "Status").is_j1939  # 11 bits have no PGN


def test_dm1_is_there_for_j1939_and_dm2_when_it_is_asked_for(plant):
    names = {item.message.name for item in plant(dbc=J1939).links["can0"].messages}
    assert "DM1" in names
    assert "DM2" not in names
    asked = plant("DM2: {request: pgn, scan: 5s, timeout: 3s}", dbc=J1939, device="source_address: 4")
    found = message_of(asked, "DM2")
    assert (found.request.is_pgn, found.request.scan_s, found.request.timeout_s) == (True, 5.0, 3.0)
    assert found.source_address == 4
    assert "DM1" not in {item.message.name for item in plant().links["can0"].messages}


def test_a_request_for_a_pgn_has_a_timeout_of_its_own(plant):
    found = message_of(plant("ANY: {request: pgn}", dbc=J1939), "ANY").request
    assert (found.is_pgn, found.scan_s, found.timeout_s) == (True, 1.0, 1.25)


def test_the_name_is_as_configured_and_the_identity_number_our_own(plant):
    fields = "manufacturer_code: 5, function: 7, industry_group: 2, arbitrary_address_capable: false"
    link = plant(dbc=J1939, link=VIRTUAL + f", j1939: {{address: 0x21, name: {{{fields}}}}}").links["can0"]
    name = link.node_settings.name
    assert link.node_settings.address == 0x21
    assert (name.manufacturer_code, name.function, name.industry_group) == (5, 7, 2)
    assert not name.is_arbitrary_address_capable
    default = plant(dbc=J1939).links["can0"].node_settings
    assert default.address == 0x80
    assert default.name.is_arbitrary_address_capable
    assert default.name.identity_number == name.identity_number != 0
    given = plant(dbc=J1939, link=VIRTUAL + ", j1939: {name: {identity_number: 77}}").links["can0"]
    assert given.node_settings.name == Name(identity_number=77, is_arbitrary_address_capable=True)


# --- requests


@pytest.mark.parametrize(
    ("text", "frame_id", "is_extended", "data", "is_remote"),
    [
        ("{id: 0x700, data: 02 01 0C}", 0x700, False, b"\x02\x01\x0c", False),
        ("{id: 0x700}", 0x700, False, b"", False),
        ("{id: 0x800}", 0x800, True, b"", False),
        ("{id: 0x700, extended: true, data: 02010c}", 0x700, True, b"\x02\x01\x0c", False),
        ("{rtr: true}", 0x100, False, b"", True),
        ("{rtr: true, id: 0x18EA0003}", 0x18EA0003, True, b"", True),
    ],
)
def test_a_request_is_the_frame_that_it_says(plant, text, frame_id, is_extended, data, is_remote):
    found = message_of(plant(f"Status: {{request: {text}, scan: 3s}}"), "Status").request
    assert (found.frame_id, found.is_extended, found.data, found.is_remote) == (
        frame_id,
        is_extended,
        data,
        is_remote,
    )
    assert (found.scan_s, found.timeout_s, found.is_pgn) == (3.0, 0.5, False)


def test_the_timeout_of_a_request_is_the_messages_or_the_devices(plant):
    def timeout_s(message, device="description: x"):
        return message_of(plant(message, device=device), "Status").request.timeout_s

    assert timeout_s("Status: {request: {rtr: true}, timeout: 2s}", "timeout: 7s") == 2.0
    assert timeout_s("Status: {request: {rtr: true}}", "timeout: 7s") == 7.0


# --- what is sent while a source is bad


def safe(plant, on_bad, dbc=DBC, name="Command"):
    found = message_of(plant(f"{name}: {{on_bad: {on_bad}}}", dbc=dbc), name)
    return {signal.name: value for signal, value in found.safe.items()}


def test_on_bad_says_which_signals_have_something_to_say_then(plant):
    assert safe(plant, "stop") == {}
    assert safe(plant, "{Torque: 0, Mode: 1}") == {"Torque": 0, "Mode": 1}
    assert safe(plant, "{Torque: -100}") == {"Torque": -100}
    assert safe(plant, "{Mode: run}") == {"Mode": "run"}
    assert safe(plant, "not_available", J1939, "TSC1") == {"Mode": None, "Demand": None}
    assert safe(plant, "{Demand: not_available}", J1939, "TSC1") == {"Demand": None}
    assert safe(plant, "{Demand: 600}", J1939, "TSC1") == {"Demand": 600}
    assert message_of(plant(), "Command").safe == {}


# --- protection


def test_a_protected_message_has_a_guard_and_its_signals_are_not_ours_to_write(plant):
    text = "Command: {checksum: {signal: Crc, algorithm: crc8-j1850}, counter: {signal: Count}}"
    found = message_of(plant(text, route=WRITES), "Command")
    first, second = found.guard(), found.guard()
    assert first is not second  # each who hears it counts for itself
    assert first.owned == {"Crc", "Count"}
    access = {signal.name: point.access for signal, point in found.points.items()}
    assert access == {
        "Crc": Access.READ,
        "Count": Access.READ,
        "Mode": Access.READWRITE,
        "Torque": Access.READWRITE,
    }
    frame = first.protect(b"\1\2\0\0")
    assert second.check(frame) is None
    assert second.check(bytes([frame[0] ^ 1, *frame[1:]])) == "bad checksum"
    assert message_of(plant(), "Status").guard is None


def test_end_to_end_protection_owns_what_its_header_covers(plant):
    text = 'Command: {e2e: {profile: "2", data_id_list: 000102030405060708090A0B0C0D0E0F}}'
    found = message_of(plant(text), "Command")
    assert found.guard().owned == {"Mode", "Torque"}  # a byte of CRC, and the counter in the next one
    assert found.guard().period == 16


# --- links


def test_options_are_handed_to_the_interface_as_they_are(plant):
    link = plant(link="interface: slcan, channel: /dev/ttyACM0, bitrate: 125000, ttyBaudrate: 115200").links[
        "can0"
    ]
    assert link.options == {
        "interface": "slcan",
        "channel": "/dev/ttyACM0",
        "bitrate": 125000,
        "ttyBaudrate": 115200,
    }
    link = plant(link="interface: pcan, fd: true, f_clock_mhz: 80").links["can0"]
    assert link.options == {"interface": "pcan", "fd": True, "f_clock_mhz": 80}
    link = plant(link="interface: socketcan, channel: can0, receive_buffer: 65536").links["can0"]
    assert link.options["receive_buffer"] == 65536
    assert "latency" not in link.options


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("1ms", 0.001), ("0.1 s", 0.1)])
def test_the_latency_is_handed_over_in_seconds(plant, text, seconds):
    link = plant(link=f"interface: socketcan, channel: can0, latency: {text}").links["can0"]
    assert link.options["latency"] == seconds


def test_a_replay_has_its_log_found_beside_the_configuration(plant, tmp_path):
    (tmp_path / "drive.log").write_text("(1.0) can0 100#0102\n")
    for further in (
        "",
        ", speed: 10",
        ", speed: 0.5",
        ", speed: stepped",
        ", loop: true",
        ", log_channel: can1",
    ):
        link = plant(link=f"interface: replay, channel: drive.log{further}").links["can0"]
        assert link.options["channel"] == (tmp_path / "drive.log").resolve()


def test_the_budget_is_what_cycles_leave_and_never_nothing(plant):
    cyclic = 44 + 32 + 3 + (34 + 32 - 1) // 4  # bits of Command, ten times a second
    free = plant(link=VIRTUAL + ", bitrate: 125000", route=WRITES).links["can0"]
    assert free._bits_per_s is None
    third = plant(link=VIRTUAL + ", bitrate: 125000, max_tx_load: 30%", route=WRITES).links["can0"]
    assert third._bits_per_s == pytest.approx(0.3 * 125_000 - cyclic * 10)
    # What is only listened to takes none of it.
    silent = plant(link=VIRTUAL + ", bitrate: 125000, max_tx_load: 0.5 %").links["can0"]
    assert silent._bits_per_s == pytest.approx(625)
    least = plant(link=VIRTUAL + ", bitrate: 10000, max_tx_load: 1%").links["can0"]
    assert least._bits_per_s == 150


# --- mistakes


LINE_OF = {"link": 4, "device": 10, "message": 12, "route": 19}


@pytest.mark.parametrize(
    ("link", "path", "words"),
    [
        ("channel: can0", "links.can0.interface", "'interface' is missing"),
        ("interface: socketcan", "links.can0", "`channel` is missing: the interface, such as can0"),
        ("interface: replay", "links.can0", "`channel` is missing: the log's file"),
        (
            "interface: socketcan, channel: can0, recieve_buffer: 5",
            "links.can0",
            "socketcan has no key 'recieve_buffer' (did you mean 'receive_buffer'?)",
        ),
        (
            "interface: socketcan, channel: can0, latency: 0.5ms",
            "links.can0.latency",
            "0.5ms is neither 0 nor between 1ms and 100ms",
        ),
        (
            "interface: socketcan, channel: can0, latency: 1s",
            "links.can0.latency",
            "1s is neither 0 nor between 1ms and 100ms",
        ),
        ("interface: socketcan, channel: can0, latency: 2", "links.can0.latency", "2 has no unit: write 2ms"),
        ("interface: socketcan, channel: can0, latency: no", "links.can0.latency", "is not a duration"),
        (VIRTUAL + ", latency: 2ms", "links.can0", "`latency` is a matter of socketcan"),
        ("interface: socketcan, channel: can0, speed: 2", "links.can0", "socketcan has no key 'speed'"),
        (VIRTUAL + ", max_tx_load: 30%", "links.can0", "`max_tx_load` is a share of the `bitrate`"),
        (VIRTUAL + ", bitrate: 500000, max_tx_load: 30", "links.can0.max_tx_load", "30 is not a share"),
        (VIRTUAL + ", bitrate: 500000, max_tx_load: 0%", "links.can0.max_tx_load", "is not a share"),
        (VIRTUAL + ", bitrate: 500000, max_tx_load: 101%", "links.can0.max_tx_load", "is not a share"),
        (VIRTUAL + ", bitrate: 500", "links.can0.bitrate", "500 is not at least 1000"),
        (VIRTUAL + ", bitrate: 500k", "links.can0.bitrate", "'500k' is not a whole number"),
        (VIRTUAL + ", fd: yes", "links.can0.fd", "'yes' is not true or false"),
        (VIRTUAL + ", j1939: {address: 254}", "links.can0.j1939.address", "254 is not at most 253"),
        (VIRTUAL + ", j1939: {adress: 5}", "links.can0.j1939.adress", "did you mean 'address'?"),
        (
            VIRTUAL + ", j1939: {name: {identity_number: 3000000}}",
            "links.can0.j1939.name.identity_number",
            "is not less than 2097152",
        ),
        (
            VIRTUAL + ", j1939: {name: {functoin: 3}}",
            "links.can0.j1939.name.functoin",
            "did you mean 'function'?",
        ),
        ("interface: replay, channel: none.log", "links.can0.channel", "there is no file 'none.log'"),
        ("interface: replay, channel: bus.dbd", "links.can0.channel", "did you mean 'bus.dbc'?"),
        ("interface: replay, channel: ../x.log", "links.can0.channel", "leaves the config's folder"),
        (
            "interface: replay, channel: bus.dbc, speed: 0",
            "links.can0",
            "`speed` is stepped, or a number above 0",
        ),
        (
            "interface: replay, channel: bus.dbc, speed: fast",
            "links.can0",
            "`speed` is stepped, or a number above 0",
        ),
        (
            "interface: replay, channel: bus.dbc, speed: true",
            "links.can0",
            "`speed` is stepped, or a number above 0",
        ),
        (
            "interface: replay, channel: bus.dbc, speed: .nan",
            "links.can0",
            "`speed` is stepped, or a number above 0",
        ),
        ("interface: replay, channel: bus.dbc, loop: 1", "links.can0", "`loop` is true or false"),
        ("interface: replay, channel: bus.dbc, lop: true", "links.can0", "did you mean 'loop'?"),
    ],
)
def test_a_mistake_in_a_link_is_one_problem_at_its_place(plant, link, path, words):
    found = only_problem(plant, link=link)
    assert (found.path, found.line) == (path, LINE_OF["link"])
    assert words in f"{found.message} ({found.hint})"


def test_cycles_that_need_more_than_we_may_take_are_refused_and_named(plant):
    found = only_problem(plant, link=VIRTUAL + ", bitrate: 10000, max_tx_load: 1%", route=WRITES)
    assert (found.path, found.line) == ("links.can0.max_tx_load", LINE_OF["link"])
    assert "takes 9.5% of the bus, 1% are allowed" in found.message
    assert "ecu.Command 9.5%" in found.hint


@pytest.mark.parametrize(
    ("device", "path", "words"),
    [
        ("source_address: 300", "source_address", "300 is neither a source address (0 to 253) nor `any`"),
        ("source_address: 254", "source_address", "is neither a source address"),
        ("source_address: true", "source_address", "is neither a source address"),
        ("source_address: all", "source_address", "'all' is neither a source address"),
        ("protocol: j1938", "protocol", "did you mean 'j1939'?"),
        ("timeout: 5", "timeout", "5 has no unit"),
        ("timeout: 0s", "timeout", "is not between"),
        ("protocl: j1939", "protocl", "did you mean 'protocol'?"),
    ],
)
def test_a_mistake_in_a_device_is_one_problem_at_its_place(plant, device, path, words):
    found = only_problem(plant, device=device, dbc=J1939)
    assert (found.path, found.line) == (f"devices.ecu.{path}", LINE_OF["device"])
    assert words in f"{found.message} ({found.hint})"


@pytest.mark.parametrize(
    ("message", "path", "words"),
    [
        ("Statsu: {timeout: 1s}", "Statsu", "has no message 'Statsu' (did you mean 'Status'?)"),
        ("DM1: {timeout: 1s}", "DM1", "the database has no message 'DM1'"),  # not J1939
        ("Status: {tiemout: 1s}", "Status.tiemout", "did you mean 'timeout'?"),
        ("Status: [1]", "Status", "a list is not a mapping"),
        ("Status: {timeout: 1}", "Status.timeout", "1 has no unit"),
        ("Status: {cycle: 0ms}", "Status.cycle", "is not between"),
        ("Status: {scan: 1s}", "Status", "`scan` is how often a `request` is sent, and there is none"),
        ("Status: {request: pgn}", "Status.request", "only J1939 messages have a PGN to ask for"),
        ("Status: {request: png}", "Status.request", "'png' is no request: write `pgn`"),
        ("Status: {request: {data: 01 02}}", "Status.request", "`id` is missing"),
        ("Status: {request: {id: 0x700, data: xyz}}", "Status.request.data", "is not hexadecimal"),
        ("Status: {request: {id: 7, data: 0 1}}", "Status.request.data", "is not hexadecimal"),
        (f"Status: {{request: {{id: 7, data: {'AB' * 65}}}}}", "Status.request.data", "65 bytes do not fit"),
        ('Status: {request: {rtr: true, data: "01"}}', "Status.request", "a remote frame has no data"),
        ("Status: {request: {pgn: true, id: 5}}", "Status.request", "a request for a PGN has nothing else"),
        ("Status: {request: {id: 0x20000000}}", "Status.request.id", "is not at most 536870911"),
        ("Status: {request: {id: 0x800, extended: false}}", "Status.request", "does not fit the 11 bits"),
        ("Status: {source_address: 300}", "Status.source_address", "is neither a source address"),
        ("Status: {destination: 256}", "Status.destination", "256 is neither an address"),
        ("Status: {checksum: {signal: Crcc, algorithm: xor}}", "Status.checksum.signal", "no signal 'Crcc'"),
        ("Status: {checksum: {signal: Odd, algorithm: xor}}", "Status", "does not begin at a byte"),
        ("Status: {checksum: {signal: Alive, algorithm: crc8-j1850}}", "Status", "has 4 bits, a checksum by"),
        ("Status: {checksum: {signal: Temp, algorithm: xor, over: 5-9}}", "Status", "has no bytes 5-9"),
        ("Status: {checksum: {signal: Temp, algorithm: xor, over: 3-1}}", "Status.checksum.over", "ends before"),
        ("Status: {checksum: {signal: Temp, algorithm: xor, over: all}}", "Status.checksum.over", "such as 0-6"),
        ("Status: {checksum: {signal: Temp, algorithm: crc9}}", "Status.checksum.algorithm", "no checksum 'crc9'"),
        ("Status: {checksum: {signal: Temp, algorithm: xor, prefix: zz}}", "Status.checksum.prefix", "hexadecimal"),
        ("Status: {checksum: {signal: Temp, algorithm: xor, initial: 256}}", "Status", "have at most 8 bits"),
        ("Status: {checksum: {signal: Temp, algorithm: toyota, initial: 1}}", "Status", "nothing but `signal`"),
        ("Status: {counter: {signal: Aliv}}", "Status.counter.signal", "no signal 'Aliv'"),
        ("Status: {counter: {signal: Alive, modulo: 17}}", "Status", "cannot count modulo 17"),
        ("Status: {counter: {signal: Alive, step: 0}}", "Status.counter", "moves by 0 does not count"),
        ("Status: {counter: {signal: Alive, step: 16}}", "Status", "does not move by 16"),
        ("Status: {counter: {signal: Alive, stuck_after: 1}}", "Status.counter.stuck_after", "not at least 2"),
        ("Paged: {counter: {signal: One}}", "Paged", "is not in every frame"),
        (
            "Status: {checksum: {signal: Temp, algorithm: xor}, counter: {signal: Temp}}",
            "Status",
            "Temp cannot be both checksum and counter",
        ),
        ("Status: {e2e: {profile: 1, data_id: 5}}", "Status.e2e.profile", "1 is not text"),
        ('Status: {e2e: {profile: "3", data_id: 5}}', "Status.e2e", "there is no profile '3'"),
        ('Status: {e2e: {profile: "1"}}', "Status.e2e", "profile 1 has a `data_id`"),
        ('Status: {e2e: {profile: "2", data_id: 5}}', "Status.e2e", "profile 2 has a `data_id_list`"),
        ('Status: {e2e: {profile: "1", data_id: 0x1234, variant: C}}', "Status.e2e", "0x1234 does not fit"),
        ('Status: {e2e: {profile: "1", data_id: 5, variant: D}}', "Status.e2e.variant", "is not one of A, B, C"),
        ('Status: {e2e: {profile: "1", data_id: 5, offset: 40}}', "Status", "does not fit 8 bytes"),
        ('Status: {e2e: {profile: "1", data_id: 5, length: 9}}', "Status", "has 8 bytes, not 9"),
        ('Status: {e2e: {profile: "1", data_id: 5}, counter: {signal: Alive}}', "Status", "write it alone"),
        ("Command: {on_bad: hodl}", "Command.on_bad", "'hodl' is neither `stop` nor `not_available`"),
        ("Command: {on_bad: 5}", "Command.on_bad", "5 is neither"),
        ("Command: {on_bad: [Mode]}", "Command.on_bad", "is neither"),
        ("Command: {on_bad: {Torqe: 0}}", "Command.on_bad.Torqe", "did you mean 'Torque'?"),
        ("Command: {on_bad: {Torque: 200}}", "Command.on_bad.Torque", "200 does not fit the 8 bits of Torque"),
        ("Command: {on_bad: {Mode: 5000}}", "Command.on_bad.Mode", "does not fit the 8 bits"),
        ("Command: {on_bad: {Mode: of}}", "Command.on_bad.Mode", "'of' is not a number, nor a label"),
        ("Command: {on_bad: {Mode: .nan}}", "Command.on_bad.Mode", "nan"),
        ("Command: {on_bad: {Torque: not_available}}", "Command.on_bad.Torque", "no raw value that means"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_message_is_one_problem_at_its_place(plant, message, path, words):
    found = only_problem(plant, message)
    assert (found.path, found.line) == (f"devices.ecu.messages.{path}", LINE_OF["message"])
    assert words in f"{found.message} ({found.hint})"


@pytest.mark.parametrize(
    ("message", "path", "words"),
    [
        ("DM3: {}", "DM3", "the database has no message 'DM3'"),
        ("TSC1: {on_bad: {Demand: 8191}}", "TSC1.on_bad.Demand", "would say that there is no value"),
        ("EEC1: {source_address: 254}", "EEC1.source_address", "is neither a source address"),
        (
            "TSC1: {checksum: {signal: Demand, algorithm: crc16-ccitt, include_id: true}}",
            "TSC1",
            "needs an identifier that is always the same",
        ),
    ],
)
def test_a_mistake_in_a_j1939_message_is_one_problem_at_its_place(plant, message, path, words):
    found = only_problem(plant, message, dbc=J1939)
    assert (found.path, found.line) == (f"devices.ecu.messages.{path}", LINE_OF["message"])
    assert words in f"{found.message} ({found.hint})"


@pytest.mark.parametrize("signal", ["Crc", "Count"])
def test_what_protects_a_message_is_no_target_of_a_route(plant, signal):
    text = "Command: {checksum: {signal: Crc, algorithm: crc8-j1850}, counter: {signal: Count}}"
    found = only_problem(plant, text, route=f"{{from: panel.asked, to: ecu.Command.{signal}}}")
    assert (found.path, found.line) == ("routes[0].to", LINE_OF["route"])
    assert f"ecu.Command.{signal} is not writable" in found.message


def test_a_route_to_a_signal_that_is_misspelt_says_what_was_meant(plant):
    found = only_problem(plant, route="{from: ecu.Status.Sped, to: panel.shown}")
    assert (found.path, found.hint) == ("routes[0].from", "did you mean 'ecu.Status.Speed'?")


def test_all_mistakes_are_told_at_once(plant):
    with pytest.raises(ConfigError) as caught:
        plant(
            "Status: {request: pgn, checksum: {signal: Crcc, algorithm: xor}}",
            link=VIRTUAL + ", max_tx_load: 30%",
            device="timeout: 5s",
            route="{from: ecu.Status.Sped, to: panel.shown}",
        )
    assert {item.path for item in caught.value.problems} == {
        "links.can0",
        "devices.ecu.messages.Status.request",
        "devices.ecu.messages.Status.checksum.signal",
        "routes[0].from",
    }


def test_values_that_floating_point_cannot_say_bound_nothing_and_have_no_name(plant):
    dbc = DBC.replace("16|8@1+ (1,-40) [-40|210]", "16|16@1+ (1e305,0.5) [0|0]")
    dbc += 'VAL_ 256 Temp 1 "one" 60000 "SNA" ;\n'
    point = plant(dbc=dbc).points["ecu.Status.Temp"]
    assert (point.lowest, point.highest, list(point.labels.values())) == (None, None, ["one"])
