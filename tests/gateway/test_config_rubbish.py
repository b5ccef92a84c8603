"""Configurations that others write, by mistake or by malice: each is loaded, or refused with what, where and why."""

import contextlib
import copy
import io
import random
import shutil
import time

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from support.examples import examples

from fieldbus.errors import ConfigError
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.config.source import parse_yaml

CONFIGS = ROOT / "configs"
EXAMPLES = sorted(CONFIGS.glob("*.yaml"))
HEAD = "version: 1\ngateway: {name: a}\n"
LINK = HEAD + "links: {net: {type: modbus-tcp, host: h}}\n"
LONG = "1" + "0" * 300
LONGER = "1" + "0" * 5000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which everything is that the examples name."""
    found = tmp_path_factory.mktemp("configs") / "configs"
    shutil.copytree(CONFIGS, found, ignore=shutil.ignore_patterns("data"))
    return found


def problems(folder, text):
    """Return what `check` says, as (line, column, text of the whole)."""
    file = folder / "rubbish.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        found = load(file, needs_secrets=False).warnings
    except ConfigError as error:
        found = error.problems
        assert found
    for problem in found:
        assert len(str(problem)) < 2000
    return found


def said(folder, text):
    return [
        (item.line, item.message + ("" if item.hint is None else f" ({item.hint})"))
        for item in problems(folder, text)
    ]


def device(more="", point="table: holding, address: 1", link=LINK):
    return f"{link}devices: {{d: {{link: net{more}, points: {{p: {{{point}}}}}}}}}\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (HEAD + "links: {a: {type: []}}\n", 3, "a type of link is a word"),
        (HEAD + "links: {a: {type: {}}}\n", 3, "a type of link is a word"),
        (HEAD + "links: {a: {type: 5}}\n", 3, "a type of link is a word"),
        (
            HEAD + "links: {a: {type: modbus, host: h}}\n",
            3,
            "modbus-tcp for Ethernet, modbus-rtu for a serial",
        ),
        (LINK + "devices: {d: {link: []}}\n", 4, "the name of a link is a word"),
        (LINK + "devices: {d: {link: {}}}\n", 4, "the name of a link is a word"),
        (device(f", map: {'m' * 256}"), 4, "no file can have such a long name"),
        (device(f", map: {'m/' * 2100}"), 4, "no file can have such a long name"),
        (device(r', map: "a\0b"'), 4, "NUL"),
        (device(r', map: "a\ud800b"'), 4, "half a character"),
        (device(", map: ../../etc/passwd"), 4, "leaves the config's folder"),
        (HEAD + 'links: {net: {type: modbus-tcp, host: "\\UFFFFFFFF"}}\n', 3, "is no Unicode character"),
        (HEAD.replace("a}", f"a, spool: {{max_size: {LONG}MiB}}}}"), 2, "is not a size"),
        (HEAD.replace("a}", 'a, data_dir: "a\\0"}'), 2, "NUL"),
        (HEAD + f"links: {{net: {{type: modbus-tcp, host: h, timeout: {LONG}s}}}}\n", 3, "is not a duration"),
        (device(point=f"table: holding, address: {LONG}"), 4, "at most 65535"),
        (device(point=f"table: holding, address: {LONGER}"), 4, "is not a whole number"),
        (device(point=f"table: holding, address: 0x{'f' * 5000}"), 4, "is not a whole number"),
        (device(point=f"table: holding, address: 0o{'7' * 5000}"), 4, "is not a whole number"),
        (device(point=f"table: holding, address: 1, scale: {LONG}"), 4, "between 1e-100 and 1e100"),
        (device(point=f"table: holding, address: 1, scale: {LONGER}"), 4, "is not a number"),
        (device(point="table: holding, address: 1, scale: 1e999"), 4, ""),
        (device(point='table: holding, address: "1"'), 4, "write 1, without quotes"),
        (device(point='table: holding, address: 1, scale: "0,1"'), 4, "write 0.1"),
        (device(point="table: holding, address: 1, type: float"), 4, "did you mean 'float32'?"),
        (device(point="table: holding, address: 1, type: WORD"), 4, "did you mean 'uint16'?"),
        (device(point="table: holding, address: 40001"), 4, "write `reference: 40001`"),
        (device(point="table: input, address: 30005"), 4, "what manuals call 30005 is address 4"),
        (device(point="table: holding, reference: 30001"), 4, "stands instead of `table` and `address`"),
        (LINK + "devices: {d: {link: net, points: {a b: {table: holding, address: 1}}}}\n", 4, "'a_b'"),
        (
            device(link=HEAD + "links: {net: {type: modbus-rtu, port: /dev/ttyUSB0}}\n"),
            4,
            "on a serial line each device has its own",
        ),
        (
            HEAD + "links: {b: {type: can, interface: gs_usb, channel: can0}}\n",
            3,
            "pip install 'python-can[gs-usb]'",
        ),
        (HEAD + "links: {net: {type: modbus-tcp, host: 'tcp://h'}}\n", 3, "is a URL"),
        (HEAD + "links: {net: {type: modbus-tcp, host: 'h:502'}}\n", 3, "write `host` and `port` apart"),
        (HEAD + "links: {net: {type: mqtt, host: 'a b'}}\n", 3, "without blanks"),
        (
            LINK.replace("}}\n", "}, hq: {type: mqtt, host: h}}\n")
            + device().removeprefix(LINK)
            + "routes: [{from: d.p, to: plant/x}]\n",
            5,
            "such as 'hq:plant/x'",
        ),
        ("common: {a: 1}\n" + LINK, 1, "what begins with x- is yours"),
        ("a: &a {b: *a, c: *a}\n" + LINK, 1, "an alias stands inside of what it names"),
        ("a: &a [*a]\n" + LINK, 1, "an alias stands inside of what it names"),
        ("[" * 2000, 1, "nested too deeply"),
        ("a: " + "[x," * 30_000, 1, "nested too deeply"),
        ("a: " + "{x: " * 30_000, 1, "nested too deeply"),
        ("- " * 30_000 + "x", 1, "nested too deeply"),
    ],
    ids=range(43),
)
def test_each_mistake_is_told_where_it_is_with_what_to_do_and_at_once(folder, text, line, words):
    begun_s = time.process_time()
    found = said(folder, text)
    assert time.process_time() - begun_s < 3.0
    assert [item for item in found if item[0] == line and words in item[1]], found


def test_merge_keys_take_over_what_a_mapping_lacks():
    text = """
x-base: &base {link: net, unit_id: 3, scan: 1s}
x-fast: &fast {scan: 100ms, timeout: 50ms}
a: {<<: *base, unit_id: 4}
b: {unit_id: 5, <<: [*fast, *base]}
c: &c {<<: *base, scan: 2s}
d: {<<: *c}
e: {"<<": 1}
"""
    source = parse_yaml(text, "f")
    assert source.problems == []
    assert source.data["a"] == {"link": "net", "unit_id": 4, "scan": "1s"}
    assert source.data["b"] == {"link": "net", "unit_id": 5, "scan": "100ms", "timeout": "50ms"}
    assert source.data["d"] == {"link": "net", "unit_id": 3, "scan": "2s"}
    assert source.data["e"] == {"<<": 1}
    assert source.problem(("a", "scan"), "x").line == 2  # where it stands


@pytest.mark.parametrize("merged", ["5", "[1]", "word", "*a"])
def test_what_cannot_be_merged_is_said(merged):
    [problem, *_] = parse_yaml(f"a: &a\n  <<: {merged}\n", "f").problems
    assert "`<<` names a mapping" in problem.message
    assert problem.line == (1 if merged == "*a" else 2)


def test_an_ipv6_address_may_stand_in_brackets(folder):
    text = device(link=HEAD + 'links: {net: {type: modbus-tcp, host: "[::1]"}}\n')
    assert said(folder, text) == []
    plant = load(folder / "rubbish.yaml")
    assert plant.link_settings["net"].host == "::1"


def test_mistakes_of_all_sections_are_told_in_one_go(folder):
    text = """version: 1
gateway: {name: a, bogus: 1}
links:
  net: {type: modbus-tcp, host: h, bogus: 1}
  bus: {type: modbus-tcp, host: 5}
devices:
  d: {link: net, bogus: 1, points: {p: {table: holdin, address: 1}, q: {table: holding, address: 2, typ: bool}}}
  e: {link: nett, points: {q: {table: holding, address: x}}}
  f: {link: net, unit_id: 2, bogus: 1, points: {p: {table: holding, address: 1}}}
access: {op: 5}
guards: {d.q: {step: x}}
routes:
  - {from: [d.p, 3], to: nowhere}
  - {form: d.p}
  - {from: f.p, to: nowhere.q}
"""
    lines = {line for line, _ in said(folder, text)}
    assert lines >= {2, 4, 5, 7, 8, 9, 10, 11, 13, 14, 15}


# --- whatever somebody does to a good configuration

WORDS = [
    "", " ", "a", "*", "a b", "a/b", "..", "/", "\0", "\ud800", "\x1b[2J", "d.p", "x" * 300, "1s", "0s", LONG + "s",
    "%s", "{point}", "{", "${X}", "a:b", "a: b", "[::1]", "1,5", "-1", "1e309", "0x10", "true", "null", "~", "é", "<<",
]  # fmt: skip
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 65535, 65536, 1 << 31, 1 << 64, 10**300]),
    st.floats(),
    st.sampled_from(WORDS),
    st.just([]),
    st.just({}),
    st.lists(st.sampled_from(WORDS), max_size=2),
    st.dictionaries(st.sampled_from(WORDS), st.sampled_from(WORDS), max_size=2),
)


def places(data, path=()):
    """Yield the path of everything in plain data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def written(data):
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_unicode = False
    yaml.dump(data, stream)
    return stream.getvalue()


PLAIN = {path.name: parse_yaml(path.read_text(), path.name).data for path in EXAMPLES}


@settings(
    max_examples=examples(120),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from(sorted(PLAIN)), st.data())
def test_whatever_stands_in_a_place_it_is_loaded_or_told(folder, name, data):
    changed = copy.deepcopy(PLAIN[name])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(places(changed), key=str)))
        where = changed
        for step in path[:-1]:
            where = where[step]
        kind = data.draw(st.sampled_from(["value", "value", "value", "key", "gone"]))
        value = copy.deepcopy(data.draw(VALUES)) if kind == "value" else where[path[-1]]
        if kind != "value":
            del where[path[-1]]
        if kind == "key" and isinstance(where, dict):
            where[data.draw(st.sampled_from(WORDS))] = value
        elif kind == "value":
            where[path[-1]] = value
    problems(folder, written(changed))


@settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(EXAMPLES), st.integers(0, 1 << 32))
def test_whatever_bytes_are_changed_it_is_loaded_or_told(folder, path, seed):
    dice = random.Random(seed)
    text = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(text))
        kind = dice.randrange(4)
        if kind == 0:
            text[at] = dice.randrange(256)
        elif kind == 1:
            del text[at : at + dice.randint(1, 40)]
        elif kind == 2:
            text[at:at] = dice.choice(
                [b"&a ", b"*a", b"<<: ", b"!x ", b"[", b"{", b'"', b"'", b"\n", b"\t", b": ", b"#"]
            )
        else:
            text[at:at] = text[at : at + dice.randint(1, 80)] * dice.randint(1, 3)
    with contextlib.suppress(ConfigError):
        problems(folder, bytes(text))
