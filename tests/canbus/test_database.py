"""Reading databases."""

import pytest

from fieldbus.canbus.database import DatabaseError, load

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
    text = GOOD.replace("BO_ 512 Mux: 8 ECU", "BO_ 512 Mux: 1 ECU")
    found = load(write(tmp_path, text), "bus.dbc")
    assert [message.name for message in found.messages] == ["Status", "Engine", "Mux"]
    assert [signal.name for signal in found.messages[2].signals] == ["Page"]
    (problem,) = found.warnings
    assert (problem.file, problem.line, problem.path) == ("bus.dbc", 12, "Mux.One")
    assert "message Mux: signal One is left out: it begins at bit 8 of a message of 1 bytes" in problem.message
    assert problem.is_warning


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
