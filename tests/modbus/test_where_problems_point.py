"""Problems of Modbus points name the key that is wrong, and point at it: in the configuration and in a map."""

import pytest
from support.desk import problems, tcp, write_config

HEAD = "    link: net\n    points:\n      commit: {table: coil, address: 9, access: write}\n"


def found_in(folder, points):
    """Return what is wrong with points, as path within the point, text at its place, message, and hint."""
    path = write_config(folder, f"  plc:\n{HEAD}{points}", tcp(1502))
    lines = path.read_text().splitlines()
    return [
        (
            item.path.removeprefix("devices.plc.points."),
            lines[item.line - 1][item.column - 1 :],
            item.message,
            item.hint,
            item.is_warning,
        )
        for item in problems(path)
    ]


@pytest.mark.parametrize(
    ("item", "path", "at", "message"),
    [
        ("then: {comit: 1}", "then.comit", "1}}", "`then` names 'comit', which is no point of the device"),
        ("then: {commit: 7}", "then.commit", "7}}", "`then` writes 7 to 'commit': 7 is neither 0 nor 1"),
        ("read_from: {table: coil, address: 1}", "read_from", "{table",
         "`read_from` names the table `coil` of single bits, but the point is registers"),
        ("function: 5", "function", "5}", "function 5 does not write a holding: use one of 6, 16, 22"),
        ("function: 22", "function", "22}",
         "function 22 writes single bits of one register: give `bit` or `bits`, or use 6 or 16"),
        ("verify: {after: 2min}", "verify", "{after", "`verify` waits at most 60 s, not 120 s"),
        ("type: uint16, format: sign_magnitude", "format", "sign_m",
         "`format: sign_magnitude` has a sign: its type is int16 or int32, not uint16"),
        ("type: uint16, format: m10k", "format", "m10k",
         "`format: m10k` has 2 to 4 registers: its type is (u)int32, (u)int48 or (u)int64, not uint16"),
        ("scale: 0", "scale", "0}", "scale 0 makes everything 0"),
    ],
)  # fmt: skip
def test_the_key_that_is_wrong_is_named_and_pointed_at(tmp_path, item, path, at, message):
    found = found_in(tmp_path, f"      x: {{table: holding, address: 0, access: readwrite, {item}}}\n")
    assert [(place, text[: len(at)], said) for place, text, said, _, _ in found] == [
        (f"x.{path}", at, message)
    ]


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("then", "{commit: 1}", "`then` is for points that are written"),
        ("function", "16", "`function` is for points that are written"),
        ("group", "setting", "`group` is for points that are written"),
    ],
)
def test_what_only_written_points_have_is_pointed_at(tmp_path, key, given, message):
    found = found_in(tmp_path, f"      x: {{table: holding, address: 0, {key}: {given}}}\n")
    assert (f"x.{key}", message) in [(path, text) for path, _, text, _, _ in found]


def test_a_group_with_one_member_is_a_warning(tmp_path):
    points = "      x: {table: holding, address: 0, access: readwrite, group: setting}\n"
    [(path, at, text, hint, is_warning)] = found_in(tmp_path, points)
    assert (path, at, is_warning) == ("x.group", "setting}", True)
    assert text == "`group` setting has one member only, which is written as it would be without it"
    assert hint == "give the points that are to be written with it the same `group`, or remove it"


@pytest.mark.parametrize(
    "other",
    ["y: {table: holding, address: 1, access: readwrite, group: setting}", "y: {table: holding, address: 5}"],
)
def test_a_group_of_two_or_an_array_is_no_warning(tmp_path, other):
    count = ", count: 3" if "address: 5" in other else ""
    points = f"      x: {{table: holding, address: 0, access: readwrite, group: setting{count}}}\n"
    assert found_in(tmp_path, f"{points}      {other}\n") == []


@pytest.mark.parametrize(
    ("parts", "index", "place"),
    [
        ("[{address: 5}, {address: 6}, {address: 5, factor: 10}]", 2, "holding 5 is in parts[0]"),
        ("[{address: 5, type: uint32}, {address: 6, factor: 10}]", 1, "holding 6 is in parts[0]"),
        ("[{address: 5, bits: 0-7}, {address: 5, bits: 7-9, factor: 10}]", 1, "holding 5 is in parts[0]"),
        ("[{address: 5}, {address: 5, bit: 15, sign: true}]", 1, "holding 5 is in parts[0]"),
    ],
)
def test_parts_that_have_a_bit_in_common_are_refused(tmp_path, parts, index, place):
    [(path, at, text, _, is_warning)] = found_in(tmp_path, f"      x: {{table: holding, parts: {parts}}}\n")
    assert (path, is_warning) == (f"x.parts[{index}].address", False)
    assert at[0] in "56"
    wanted = f"{place} already, and would count twice: give each of the `parts` an address of its own"
    assert text == wanted


@pytest.mark.parametrize(
    "parts",
    [
        "[{address: 5}, {address: 6}]",
        "[{address: 5, bits: 0-14}, {address: 5, bit: 15, sign: true}]",
        "[{address: 5, type: uint32, bits: 0-30}, {address: 5, bit: 15, sign: true}]",
        "[{address: 5, type: uint8}, {address: 5, bits: 8-15, factor: 100}]",
        "[{address: 5, type: uint32, order: CDAB, bits: 0-30}, {address: 6, bit: 15, sign: true}]",
    ],
)
def test_parts_may_share_a_register_and_no_bit(tmp_path, parts):
    assert found_in(tmp_path, f"      x: {{table: holding, parts: {parts}}}\n") == []


def test_in_a_csv_map_the_cell_is_pointed_at(tmp_path):
    (tmp_path / "map.csv").write_text(
        "name,table,address,access,then,function\n"
        "commit,coil,9,write,,\n"
        "x,holding,0,readwrite,comit=1,\n"
        "y,holding,1,readwrite,,5\n"
    )
    path = write_config(tmp_path, "  plc: {link: net, map: map.csv}", tcp(1502))
    found = [(item.file.rsplit("/", 1)[-1], item.line, item.column, item.path) for item in problems(path)]
    assert ("map.csv", 4, 24, "points.y.function") in found
    path.with_name("map.csv").write_text(path.with_name("map.csv").read_text().replace(",,5", ",,6"))
    found = [(item.file.rsplit("/", 1)[-1], item.line, item.column, item.path) for item in problems(path)]
    assert [item[:2] for item in found] == [("map.csv", 3)]
    assert found[0][3] == "points.x.then.comit"


def test_a_constant_that_does_not_fit_is_named_by_its_key(tmp_path):
    path = write_config(tmp_path, f"  plc:\n{HEAD}", tcp(1502))
    text = path.read_text() + "routes:\n  - {from: {constant: abc}, to: plc.commit}\n"
    path.write_text(text)
    [found] = problems(path)
    assert found.path == "routes[0].from"
    assert found.message == "`constant` is string and cannot go into plc.commit, which is bool"
    assert found.hint == "give a number: 0 … 1"
