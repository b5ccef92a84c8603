"""Reading databases."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fieldbus
from fieldbus.canbus.database import loading as database
from fieldbus.canbus.database.loading import FORMATS, DatabaseError, load
from fieldbus.canbus.database.reader import read

HEAD = 'VERSION ""\nNS_ :\nBS_:\nBU_: ECU GW\n'
GOOD = (
    HEAD
    + """BO_ 256 Status: 8 ECU
 SG_ Speed : 0|16@1+ (0.125,0) [0|8000] "rpm" GW
 SG_ Mode : 16|3@1+ (1,0) [0|3] "" GW
BO_ 2364540158 Engine: 8 ECU
 SG_ Torque : 7|16@0- (1,0) [0|0] "Nm" GW
BO_ 512 Mux: 8 ECU
 SG_ Page M : 0|8@1+ (1,0) [0|0] "" GW
 SG_ One m1 : 8|8@1+ (1,0) [0|0] "" GW
BA_DEF_ BO_ "GenMsgCycleTime" INT 0 65535;
BA_DEF_ SG_ "GenSigStartValue" FLOAT 0 100000;
BA_DEF_DEF_ "GenMsgCycleTime" 0;
BA_DEF_DEF_ "GenSigStartValue" 0;
BA_ "GenMsgCycleTime" BO_ 256 100;
BA_ "GenSigStartValue" SG_ 256 Speed 80;
VAL_ 256 Mode 0 "off" 1 "on" ;
"""
)


def write(folder, text, name="bus.dbc"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_database_becomes_plain_data(tmp_path):
    found = load(write(tmp_path, GOOD), "bus.dbc")
    status, engine, mux = found.messages
    assert (status.name, status.frame_id, status.is_extended, status.cycle_s) == ("Status", 256, False, 0.1)
    speed, mode = status.signals
    assert (speed.linear.scale, speed.minimum, speed.maximum, speed.unit) == (0.125, 0, 8000, "rpm")
    assert (speed.raw_initial, mode.labels) == (80, {0: "off", 1: "on"})
    assert (engine.is_extended, engine.frame_id, engine.cycle_s) == (True, 2364540158 & 0x1FFFFFFF, None)
    assert (engine.signals[0].is_little_endian, engine.signals[0].is_signed) == (False, True)
    assert mux.signals[1].condition == (("Page", frozenset({1})),)
    assert found.warnings == []


def test_a_signal_that_cannot_be_used_costs_only_itself(tmp_path):
    text = GOOD.replace("m1 : 8|", "m1 : 64|")
    found = load(write(tmp_path, text), "bus.dbc")
    assert [message.name for message in found.messages] == ["Status", "Engine", "Mux"]
    assert [signal.name for signal in found.messages[2].signals] == ["Page"]
    (problem,) = found.warnings
    assert (problem.file, problem.line, problem.path) == ("bus.dbc", 12, "Mux.One")
    assert (
        "message Mux: signal One is left out: it begins at bit 64 of a message of 8 bytes" in problem.message
    )
    assert problem.is_warning


def test_a_message_is_as_long_as_its_signals_need(tmp_path):
    text = GOOD.replace("BO_ 512 Mux: 8 ECU", "BO_ 512 Mux: 0 ECU")
    found = load(write(tmp_path, text), "bus.dbc")
    needed = max(signal.bytes_needed for signal in found.messages[2].signals)
    assert found.messages[2].length == needed
    (problem,) = found.warnings
    assert (problem.line, problem.path) == (10, "Mux.One")
    assert f"signal One ends behind its 0 bytes: {needed} are taken" in problem.message


def test_a_message_that_cannot_be_read_costs_only_itself_and_its_signals(tmp_path):
    found = load(write(tmp_path, GOOD.replace("BO_ 512 Mux:", "BO_ 512")), "configs/bus.dbc")
    assert [message.name for message in found.messages] == ["Status", "Engine"]
    assert [(problem.file, problem.line) for problem in found.warnings] == [
        ("configs/bus.dbc", line) for line in (10, 11, 12)
    ]
    assert "`BO_ 512 8 ECU` is left out: this message cannot be read" in found.warnings[0].message


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(DatabaseError) as caught:
        load(write(tmp_path, "Dear all,\nplease find enclosed\n"), "configs/bus.dbc")
    problem = caught.value.problem
    assert (problem.file, problem.line) == ("configs/bus.dbc", 1)
    assert "not a readable DBC file" in problem.message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("bus.txt", "", "is no database format"),
        ("bus.kcd", "<broken", "not a readable KCD file"),
        ("bus.sym", "nothing", "not a readable SYM file"),
        ("bus.arxml", "<AUTOSAR/>", "not a readable ARXML file"),
    ],
)
def test_other_formats_are_refused_in_words(tmp_path, name, text, words):
    with pytest.raises(DatabaseError) as caught:
        load(write(tmp_path, text, name), name)
    assert words in caught.value.problem.message


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(DatabaseError) as caught:
        load(tmp_path / "nothing.dbc", "nothing.dbc")
    assert "no such file" in caught.value.problem.message


def test_a_kcd_file_is_read(tmp_path):
    text = """<?xml version="1.0"?>
<NetworkDefinition xmlns="http://kayak.2codeornot2code.org/1.0">
 <Document/><Bus name="b"><Message id="0x123" length="2" name="M" interval="50">
 <Signal name="S" offset="0" length="16"><Value slope="0.5" unit="V"/></Signal></Message></Bus>
</NetworkDefinition>"""
    message = load(write(tmp_path, text, "bus.kcd"), "bus.kcd").messages[0]
    assert (message.name, message.frame_id, message.cycle_s) == ("M", 0x123, 0.05)
    assert message.signals[0].linear.scale == 0.5


# --- hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("BO_ 1 A: 100000 X", "message A is left out: it has 100000 bytes, 64 at most"),
        (
            'BO_ 1 A: 8 X\n SG_ S : 0|1000000@1+ (1,0) [0|0] "" X',
            "signal S is left out: it has 1000000 bits, which must be 1..64",
        ),
        (
            (
                'BO_ 1 A: 8 X\n SG_ M M : 0|32@1+ (1,0) [0|0] "" X\n SG_ S m0 : 32|8@1+ (1,0) [0|0] "" X\n'
                "SG_MUL_VAL_ 1 S M 0-1000000;"
            ),
            "signal S is left out: 1000001 multiplexer values select it, 65536 at most",
        ),
    ],
)
def test_small_files_that_cost_cantools_minutes_are_read_at_once(text, words):
    start = time.process_time()
    answer = read("dbc", text.encode())
    assert time.process_time() - start < 1
    assert len(text) < 150
    assert [words in note[2] for note in answer["notes"]] == [True]


def many_messages(count):
    lines = [f'BO_ {i | 1 << 31} M{i}: 8 X\n SG_ S{i} : 0|16@1+ (0.1,{i}) [0|0] "" X' for i in range(count)]
    return "\n".join([*lines, ""])


def test_a_file_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "CPU_LIMIT_S", 1)
    with pytest.raises(DatabaseError) as caught:
        load(write(tmp_path, many_messages(90_000)), "configs/bus.dbc")
    assert str(caught.value) == "configs/bus.dbc: takes more than 1 s to read"


def test_a_reader_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "WALL_LIMIT_S", 1)
    monkeypatch.setattr(database, "_START", "import time; time.sleep(60)")
    with pytest.raises(DatabaseError) as caught:
        load(write(tmp_path, GOOD + "// hangs"), "bus.dbc")
    assert caught.value.problem.message == "takes more than 1 s to read"


def test_a_file_that_needs_too_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "MEMORY_LIMIT_BYTES", 80 * 1024 * 1024)
    with pytest.raises(DatabaseError) as caught:
        load(write(tmp_path, many_messages(20_000)), "bus.dbc")
    assert caught.value.problem.message == "needs more than 80 MiB to be read"


def test_a_reader_that_breaks_off_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_START", "import os; os._exit(3)")
    with pytest.raises(DatabaseError) as caught:
        load(write(tmp_path, GOOD + "// breaks off" + " " * 300_000), "bus.dbc")
    assert caught.value.problem.message == "the process that reads it ended with status 3"


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "bus.dbc"
    with path.open("wb") as file:
        file.truncate(database.MAX_FILE_BYTES + 1)
    with pytest.raises(DatabaseError) as caught:
        load(path, "bus.dbc")
    assert caught.value.problem.message == "larger than 32 MiB"


BILLION_LAUGHS = '<!DOCTYPE a [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
@pytest.mark.parametrize("format_", ["kcd", "arxml"])
def test_xml_with_entities_is_refused(format_, encoding):
    declared = encoding.removesuffix("-sig")
    text = f'<?xml version="1.0" encoding="{declared}"?>{BILLION_LAUGHS}<a>&b;</a>'
    assert "a document type or entities are not allowed" in read(format_, text.encode(encoding))["error"][2]


def test_random_bytes_are_refused_or_read():
    rng = random.Random(5)
    for format_ in FORMATS.values():
        for _ in range(20):
            answer = read(format_, rng.randbytes(200))
            assert "error" in answer or answer["messages"] == []


# --- other formats, part by part ------------------------------------------------------------------


def kcd(*messages):
    return (
        '<NetworkDefinition xmlns="http://kayak.2codeornot2code.org/1.0"><Document/><Bus name="b">\n'
        + "\n".join(messages)
        + "</Bus></NetworkDefinition>"
    )


def test_a_message_of_a_kcd_file_that_cannot_be_used_costs_itself(tmp_path):
    good = '<Message id="0x{0}" length="8" name="Good{0}"><Signal name="S" offset="0"/></Message>'
    text = kcd(
        good.format(1),
        '<Message id="nothing" length="8" name="NoId"/>',
        '<Message id="0x1000" length="8" name="LargeId"/>',
        '<Message id="0x5" length="100000" name="Long"/>',
        '<Message id="0x6" length="8" name="Wide"><Signal name="S" offset="0" length="1000000"/></Message>',
        good.format(2),
    )
    found = load(write(tmp_path, text, "bus.kcd"), "bus.kcd")
    assert [(message.name, len(message.signals)) for message in found.messages] == [
        ("Good1", 1), ("LargeId", 0), ("Wide", 0), ("Good2", 1),
    ]  # fmt: skip
    assert [(problem.line, problem.path) for problem in found.warnings] == [
        (3, "NoId"), (4, "LargeId"), (5, "Long"), (6, "Wide.S"),
    ]  # fmt: skip


def test_a_signal_of_a_kcd_file_that_cannot_be_read_costs_itself_and_what_it_selects(tmp_path):
    text = kcd(
        '<Message id="0x1" length="8" name="M"><Signal name="A" offset="0" length="8"/>',
        '<Signal name="B" offset="here"/>',
        '<Signal name="C" offset="8" length="8"><Value slope="steep"/></Signal>',
        '<Signal name="D" offset="16" length="8"/>',
        '<Multiplex name="P" offset="24" length="8"><MuxGroup count="1">',
        '<Signal name="P1" offset="32"/>',
        '<Signal name="P2" offset="33" length="long"/></MuxGroup><MuxGroup count="two">',
        '<Signal name="P3" offset="34"/></MuxGroup></Multiplex>',
        '<Multiplex name="Q" offset="x"><MuxGroup count="1">',
        '<Signal name="Q1" offset="40"/></MuxGroup></Multiplex></Message>',
        '<Message id="0x2" length="8" name="N"><Signal name="A" offset="0"/></Message>',
    )
    found = load(write(tmp_path, text, "bus.kcd"), "bus.kcd")
    assert [(message.name, [each.name for each in message.signals]) for message in found.messages] == [
        ("M", ["P", "P1", "A", "D"]), ("N", ["A"]),
    ]  # fmt: skip
    assert [(problem.line, problem.path) for problem in found.warnings] == [
        (3, "M.B"), (4, "M.C"), (8, "M.P2"), (9, "M.P3"), (10, "M.Q"), (11, "M.Q1"),
    ]  # fmt: skip
    assert found.warnings[-1].message.endswith("signal Q1 is left out: its multiplexer is left out")


def test_a_message_of_a_sym_file_that_cannot_be_used_costs_itself(tmp_path):
    text = """FormatVersion=6.0 // Do not edit this line!
Title="t"

{SEND}

[Good]
ID=100h
Len=8
Var=S unsigned 0,8

[Bad]
ID=101h
Len=8
Sig=Nowhere 0

[Many]
ID=00000000h-1FFFFFFFh
Type=Extended
Len=8
"""
    found = load(write(tmp_path, text, "bus.sym"), "bus.sym")
    good, bad = found.messages
    assert (good.name, good.frame_id, good.line, good.signals[0].length) == ("Good", 0x100, 6, 8)
    assert (bad.name, bad.line, bad.signals) == ("Bad", 11, [])
    assert [(problem.line, problem.path) for problem in found.warnings] == [(14, "Bad.Nowhere"), (16, "Many")]
    assert "signal Nowhere is left out: there is no 'Nowhere'" in found.warnings[0].message


SYM = """FormatVersion=6.0 // Do not edit this line!
Title="t"

{ENUMS}
Enum=Good(0="off",
 1="on")
Enum=Bad(0="off" 1="on")

{SIGNALS}
Sig=Level unsigned 8 /f:0.5
Sig=Broken unsigned /f:
Sig=Lost Bad 4
Sig=State Good 4

{SENDRECEIVE}

[M]
ID=100h
Len=8
Sig=Level 0
Sig=Broken 8
Sig=Lost 16
Sig=State 24
Var=Own unsigned 32,8 /max:9
Var=Other strange 40,8

[Paged]
ID=101h
Len=8
Mux=One 0,8 1
Sig=Level 8

[Paged]
Len=8
Mux=Two 0,8 2
Var=Deep unsigned here,8
Sig=State 16

[NoId]
ID=here
Len=8
"""


def test_a_definition_of_a_sym_file_that_cannot_be_read_costs_itself_and_who_refers_to_it(tmp_path):
    found = load(write(tmp_path, SYM, "bus.sym"), "bus.sym")
    names = {message.name: [each.name for each in message.signals] for message in found.messages}
    assert names == {"M": ["Level", "State", "Own"], "Paged": ["One", "Level", "State"]}
    assert found.messages[0].signals[1].labels == {0: "off", 1: "on"}
    assert [(problem.line, problem.path) for problem in found.warnings] == [
        (7, "Bad"), (11, "Broken"), (12, "Lost"), (21, "M.Broken"), (22, "M.Lost"), (25, "M.Other"),
        (36, "Paged.Deep"), (39, "NoId"),
    ]  # fmt: skip
    assert "enumeration Bad is left out: " in found.warnings[0].message
    assert "signal Lost is left out: Enum 'Bad' is not defined." in found.warnings[2].message


# --- what is read again ---------------------------------------------------------------------------


def test_the_same_bytes_are_read_once(tmp_path, monkeypatch):
    first = load(write(tmp_path, GOOD.replace("BO_ 512 Mux: 8", "BO_ 512 Mux: 1")), "one.dbc")
    monkeypatch.setattr(database, "_START", "not python")
    second = load(tmp_path / "bus.dbc", "two.dbc")
    assert second.messages is first.messages
    assert [problem.file for problem in second.warnings] == ["two.dbc"]
    with pytest.raises(DatabaseError):
        load(write(tmp_path, GOOD + "// other bytes"), "bus.dbc")


def test_the_reader_is_found_from_a_tree_that_is_not_installed(tmp_path):
    path = write(tmp_path, GOOD)
    code = f"from pathlib import Path; from fieldbus.canbus.database.loading import load; print(len(load(Path({str(path)!r}), '').messages))"
    copy = tmp_path / "tree"
    shutil.copytree(
        Path(fieldbus.__file__).parent, copy / "fieldbus", ignore=shutil.ignore_patterns("__pycache__")
    )
    reader = copy / "fieldbus" / "canbus" / "database" / "reader.py"
    marked = 'read = lambda *_: {"messages": [], "notes": []}\nif __name__'
    reader.write_text(reader.read_text().replace("if __name__", marked))
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_the_reader_ends_with_its_parent(tmp_path):
    code = (
        "import subprocess, sys, time; from fieldbus.canbus import database\n"
        "child = subprocess.Popen([sys.executable, '-c', 'from fieldbus.canbus.database.reader import limit;"
        "limit(50, 50, 1 << 29); print(flush=True); import time; time.sleep(50)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(50)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = Path("/proc") / parent.stdout.readline().strip()
    assert child.exists()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    # It may stay behind as a zombie where nobody collects orphans.
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
