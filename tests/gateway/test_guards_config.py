"""Who may write, and what points are protected by: what a configuration can say of it, and what it cannot."""

import pytest
from test_config_loader import only, plant, problems  # noqa: F401 - a fixture

from fieldbus.gateway.commands.gate import Guard
from fieldbus.gateway.config.loader import load

PLANT = """version: 1
gateway: {name: gw}
links:
  plc: {type: modbus-tcp, host: 127.0.0.1}
  hmi: {type: modbus-server, host: 127.0.0.1, port: 1503}
devices:
  press:
    link: plc
    points:
      speed: {table: holding, address: 0, access: readwrite, min: 0, max: 3000}
      name: {table: holding, address: 10, type: string, length: 8, access: readwrite}
      valve: {table: coil, address: 0, access: write}
      door: {table: holding, address: 20, enum: {0: open, 1: closed}}
      temperature: {table: holding, address: 21, type: float32}
  panel:
    link: hmi
    points:
      wanted: {table: holding, address: 0, access: readwrite, min: 0, max: 3000}
routes:
  - {from: panel.wanted, to: press.speed}
access:
  operator: [press.speed]
guards:
  press.speed: {step: 5}
"""
GUARD = "  press.speed: {step: 5}\n"


@pytest.fixture
def write(plant):  # noqa: F811
    """Write the configuration with other guards, and other changes."""
    return lambda guards=GUARD, *changes, **more: plant((GUARD, guards), *changes, text=PLANT, **more)


def test_guards_stand_beside_the_points_or_with_them(write):
    found = load(write())
    assert found.guards[found.points["press.speed"]] == Guard(step=5)
    found = load(
        write(
            "", ("guards:\n", ""), ("max: 3000}", "max: 3000, step: 5, min_interval: 2s, non_volatile: true}")
        )
    )
    guard = found.guards[found.points["press.speed"]]
    assert (guard.step, guard.min_interval_s, guard.daily_budget) == (5, 2.0, 24)


def test_all_that_a_guard_can_be(write):
    found = load(write(
        "  press.speed: {max_change: 100, only_if: press.door == closed and press.temperature < 80, non_volatile: 5,"
        " fallback: {after: 2s, value: 0}}\n  press.valve: {confirm: true}\n"
    ))  # fmt: skip
    guard = found.guards[found.points["press.speed"]]
    assert [(item.point.name, item.comparison, item.value) for item in guard.only_if] == [
        ("door", "==", 1), ("temperature", "<", 80.0)
    ]  # fmt: skip
    assert (guard.daily_budget, guard.fallback_after_s, guard.fallback_value) == (5, 2.0, 0)
    assert found.guards[found.points["press.valve"]].confirm


@pytest.mark.parametrize("guard", ["{}", "{confirm: false}", "{non_volatile: false}"])
def test_a_guard_that_says_nothing_protects_from_nothing(write, guard):
    found = load(write(f"  press.valve: {guard}\n"))
    assert found.guards[found.points["press.valve"]] == Guard()


def test_a_guard_that_says_nothing_of_what_is_not_written_is_told_as_well(write):
    assert only(write("  press.door: {}\n")).path == "guards.press.door"


@pytest.mark.parametrize(
    ("guard", "path", "message"),
    [
        ("press.spede: {step: 5}", "press.spede", "there is no point 'press.spede'"),
        ("sys.press.online: {confirm: true}", "sys.press.online.confirm",
         "sys.press.online is not written: nothing to guard (access: read)"),
        ("press.door: {step: 1}", "press.door.step", "press.door is not written: nothing to guard (access: read)"),
        ("press.speed: {confirm: true}", "press.speed.confirm",
         "a route writes press.speed, and a route cannot confirm anything"),
        ("press.speed: {fallback: {after: 2s, value: 4000}}", "press.speed.fallback",
         "its safe value does not fit: 4000 is outside 0 … 3000"),
        ("press.speed: {fallback: {after: 2s, value: stop}}", "press.speed.fallback",
         "its safe value does not fit: 'stop' is not a int"),
        ("press.speed: {fallback: {after: 2s, value: true}}", "press.speed.fallback",
         "its safe value does not fit: true is not a number"),
        ("press.name: {fallback: {after: 2s, value: stop}}", "press.name.fallback", "text has no safe value"),
        ("press.speed: {fallback: {after: 2, value: 0}}", "press.speed.fallback.after",
         "2 has no unit: write 2ms, 2s or 2min"),
        ("press.speed: {fallback: {after: 2s}}", "press.speed.fallback.value", None),
        ("press.name: {step: 1}", "press.name.step", "press.name is string, of which there is no `step`"),
        ("press.valve: {max_change: 1}", "press.valve.max_change",
         "press.valve is bool, of which there is no `max_change`"),
        ("panel.wanted: {step: 0}", "panel.wanted.step", None),
        ("press.speed: {step: .nan}", "press.speed.step", None),
        ("press.speed: {max_change: -1}", "press.speed.max_change", None),
        ("press.speed: {non_volatile: 0}", "press.speed.non_volatile", None),
        ("press.speed: {confirmed: true}", "press.speed.confirmed", None),
        ("press.speed: 5", "press.speed", None),
        ("press.speed: {only_if: press.dor == closed}", "press.speed.only_if",
         "there is no point 'press.dor' (did you mean 'press.door'?)"),
        ("press.speed: {only_if: press.door == ajar}", "press.speed.only_if",
         "press.door: 'ajar' is not a int, or one of open, closed"),
        ("press.speed: {only_if: press.door}", "press.speed.only_if",
         "'press.door' is not a condition such as press.door == closed"),
        ("press.speed: {only_if: press.valve == on}", "press.speed.only_if",
         "press.valve can only be written, so nobody knows its value"),
        ("press.speed: {only_if: press.name < 'a'}", "press.speed.only_if",
         "press.name is text, which is only equal or not"),
        ("press.speed: {only_if: ''}", "press.speed.only_if", "'' is not a condition such as press.door == closed"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_with_its_place(write, guard, path, message):
    found = only(write(f"  {guard}\n"))
    assert found.path == f"guards.{path}"
    assert message is None or found.message == message
    assert found.line == 24
    # The value is pointed at; the key where it should not be there; what lacks something by its own key.
    shown = ("  " + guard)[found.column - 1 :]
    key = path.rpartition(".")[2]
    assert shown in (guard.partition(f"{key}: ")[2], guard) or shown.startswith(
        (f"{key}:", "fallback: {after: 2s}}")
    )


def test_max_change_needs_a_present_value(write):
    changes = ("address: 0, access: readwrite, min: 0, max: 3000", "address: 0, access: write")
    found = only(write("  press.speed: {max_change: 5}\n", changes))
    assert found.message == "nobody can read press.speed, so nobody knows its present value"


def test_an_interlock_has_its_line_and_column_where_the_point_is_described(write):
    found = only(
        write(
            "",
            ("guards:\n", ""),
            ("max: 3000}\n      name", "max: 3000, only_if: press.dor == closed}\n      name"),
        )
    )
    text = PLANT.splitlines()[9]
    assert (found.line, found.path) == (10, "devices.press.points.speed.only_if")
    assert found.column > text.index("max: 3000")


def test_a_point_has_its_guards_in_one_place(write):
    found = only(write(GUARD, ("max: 3000}", "max: 3000, step: 5}")))
    assert found.message == "the point has guards where it is described already"


@pytest.mark.parametrize("value", [99999, -1])
def test_a_safe_value_is_one_that_the_register_can_hold(write, value):
    size = ("      door:", "      size: {table: holding, address: 30, access: write}\n      door:")
    found = only(write(f"  press.size: {{fallback: {{after: 2s, value: {value}}}}}\n", size))
    assert found.path == "guards.press.size.fallback"
    assert found.message == f"its safe value does not fit: {value} is beyond what its type can express"


def test_all_mistakes_are_told_at_once(write):
    found = problems(
        write("  press.door: {step: 1}\n  press.spede: {step: 1}\n  press.speed: {confirm: true}\n")
    )
    assert [item.line for item in found] == [24, 25, 26]


# --- CSV


def test_a_csv_map_has_columns_for_guards(write):
    text = (
        "name,table,address,type,access,min,max,enum,step,max_change,min_interval,non_volatile,only_if,confirm\n"
        "speed,holding,0,uint16,readwrite,0,3000,,5,100,2s,true,press.door == closed,\n"
        "level,holding,1,uint16,readwrite,,,,,,,12,,true\n"
        "door,holding,2,uint16,read,,,0=open 1=closed,,,,,,\n"
    )
    changes = [("    points:\n      speed", "    map: m.csv\n    points:\n      speed2")]
    changes += [
        ("address: 20, enum", "address: 30, enum"),
        ("      door:", "      door2:"),
        ("address: 0, access", "address: 40, access"),
    ]
    found = load(write("", ("guards:\n", ""), *changes, m__csv=text))
    guard = found.guards[found.points["press.speed"]]
    assert (guard.step, guard.max_change, guard.min_interval_s, guard.daily_budget) == (5, 100, 2.0, 24)
    assert guard.only_if[0].text == "press.door == closed"
    guard = found.guards[found.points["press.level"]]
    assert (guard.confirm, guard.daily_budget) == (True, 12)


def test_a_wrong_guard_in_a_csv_map_has_its_row(write):
    text = "name,table,address,access,step,only_if\nlevel,holding,50,readwrite,5,press.dor == 1\nbad,holding,51,read,5,\n"
    found = problems(
        write(
            "",
            ("guards:\n", ""),
            ("    points:\n      speed", "    map: m.csv\n    points:\n      speed"),
            m__csv=text,
        )
    )
    assert [(item.file.rpartition("/")[2], item.line) for item in found] == [("m.csv", 2), ("m.csv", 3)]


# --- access


def test_actors_may_have_a_key_and_its_place_is_all_that_is_said(write, monkeypatch):
    monkeypatch.setenv("FB_KEY", "canary-5e1f")
    path = write(GUARD, ("operator: [press.speed]", "operator: {points: [press.speed], key: {env: FB_KEY}}"))
    found = load(path)
    assert "canary-5e1f" not in repr(found.access) + repr(found.access._actors)
    assert found.access.may_write("operator", "press.speed")


@pytest.mark.parametrize(
    ("access", "is_warning", "message"),
    [
        ("operator: [press.spede]", True, "'press.spede' is no point that can be written"),
        ("operator: [press.door]", True, "'press.door' is no point that can be written"),
        ("operator: ['oven.*']", True, "'oven.*' is no point that can be written"),
        ("operator: ['press.spee?']", True, "'press.spee?' is no point that can be written"),
        ("operator: ['press.spee[d]']", True, "'press.spee[d]' is no point that can be written"),
        ("operator: press.speed", False, None),
        ("operator: {points: [press.speed], key: secret}", False,
         "a secret does not stand in the config: write {env: NAME} or {file: PATH}"),
        ("operator: {points: [press.speed], keys: x}", False, None),
        ("operator: [5]", False, None),
        ("'op/erator': [press.speed]", False, None),
        ("'+': [press.speed]", False, None),
    ],
)  # fmt: skip
def test_what_access_cannot_say_is_told(write, access, is_warning, message):
    path = write(GUARD, ("operator: [press.speed]", access))
    if is_warning:
        [found] = [item for item in load(path).warnings if item.path.startswith("access")]
    else:
        found = only(path)
    assert found.line == 22
    assert found.is_warning is is_warning
    assert message is None or found.message == message


@pytest.mark.parametrize("key", ["", " ", "\t"])
@pytest.mark.parametrize("way", ["env", "file"])
def test_an_empty_key_is_no_key(write, monkeypatch, tmp_path, key, way):
    monkeypatch.setenv("FB_KEY", key)
    path = write(
        GUARD, ("operator: [press.speed]", f"operator: {{points: [press.speed], key: {{{way}: FB_KEY}}}}")
    )
    (path.parent / "FB_KEY").write_text(f"{key}\n")
    problem = only(path)
    assert problem.path == "access.operator.key"
    assert problem.message == "the key is empty: anybody could sign with it"


def test_access_that_is_empty_is_not_access_that_is_not_said(write):
    nobody = load(write(GUARD, ("access:\n  operator: [press.speed]\n", "access: {}\n")))
    assert not nobody.access.may_write("local", "press.speed")
    unsaid = load(write(GUARD, ("access:\n  operator: [press.speed]\n", "")))
    assert unsaid.access.may_write("local", "press.speed")


# --- what is reachable


@pytest.mark.parametrize(
    ("host", "more", "is_fine"),
    [
        ("127.0.0.1", "", True), ("localhost", "", True), ("'::1'", "", True), ("127.3.2.1", "", True),
        ("0.0.0.0", "", False), ("'::'", "", False), ("192.168.0.5", "", False), ("gateway.example", "", False),
        ("127.0.0.1.example", "", False), ("'::ffff:10.0.0.1'", "", False),
        ("0.0.0.0", ", allow_unauthenticated_writes: true", True), ("0.0.0.0", ", allow_unauthenticated_writes: false", False),
        ("0.0.0.0", ", transport: udp", False), ("0.0.0.0", ", transport: rtu-tcp", False),
    ],
)  # fmt: skip
def test_what_anybody_could_write_is_not_served_beyond_this_machine(write, host, more, is_fine):
    path = write(
        GUARD,
        (
            "type: modbus-server, host: 127.0.0.1, port: 1503",
            f"type: modbus-server, host: {host}, port: 1503{more}",
        ),
    )
    if is_fine:
        load(path)
        return
    found = only(path)
    assert (found.line, found.path) == (5, "links.hmi.host")
    assert "anybody who reaches" in found.message
    assert "panel.wanted" in found.message
    assert found.hint == "host: 127.0.0.1, `transport: tls`, or `allow_unauthenticated_writes: true`"


def test_what_can_only_be_read_may_be_served_to_everybody(write):
    load(write(
        GUARD, ("host: 127.0.0.1, port: 1503", "host: 0.0.0.0, port: 1503"), ("address: 0, access: readwrite, min: 0, max: 3000}\nroutes", "address: 0, min: 0, max: 3000}\nroutes"),
        ("panel.wanted, to: press.speed", "press.door, to: panel.wanted"),
    ))  # fmt: skip
