"""From files to a plant, or to all problems at once."""

import json
import re
from pathlib import Path

import pytest

from fieldbus.errors import ConfigError
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.config.schema import json_schema
from fieldbus.model import Access, Kind

DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 256 EngineStatus: 8 ECU
 SG_ EngineSpeed : 0|16@1+ (0.125,0) [0|8000] "rpm" GW
BO_ 512 PanelStatus: 8 GW
 SG_ CoolantTemp : 0|16@1- (0.1,0) [-40|210] "degC" ECU
BA_DEF_ BO_ "GenMsgCycleTime" INT 0 65535;
BA_ "GenMsgCycleTime" BO_ 256 100;
"""
MAP = """points:
  temperature: {table: holding, address: 0, type: float32, unit: °C, min: 0, max: 200}
  setpoint: {reference: 40011, type: int16, scale: 0.1, access: readwrite, min: 0, max: 100}
  running: {table: coil, address: 0, access: readwrite}
"""
PLANT = """version: 1
gateway:
  name: press-line
  data_dir: data
links:
  plc_net: {type: modbus-tcp, host: 127.0.0.1, port: 1502, timeout: 500ms}
  can0:    {type: can, interface: virtual, channel: vcan0}
  hmi:     {type: modbus-server, host: 127.0.0.1, port: 1503}
  broker:  {type: mqtt, host: 127.0.0.1, port: 1883}
devices:
  press: {link: plc_net, unit_id: 1, scan: 500ms, map: maps/press.yaml}
  engine: {link: can0, database: engine.dbc}
  panel:
    link: hmi
    unit_id: 1
    points:
      engine_speed: {table: holding, address: 0, type: float32}
      start:        {table: coil, address: 0, access: readwrite}
  remote:
    link: broker
    points:
      setpoint: {topic: plant/setpoint, type: float64, min: 0, max: 100}
routes:
  - {from: engine.EngineStatus.EngineSpeed, to: panel.engine_speed}
  - {from: press.temperature, to: engine.PanelStatus.CoolantTemp, every: 100ms}
  - {from: remote.setpoint, to: press.setpoint, deadband: 0.5, min_interval: 1s}
  - {from: "press.*", to: "broker:plant/{gateway}/{device}/{point}"}
"""


@pytest.fixture
def plant(tmp_path):
    """Write a configuration, changed by (old, new) pairs, and return its file."""

    def write(*changes, text=PLANT, map_text=MAP, **files):
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        (tmp_path / "maps").mkdir(exist_ok=True)
        (tmp_path / "maps" / "press.yaml").write_text(map_text)
        (tmp_path / "engine.dbc").write_text(DBC)
        for name, content in files.items():
            (tmp_path / name.replace("__", ".")).write_text(content)
        path = tmp_path / "plant.yaml"
        path.write_text(text)
        return path

    return write


def problems(path):
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.problems


def only(path):
    found = problems(path)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def test_the_example_of_the_interface_loads(plant):
    found = load(plant())
    assert found.name == "press-line"
    assert list(found.links) == ["plc_net", "can0", "hmi", "broker"]
    assert len(found.edges) == 6
    assert found.points["press.temperature"].unit == "°C"
    assert found.points["press.setpoint"].kind is Kind.FLOAT
    assert found.points["engine.EngineStatus.EngineSpeed"].maximum == 8000
    assert found.points["sys.press.online"].kind is Kind.BOOL
    assert found.data_dir == plant().parent / "data"


def test_what_masters_may_do_is_not_what_routes_may_do(plant):
    found = load(plant())
    assert found.points["panel.engine_speed"].access is Access.WRITE
    assert found.points["panel.start"].access is Access.READWRITE


def test_a_dozen_mistakes_are_reported_in_one_go_each_with_its_line(plant):
    path = plant(
        ("type: modbus-tcp", "type: modbus-tpc"),
        ("port: 1503", "port: 150300"),
        ("scan: 500ms", "scan: 500"),
        ("maps/press.yaml", "maps/pres.yaml"),
        ("database: engine.dbc", "databse: engine.dbc"),
        ("type: float32}", "type: flaot32}"),
        ("coil, address: 0", "coil, address: -1"),
        ("type: float64,", "type: float46,"),
        ("every: 100ms", "every: soon"),
        ("deadband: 0.5", "deadbnad: 0.5"),
        ("to: press.setpoint", "to: press.setpiont"),
        ('"broker:plant/{gateway}', '"brokr:plant/{gateway}'),
        ("name: press-line", "name: press line"),
    )
    found = problems(path)
    assert [(problem.line, problem.path) for problem in found if not problem.is_warning] == [
        (3, "gateway.name"),
        (6, "links.plc_net.type"),
        (8, "links.hmi.port"),
        (11, "devices.press.scan"),
        (11, "devices.press.map"),
        (12, "devices.engine.database"),
        (12, "devices.engine.databse"),
        (17, "devices.panel.points.engine_speed.type"),
        (18, "devices.panel.points.start.address"),
        (22, "devices.remote.points.setpoint.type"),
        (25, "routes[1].every"),
        (26, "routes[2].deadbnad"),
    ]
    text = "\n".join(map(str, found))
    for words in (
        "did you mean 'modbus-tcp'?", "150300 is not at most 65535", "500 has no unit", "did you mean 'press.yaml'?",
        "did you mean 'database'?", "did you mean 'float32'?", "-1 is not at least 0", "did you mean 'float64'?",
        "'soon' is not a duration", "did you mean 'deadband'?", "a name cannot have",
    ):  # fmt: skip
        assert words in text, f"{words}\n{text}"
    assert all(problem.line > 0 and problem.column > 0 for problem in found)


def test_problems_in_routes_are_found_beside_problems_in_devices(plant):
    found = problems(
        plant(("type: float32}", "type: flaot32}"), ("to: press.setpoint", "to: press.setpiont"))
    )
    assert [problem.path for problem in found] == [
        "devices.panel.points.engine_speed.type",
        "routes[2].to",
    ]
    assert found[1].hint == "did you mean 'press.setpoint'?"


def test_a_device_with_problems_is_not_blamed_on_its_routes(plant):
    assert only(plant(("type: float32}", "type: flaot32}"))).path == "devices.panel.points.engine_speed.type"


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "words"),
    [
        ("version: 1", "version: 2", 1, "version", "is not 1"),
        ("version: 1\n", "", 1, "version", "'version' is missing"),
        ("links:", "linkz:", 5, "linkz", "unknown key"),
        ("  plc_net:", "  plc net:", 6, "links.plc net", "is not a name for a link"),
        ("type: modbus-tcp", "type: store", 11, "devices.press.link", "a store, which has no devices"),
        ("timeout: 500ms", "timeout: 0ms", 6, "links.plc_net.timeout", "is not between"),
        ("timeout: 500ms", "timeut: 500ms", 6, "links.plc_net.timeut", "unknown key"),
        ("host: 127.0.0.1, port: 1502", "port: 1502", 6, "links.plc_net.host", "'host' is missing"),
        ("port: 1502", 'port: "1502"', 6, "links.plc_net.port", "is not a whole number"),
        ("link: plc_net", "link: plc_nett", 11, "devices.press.link", "there is no link 'plc_nett'"),
        ("unit_id: 1, scan", "unit_id: 256, scan", 11, "devices.press.unit_id", "is not at most 255"),
        ("maps/press.yaml", "../press.yaml", 11, "devices.press.map", "leaves the config's folder"),
        ("engine.dbc", "engin.dbc", 12, "devices.engine.database", "there is no file"),
        ("start:  ", "st art:", 18, "devices.panel.points.st art", "is not a name for a point"),
        (
            "{topic: plant/setpoint,",
            "{topic: plant/#,",
            22,
            "devices.remote.points.setpoint.topic",
            "is not one topic",
        ),
        ("to: panel.engine_speed", "to: panel.engine_sped", 24, "routes[0].to", "there is no point"),
        ("to: press.setpoint", "to: press.temperature", 26, "routes[2].to", "is not writable"),
        ("deadband: 0.5", "deadband: 5 %%", 26, "routes[2].deadband", "neither a number nor a percentage"),
        ("deadband: 0.5", "durable: true", 26, "routes[2].durable", "never kept and sent later"),
        ("deadband: 0.5", "scale: 0", 26, "routes[2].scale", "makes everything 0"),
        ("deadband: 0.5", "on_bad: hodl", 26, "routes[2].on_bad", "is not one of hold, send"),
        ("  press: {", "  sys: {", 11, "devices.sys", "the gateway's own device"),
    ],
)
def test_one_mistake_is_one_problem_at_its_line(plant, old, new, line, path, words):
    changes = [(old, new)]
    if new == "  sys: {":
        changes += [("press.temperature", "remote.setpoint"), ("to: press.setpoint", "to: engine.EngineStatus.EngineSpeed"),
                    ('"press.*"', '"remote.*"'), ("EngineStatus.EngineSpeed, to: panel", "PanelStatus.CoolantTemp, to: panel")]  # fmt: skip
    found = [problem for problem in problems(plant(*changes)) if not problem.is_warning]
    first = next((problem for problem in found if problem.path == path), None)
    assert first is not None, "\n".join(map(str, found))
    assert words in f"{first.message} {first.hint}"
    assert first.line == line


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ("{table: holding}", "`address` is missing"),
        ("{table: coil, address: 0, type: uint16}", "is one bit"),
        ("{table: holding, address: 0, type: bool}", "needs `bit`"),
        ("{table: holding, address: 0, type: string}", "needs `length`"),
        ("{table: holding, address: 0, length: 4}", "`length` is for strings"),
        ("{table: holding, address: 0, bit: 16}", "outside the 16 bits"),
        ("{table: holding, address: 0, bit: 1, bits: 1-2}", "exclude each other"),
        ("{table: holding, address: 0, bits: x}", "not a range of bits"),
        ("{table: holding, address: 0, type: float32, bit: 1}", "has no bits"),
        ("{table: holding, address: 65535, type: uint32}", "beyond address 65535"),
        ("{reference: 20001}", "is not a reference"),
        ("{reference: 40000}", "has no address"),
        ("{reference: 40001, address: 0}", "stands instead of"),
        ("{table: holding, address: 0, min: 5, max: 1}", "above max"),
        ("{table: holding, address: 0, scale: 0}", "makes everything 0"),
        ("{table: input, address: 0, access: readwrite}", "cannot be written"),
        ("{table: input, address: 30, bit: 1, access: write}", "cannot be written"),
        ("{table: holding, address: 65530, type: float32, count: 4}", "beyond address 65535"),
        ("{table: holding, address: 0, type: int16, scale_from: valve.0}", "is no point of the device"),
        ("{table: holding, address: 0, order: AABB}", "is not one of ABCD"),
        ("{table: holding, address: 0, enum: {off: 0}}", "is not a whole number"),
    ],
)
def test_a_point_that_makes_no_sense_is_refused_in_the_map_where_it_stands(plant, point, words):
    path = plant(text=PLANT, map_text=MAP + f"  wrong: {point}\n")
    found = problems(path)
    assert len(found) == 1, "\n".join(map(str, found))
    assert words in f"{found[0].message} {found[0].hint}"
    assert Path(found[0].file).name == "press.yaml"
    assert found[0].line == 5


@pytest.mark.parametrize(
    ("reference", "table", "address"),
    [
        ("40001", "holding", 0), ("40101", "holding", 100), ("400101", "holding", 100), ("465536", "holding", 65535),
        ("30001", "input", 0), ("10001", "discrete", 0), ("00001", "coil", 0), ('"000017"', "coil", 16), ("17", "coil", 16),
    ],
)  # fmt: skip
def test_references_are_read_as_manuals_write_them(plant, reference, table, address):
    found = load(plant(map_text=MAP + f"  x: {{reference: {reference}}}\n"))
    place = next(item for item in found.devices["press"].parts if item.point.name == "x")
    assert (place.table, place.address) == (table, address)


def test_points_that_would_overwrite_each_other_are_refused(plant):
    served = "engine_speed: {table: holding, address: 0, type: float32}"
    assert (
        "belongs to engine_speed"
        in only(plant((served, served + "\n      other: {table: holding, address: 1}"))).message
    )
    polled = "  a: {table: holding, address: 10, access: write, type: uint32}\n"
    assert "belongs to" in only(plant(map_text=MAP + polled)).message


def test_two_devices_with_one_unit_id_are_refused(plant):
    twin = "  press2: {link: plc_net, unit_id: 1, map: maps/press.yaml}\n  engine:"
    assert "unit id 1 on plc_net is press already" in only(plant(("  engine:", twin))).message


def test_a_map_can_be_csv(plant):
    text = 'name,table,address,type,order,scale,enum,unit\nspeed,holding,0x10,uint32,CDAB,0.1,,rpm\nmode,holding,20,,,,"{0: off}",\n'
    found = load(
        plant(
            ("maps/press.yaml", "m.csv"),
            ("press.temperature", "press.speed"),
            ("press.setpoint", "panel.start"),
            m__csv=text,
        )
    )
    speed, mode = found.devices["press"].parts
    assert (speed.address, speed.order, speed.linear.scale, speed.point.unit) == (16, "CDAB", 0.1, "rpm")
    assert mode.point.labels == {0: "off"}


def test_a_csv_map_has_arrays_flags_scale_factors_and_times(plant):
    text = (
        "name;table;address;type;count;flags;scale_from;timestamp;invalid;access;enum\n"
        "zone;holding;0;int16;3;;7;;0x8000;;\n"
        "7;holding;5;int16;;;;;sunspec;;\n"
        "status;holding;6;uint16;;0=pump_on 3=alarm;;;;;0=off 1 = on the way\n"
        "word;holding;7;uint16;;{0: a, 15: b};;;;readwrite;\n"
        "since;holding;8;uint32;;;;unix;0 0xFFFFFFFF;;\n"
        "temperature;holding;20;int16;;;;;;;\n"
        "setpoint;holding;21;int16;;;;;;readwrite;\n"
    )
    found = load(plant(("maps/press.yaml", "m.csv"), m__csv=text))
    places = {item.point.name: item for item in found.devices["press"].parts}
    assert set(places) >= {
        "zone.0",
        "zone.2",
        "7",
        "status.pump_on",
        "status.alarm",
        "word.a",
        "word.b",
        "since",
    }
    assert places["zone.2"].factor is places["7"]
    assert places["7"].invalid == {0x8000}
    assert places["since"].invalid == {0, 0xFFFFFFFF}
    assert places["status"].point.labels == {0: "off", 1: "on the way"}


def test_a_route_to_a_part_of_a_broken_array_is_not_blamed_for_it(plant):
    text = MAP + "  zone: {table: holding, address: 65535, count: 3}\n"
    path = plant(("press.temperature", "press.zone.1"), map_text=text)
    assert [item.path for item in problems(path)] == ["points.zone"]


def test_problems_in_a_csv_map_have_their_row_and_column(plant):
    text = (
        "name,table,address,type\nspeed,holding,1,flaot32\n,holding,2,\nspeed,holding,x,\nspeed,holding,5,\n"
    )
    found = problems(plant(("maps/press.yaml", "m.csv"), m__csv=text))
    assert [(Path(item.file).name, item.line, item.column) for item in found if item.file.endswith("csv")] == [
        ("m.csv", 2, 17), ("m.csv", 3, 1), ("m.csv", 4, 1), ("m.csv", 5, 1),
    ]  # fmt: skip


def test_routes_can_be_csv(plant):
    text = 'from,to,every,map,on_bad\nengine.EngineStatus.EngineSpeed,panel.engine_speed,1s,,\npress.running,broker:t,,"{true: 1, false: 0}",send\n'
    found = load(plant((PLANT[PLANT.index("routes:") :], "routes: routes.csv\n"), routes__csv=text))
    first, second = found.edges
    assert first.policy.every_s == 1.0
    assert (second.policy.mapping, second.policy.on_bad) == ({True: 1, False: 0}, "send")


def test_problems_in_csv_routes_have_their_line(plant):
    text = "from,to,every\nengine.EngineStatus.EngineSpeed,panel.engine_speed,1\npress.tmperature,broker:t,\n"
    found = problems(plant((PLANT[PLANT.index("routes:") :], "routes: routes.csv\n"), routes__csv=text))
    assert [(Path(item.file).name, item.line, item.column) for item in found] == [
        ("routes.csv", 2, 52), ("routes.csv", 3, 1),
    ]  # fmt: skip


def test_a_secret_is_never_literal_and_never_shown(plant, monkeypatch):
    broker = "port: 1883"
    found = only(plant((broker, broker + ", username: u, password: hunter2canary")))
    assert "write {env: NAME} or {file: PATH}" in found.message
    assert "hunter2canary" not in str(found)
    path = plant((broker, broker + ", username: u, password: {env: BROKER_PASSWORD}"))
    assert "BROKER_PASSWORD is not set" in only(path).message
    assert [item.is_warning for item in load(path, needs_secrets=False).warnings] == [True]
    monkeypatch.setenv("BROKER_PASSWORD", "hunter2canary")
    assert "hunter2canary" not in repr(load(path).link_settings)


def test_what_is_no_database_is_said_with_its_line_and_nothing_else(plant):
    path = plant()
    (path.parent / "engine.dbc").write_text("not a database\n")
    found = only(path)
    assert (Path(found.file).name, found.line) == ("engine.dbc", 1)


def test_a_broken_message_costs_itself_and_the_routes_to_it(plant):
    path = plant()
    (path.parent / "engine.dbc").write_text(DBC.replace("BO_ 512 PanelStatus:", "BO_ 512"))
    broken, orphan, route = problems(path)
    assert [(Path(item.file).name, item.line) for item in (broken, orphan)] == [
        ("engine.dbc", 7),
        ("engine.dbc", 8),
    ]
    assert broken.is_warning
    assert "no point 'engine.PanelStatus.CoolantTemp'" in route.message


@pytest.mark.parametrize(
    "text",
    ["", "just text", "[1, 2]", "version: 1", "{", "version: 1\ngateway: 5\nlinks: 7\ndevices: x\nroutes: 9"],
)
def test_any_file_gives_problems_not_a_traceback(plant, text):
    assert problems(plant(text=text))


def test_warnings_do_not_stop_anything(plant):
    found = load(plant(("min: 0, max: 100}\nroutes", "}\nroutes")))
    assert any("may not fit" in item.message for item in found.warnings)


def test_the_json_schema_knows_every_key_and_type():
    schema = json_schema()
    text = json.dumps(schema)
    assert {"modbus-tcp", "modbus-server", "can", "mqtt"} <= set(re.findall(r'"const": "([^"]+)"', text))
    for key in (
        "from",
        "deadband",
        "on_bad",
        "reference",
        "unit_id",
        "database",
        "topic",
        "data_dir",
        "invalid",
    ):
        assert f'"{key}"' in text
    references = set(re.findall(r'"#/\$defs/([^"]+)"', text))
    assert references <= set(schema["$defs"])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "{toggle: }",
            "routes[0].from: a source that is no point has one of `constant`, `toggle` and `counter`",
        ),
        ("{toggle: 1s, counter: 1s}", "routes[0].from: a source that is no point has one of"),
        ("{counter: 1s, values: [0, 1]}", "routes[0].from: `values` are those of a `toggle`"),
        ("{toggle: true}", "routes[0].from.toggle: True is not a duration"),
        ("{constnat: 1}", "routes[0].from.constnat: unknown key 'constnat' (did you mean 'constant'?)"),
    ],
)
def test_a_wrong_made_source_is_one_problem_at_its_key(plant, source, problem):
    text = PLANT.split("routes:", maxsplit=1)[0] + f"routes:\n  - {{from: {source}, to: press.setpoint}}\n"
    assert problem in str(only(plant(text=text)))
