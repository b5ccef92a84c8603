"""`fieldbus decode`: logs as engineering values, for programs and for people."""

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fieldbus.cli.main import app

DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 256 EngineStatus: 8 ECU
 SG_ EngineSpeed : 0|16@1+ (0.125,0) [0|8000] "rpm" GW
 SG_ Mode : 16|4@1+ (1,0) [0|15] "" GW
 SG_ Torque : 24|16@1- (1,0) [-100|100] "Nm" GW
BO_ 512 Values: 8 ECU
 SG_ Which M : 0|8@1+ (1,0) [0|255] "" GW
 SG_ First m1 : 8|16@1+ (1,0) [0|0] "" GW
 SG_ Second m2 : 8|16@1- (1,0) [0|0] "" GW
BO_ 768 Reals: 4 ECU
 SG_ Level : 0|32@1- (1,0) [0|0] "" GW
VAL_ 256 Mode 2 "running" 1 "idle" ;
SIG_VALTYPE_ 768 Level : 1;
"""

J1939_DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 2364540158 EEC1: 8 ECU
 SG_ EngineSpeed : 24|16@1+ (0.125,0) [0|8031.875] "rpm" GW
BO_ 2566844926 Long: 14 ECU
 SG_ Tail : 104|8@1+ (1,0) [0|255] "" GW
BA_DEF_ BO_ "VFrameFormat" ENUM "StandardCAN","ExtendedCAN","reserved","J1939PG";
BA_DEF_ "ProtocolType" STRING ;
BA_DEF_DEF_ "VFrameFormat" "J1939PG";
BA_DEF_DEF_ "ProtocolType" "J1939";
BA_ "ProtocolType" "J1939";
BA_ "VFrameFormat" BO_ 2364540158 3;
BA_ "VFrameFormat" BO_ 2566844926 3;
"""


@pytest.fixture
def decode(tmp_path, monkeypatch):
    """Decode lines of a log; return what was printed on stdout and stderr."""
    (tmp_path / "a.dbc").write_text(DBC)
    (tmp_path / "j.dbc").write_text(J1939_DBC)
    monkeypatch.chdir(tmp_path)

    def run(*lines, database="a.dbc", options=(), code=0, name="a.log"):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        done = CliRunner().invoke(app, ["decode", database, name, *options])
        assert done.exit_code == code, done.output
        return done.stdout.splitlines(), done.stderr

    return run


def as_json(lines):
    return [json.loads(line) for line in lines]


def test_a_frame_is_a_line_with_values_raw_values_and_what_is_bad(decode):
    lines, summary = decode(
        "(1345212884.318850) vcan0 100#4019 02 0500".replace(" 02 0500", "020500000000"), options=["--json"]
    )
    assert as_json(lines) == [
        {
            "time": "2012-08-17T14:14:44.318850Z",
            "channel": "vcan0",
            "id": 256,
            "extended": False,
            "message": "EngineStatus",
            "signals": {"EngineSpeed": 808.0, "Mode": 2, "Torque": 5},
            "raw": {"EngineSpeed": 6464, "Mode": 2, "Torque": 5},
            "bad": {},
        }
    ]
    assert summary == "a.log: 1 frames; 1 decoded\n"


def test_people_see_units_and_labels(decode):
    lines, _ = decode("(1345212884.318850) vcan0 100#40190205FF000000")
    head = "2012-08-17T14:14:44.318850Z vcan0 100"
    assert lines == [
        f"{head} EngineStatus EngineSpeed=808 rpm Mode=2 (running) Torque=-251 Nm (out of range)",
    ]


def test_short_frames_give_the_signals_that_are_wholly_there(decode):
    lines, _ = decode("(1.000000) c 100#401902", options=["--json"])
    [line] = as_json(lines)
    assert line["signals"] == {"EngineSpeed": 808.0, "Mode": 2}
    assert line["raw"] == {"EngineSpeed": 6464, "Mode": 2}
    assert line["bad"] == {"Torque": "missing in a short frame"}


def test_what_should_not_be_trusted_is_said(decode):
    lines, _ = decode("(1.000000) c 100#4019020500010000", "(2.0) c 100#401902E803000000", options=["--json"])
    assert [line.get("uncertain") for line in as_json(lines)] == [None, {"Torque": "out of range"}]


def test_a_multiplexed_frame_has_the_branch_that_its_selector_names(decode):
    lines, _ = decode("(1.0) c 200#01FFFF", "(1.0) c 200#02FFFF", "(1.0) c 200#03FFFF", options=["--json"])
    assert [line["signals"] for line in as_json(lines)] == [
        {"Which": 1, "First": 65535},
        {"Which": 2, "Second": -1},
        {"Which": 3},
    ]


def test_nan_and_infinity_are_bad_and_never_json(decode):
    lines, _ = decode(
        "(1.0) c 300#0000C07F", "(1.0) c 300#0000807F", "(1.0) c 300#0000803F", options=["--json"]
    )
    assert "NaN" not in "".join(lines)
    assert "Infinity" not in "".join(lines)
    assert [(line["signals"], line["bad"]) for line in as_json(lines)] == [
        ({}, {"Level": "not available"}),
        ({}, {"Level": "not available"}),
        ({"Level": 1.0}, {}),
    ]


def test_what_no_message_describes_is_a_line_without_signals_and_is_counted(decode):
    lines, summary = decode("(1.0) c 123#11", "(2.0) c 123#12", "(3.0) c 00000100#00", "(4.0) c 100#", "(5.0) c 100#R8",
                            "(6.0) c 20000040#0000000000000000", options=["--json"])  # fmt: skip
    found = as_json(lines)
    nothing = {"message": None, "signals": {}, "raw": {}, "bad": {}}
    assert found[0] == {
        "time": "1970-01-01T00:00:01.000000Z",
        "channel": "c",
        "id": 0x123,
        "extended": False,
        **nothing,
    }
    assert (found[2]["id"], found[2]["extended"], found[2]["message"]) == (0x100, True, None)
    assert found[4] == {**found[4], **nothing, "remote": True}
    assert found[5] == {**found[5], **nothing, "error": ["bus-off"]}
    assert summary == (
        "a.log: 6 frames; 1 decoded; 3 unknown, 2 different: 123 (2 times), 00000100 (1 times); "
        "2 remote, error or partial\n"
    )
    text, _ = decode("(1.0) c 123#11", "(4.0) c 100#", "(6.0) c 20000040#0000000000000000")
    assert text[0] == "1970-01-01T00:00:01.000000Z c 123 – 11"
    assert text[2].endswith("c 20000040 error: bus-off") or "error: bus-off" in text[2]


def test_nothing_decoded_is_exit_1(decode):
    decode("(1.0) c 123#11", code=1)
    decode(code=1)


def test_bad_lines_are_named_and_exit_1_but_cost_nothing_else(decode):
    lines, summary = decode("(1.0) c 100#00", "garbage", "(2.0) c 100#01", code=1)
    assert len(lines) == 2
    assert "1 bad lines" in summary
    assert "a.log:2: not a line as `candump -L` writes it" in summary


def test_only_one_channel_on_wish(decode):
    log = ["(1.0) can0 100#00", "(1.0) can1 100#01"]
    lines, _ = decode(*log, options=["--json", "--channel", "can1"])
    assert [line["channel"] for line in as_json(lines)] == ["can1"]
    _, summary = decode(*log, options=["--channel", "can2"], code=1)
    assert "no frame of channel can2; there are can0, can1" in summary


def test_j1939_is_matched_by_pgn_whatever_priority_and_source(decode):
    frames = ["(1.0) c 0CF00400#FFFFFF0019FFFFFF", "(1.0) c 18F00403#FFFFFF8019FFFFFF", "(1.0) c 0CF00500#00"]
    lines, _ = decode(*frames, database="j.dbc", options=["--json"])
    assert [(line["message"], line["signals"]) for line in as_json(lines)] == [
        ("EEC1", {"EngineSpeed": 800.0}),
        ("EEC1", {"EngineSpeed": 816.0}),
        (None, {}),
    ]


def test_messages_of_several_frames_are_decoded_with_the_last(decode):
    # PGN FEE6 + 0x18FEE6FE: BAM of 14 bytes in two packets
    pgn = (2566844926 & 0x1FFFFFFF) >> 8 & 0x3FFFF
    frames = [
        f"(1.000000) c 18ECFF21#200E0002FF{pgn & 255:02X}{pgn >> 8 & 255:02X}{pgn >> 16:02X}",
        "(1.060000) c 18EBFF21#0101020304050607",
        "(1.120000) c 18EBFF21#0208090A0B0C0D2A",
    ]
    lines, summary = decode(*frames, database="j.dbc", options=["--json"])
    found = as_json(lines)
    assert [line["message"] for line in found] == [None, None, "Long"]
    assert found[2]["signals"] == {"Tail": 42}
    assert found[2]["transport"] == {"pgn": pgn, "source": 0x21, "bytes": 14}
    assert "unknown" not in summary
    text, _ = decode(*frames, database="j.dbc")
    assert text[2].endswith(f"(PGN {pgn} from 33, 14 bytes) Long Tail=42")


PACKETS = [
    "(1.000000) c 18ECFF21#200E0002FFF1FE00",
    "(1.060000) c 18EBFF21#0101020304050607",
    "(1.120000) c 18EBFF21#0208090A0B0C0D2A",
]
CONNECTION = [
    "(2.000000) c 18EC3021#100E0002FFF1FE00",
    "(2.010000) c 18EC2130#110201FFFFF1FE00",
    "(2.020000) c 18EB3021#0101020304050607",
    "(2.030000) c 18EB3021#0208090A0B0C0D2B",
    "(2.040000) c 18EC2130#130E0002FFF1FE00",
]
DESCRIBED = """BO_ 2565668862 TP_CM: 8 ECU
 SG_ Control : 0|8@1+ (1,0) [0|255] "" GW
BO_ 2565603326 TP_DT: 8 ECU
 SG_ Number : 0|8@1+ (1,0) [0|255] "" GW
BA_ "VFrameFormat" BO_ 2565668862 3;
BA_ "VFrameFormat" BO_ 2565603326 3;
"""


@pytest.mark.parametrize("is_described", [False, True])
def test_packets_make_a_message_also_where_the_database_has_them(decode, tmp_path, is_described):
    head, rest = J1939_DBC.split("BA_DEF_ BO_", 1)
    described, formats = DESCRIBED.split("BA_ ", 1)
    text = f"{head}{described}BA_DEF_ BO_{rest}BA_ {formats}" if is_described else J1939_DBC
    (tmp_path / "tp.dbc").write_text(text)
    found = as_json(decode(*PACKETS, *CONNECTION, database="tp.dbc", options=["--json"])[0])
    long = [line for line in found if line["message"] == "Long"]
    assert [line["signals"]["Tail"] for line in long] == [42, 43]
    assert [line["transport"]["bytes"] for line in long] == [14, 14]
    others = [line["message"] for line in found if line["message"] != "Long"]
    expected = ["TP_CM", "TP_DT", "TP_CM", "TP_CM", "TP_DT", "TP_DT"] if is_described else [None] * 6
    assert others == expected


def test_a_long_message_is_never_decoded_from_one_frame(decode):
    # An NMEA 2000 fast packet: sequence and frame number, size, first bytes.
    frames = ["(1.0) c 0CFEF121#A00E010203040506", "(1.1) c 0CFEF121#A10708090A0B0C2A"]
    lines, summary = decode(*frames, database="j.dbc", options=["--json"], code=1)
    assert [(line["message"], line["signals"]) for line in as_json(lines)] == [(None, {})] * 2
    assert "PGN 65265 (Long) has 14 bytes, and frames of 8 came" in summary
    assert "NMEA 2000 fast packets are not supported (2 frames)" in summary


ESCAPES = "\x1b[31m\x07\x9b2J\u202e\x00\x7f"


@pytest.mark.parametrize("log", ["a.log", "a.asc", "a.trc", "a.csv", "a.crtd"])
@pytest.mark.parametrize("as_json", [True, False])
def test_nothing_in_files_commands_a_terminal(decode, tmp_path, log, as_json):
    text = DBC.replace('"rpm"', f'"r{ESCAPES}pm"').replace('"idle"', f'"{ESCAPES}"')
    text = text.replace("BO_ 512 Values", f"BO_ 512 Val{ESCAPES}ues") + f'CM_ "{ESCAPES}" ;\n{ESCAPES} junk\n'
    (tmp_path / "e.dbc").write_text(text, encoding="utf-8")
    head = {"a.asc": "base hex timestamps absolute", "a.trc": ";$FILEVERSION=1.1"}.get(log, "")
    lines = [head, "(1.0) c 100#4019010000000000", "1.0 1 100 Rx d 8 40 19 01 0 0 0 0 0",
             "1) 1.0 Rx 0100 8 40 19 01 00 00 00 00 00", "1.0 1R11 100 40 19 01 00 00 00 00 00",
             f"(2.0) {ESCAPES} 100#00", f"2.0 1 {ESCAPES} Rx d 1 00", f"2) {ESCAPES} Rx 0100 1 00",
             f"3) 3.0 Rx {ESCAPES} 1 00"]  # fmt: skip
    if log == "a.csv":
        lines = [
            "Time Stamp,ID,Extended,Dir,Bus,LEN,D1",
            "1,100,false,Rx,0,1,00",
            f"1,100,false,Rx,{ESCAPES},1,00",
            f"{ESCAPES},1,1,1,1,1,1",
        ]
    options = ["--json"] if as_json else []
    found, summary = decode(*lines, database="e.dbc", options=options, code=1, name=log)
    shown = "".join([*found, *summary.splitlines()])
    assert found
    assert all(letter.isprintable() for letter in shown), ascii(shown)


def test_the_log_may_come_from_a_pipe(tmp_path):
    (tmp_path / "a.dbc").write_text(DBC)
    command = [sys.executable, "-m", "fieldbus", "decode", str(tmp_path / "a.dbc"), "-", "--json"]
    done = subprocess.run(
        command, input=b"(1.0) c 100#4019010000000000\n", capture_output=True, timeout=60, check=True
    )
    assert as_json(done.stdout.decode().splitlines())[0]["signals"]["EngineSpeed"] == 808.0


def test_the_encoding_of_the_database_may_be_named(decode, tmp_path):
    (tmp_path / "g.dbc").write_bytes(DBC.replace('"idle"', '"空闲"').encode("gbk"))
    for options in ([], ["--encoding", "gbk"]):
        lines, summary = decode("(1.0) c 100#4019010000000000", database="g.dbc", options=options)
        assert "Mode=1 (空闲)" in lines[0]
        assert ("is read as GBK" in summary) is not bool(options)
    decode("(1.0) c 100#00", options=["--encoding", "base64"], code=2)
    decode("(1.0) c 100#00", options=["--format", "xml"], code=2)
    decode("(1.0) c 100#00", options=["--timezone", "Mars/Olympus"], code=2)


def test_j1939_can_be_forced(decode, tmp_path):
    plain = re.sub(r"BA_.*\n", "", J1939_DBC)
    (tmp_path / "p.dbc").write_text(plain)
    frame = "(1.0) c 18F00403#FFFFFF8019FFFFFF"
    decode(frame, database="p.dbc", code=1)
    lines, _ = decode(frame, database="p.dbc", options=["--j1939", "--json"])
    assert as_json(lines)[0]["message"] == "EEC1"


def test_what_is_wrong_with_the_files_is_said_in_a_line(decode, tmp_path):
    assert "'.xyz' is no log format" in decode(code=1, name="a.xyz")[1]
    assert "nowhere.dbc" in decode(database="nowhere.dbc", code=1)[1]
    (tmp_path / "bad.dbc").write_text("rubbish")
    assert "bad.dbc" in decode(database="bad.dbc", code=1)[1]


def test_a_terminal_obeys_nothing_of_what_files_say(decode, tmp_path):
    (tmp_path / "evil.dbc").write_text(
        DBC.replace('"rpm"', '"\x1b[2J"').replace("running", "run\x1b]0;x\x07")
    )
    lines, _ = decode("(1.0) c 100#401902", database="evil.dbc")
    assert "\x1b" not in lines[0]


def test_a_reader_that_has_enough_is_no_trouble(tmp_path):
    (tmp_path / "a.dbc").write_text(DBC)
    (tmp_path / "a.log").write_text("(1.000000) c 100#00\n" * 100_000)
    command = f"{sys.executable} -m fieldbus decode a.dbc a.log | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=40, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
