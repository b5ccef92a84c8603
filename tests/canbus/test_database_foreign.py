"""Databases as other people's programs write them: one odd item costs itself, in every format."""

import random

import pytest

from fieldbus.canbus.codec import MessageDecoder
from fieldbus.canbus.database.encodings import decode, encoding_named, is_chinese
from fieldbus.canbus.database.loading import content, load
from fieldbus.canbus.database.reader import read


def loaded(format_, text, encoding=None):
    answer = read(format_, text if isinstance(text, bytes) else text.encode(), encoding)
    assert "error" not in answer, answer["error"]
    return content(answer, format_, 0)


def values(found, name, data):
    """Return what a message's frame says, by name."""
    message = next(item for item in found.messages if item.name == name)
    decoder = MessageDecoder(message)
    said = {}
    for index in decoder.select(data):
        branch = decoder.branches[index]
        said |= dict(zip([item.name for item in branch.signals], branch.decode(data)[0], strict=True))
    return said


def notes(found):
    return [text for _, _, text in found.notes]


# --- DBC

STAR = """VERSION ""
BU_: A B
BO_ 500 M: 8 A
 SG_ s1 : 0|8@1+ (1,0) [0|255] "" {}
 SG_ s2 : 8|16@1+ (0.1,0) [0|6553.5] "" A B
 SG_ s3 : 24|16@1+ (0.01,0) [0|655.35] "" A
"""


@pytest.mark.parametrize(
    "behind", ["*", "ECU/1", "A   # note", "A // note", "A;", 'A "x', "[A]", "(A,B)", "", "A, *"]
)
def test_an_odd_word_behind_a_signal_costs_no_other(behind):
    found = loaded("dbc", STAR.format(behind))
    assert values(found, "M", bytes(range(1, 9))) == {"s1": 1, "s2": 77, "s3": 12.84}


def test_a_note_between_signals_costs_no_signal():
    text = STAR.format("A").replace(" SG_ s2", "# a note\n  // another\n* and one more\n SG_ s2")
    assert values(loaded("dbc", text), "M", bytes(range(1, 9))) == {"s1": 1, "s2": 77, "s3": 12.84}


def test_byte_orders_of_savvycan_are_floats():
    text = """VERSION ""
BO_ 291 Power: 8 N
 SG_ Active : 0|32@2- (1,0) [0|0] "kW" N
 SG_ Plain : 32|8@1+ (1,0) [0|0] "" N
BO_ 292 Total: 8 N
 SG_ Energy : 0|64@3- (1,0) [0|0] "kWh" N
"""
    found = loaded("dbc", text)
    assert values(found, "Power", bytes.fromhex("0000C03F07000000")) == {"Active": 1.5, "Plain": 7}
    assert values(found, "Total", bytes.fromhex("000000000000F83F")) == {"Energy": 1.5}


def test_a_message_is_as_long_as_its_signals_need():
    text = """VERSION ""
BO_ 291 Status: 0 A
 SG_ X : 0|8@1+ (1,0) [0|0] "" A
 SG_ Y : 8|16@1+ (1,0) [0|0] "" A
BO_ 292 Short: 2 A
 SG_ P : 0|8@1+ (1,0) [0|0] "" A
 SG_ Q : 48|16@1+ (1,0) [0|0] "" A
BO_ 293 Full: 8 A
 SG_ R : 60|8@1+ (1,0) [0|0] "" A
"""
    found = loaded("dbc", text)
    data = bytes.fromhex("0F10204080000000")
    assert values(found, "Status", data) == {"X": 15, "Y": 0x2010}
    assert values(found, "Short", data)["Q"] == 0
    assert [message.length for message in found.messages] == [3, 8, 8]
    assert [(line, path) for line, path, _ in found.notes] == [(2, "Status.Y"), (5, "Short.Q"), (9, "Full.R")]
    assert "ends behind its 2 bytes: 8 are taken" in notes(found)[1]
    assert "is left out" in notes(found)[2]


def test_what_is_lost_is_said_before_what_is_renamed():
    lines = ['VERSION ""', "BU_: A"]
    for number in range(1100):
        lines += [f"BO_ {number} M{number}: 1 A", f' SG_ a b{number} : 0|8@1+ (1,0) [0|0] "" A']
    lines += ["BO_ 1200 Last: 8 A", ' SG_ Gone : 60|16@1+ (1,0) [0|0] "" A']
    found = loaded("dbc", "\n".join(lines))
    assert "Last.Gone" in [path for _, path, _ in found.notes]
    assert notes(found)[-1] == "1080 more names are repaired, which costs nothing"
    assert len(found.notes) == 22


def test_a_database_without_messages_says_so(tmp_path):
    (tmp_path / "empty.dbc").write_text('VERSION ""\nBU_: A\n')
    found = load(tmp_path / "empty.dbc", "empty.dbc")
    assert [problem.message for problem in found.warnings] == ["no message was found in it"]


GBK = """VERSION ""
BU_: N
BO_ 291 Cab: 8 N
 SG_ Temp : 7|8@0+ (1,-40) [-40|215] "℃" N
 SG_ Hood : 16|1@1+ (1,0) [0|1] "" N
VAL_ 291 Hood 0 "关" 1 "开" ;
"""


def test_a_chinese_database_is_read_and_said():
    found = loaded("dbc", GBK.encode("gbk"))
    temp, hood = found.messages[0].signals
    assert (temp.unit, hood.labels) == ("℃", {0: "关", 1: "开"})
    assert notes(found) == ["its text is no UTF-8 and is read as GBK; `encoding` says otherwise"]
    found = loaded("dbc", GBK.encode("gbk"), "gbk")
    assert (found.messages[0].signals[0].unit, found.notes) == ("℃", [])


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("温度", "shift_jis"), ("온도", "cp949"), ("Größe °C m²·K", "cp1252"), ("Żółw", "cp1250")],
)
@pytest.mark.parametrize("format_", ["dbc", "sym", "kcd"])
def test_a_named_encoding_counts(text, encoding, format_):
    written = {
        "dbc": f'VERSION ""\nBO_ 1 M: 8 N\n SG_ S : 0|8@1+ (1,0) [0|0] "{text}" N\n',
        "sym": f'FormatVersion=6.0 // x\nTitle="t"\n{{SEND}}\n[M]\nID=001h\nLen=8\nVar=S unsigned 0,8 /u:"{text}"\n',
        "kcd": f'<NetworkDefinition xmlns="http://kayak.2codeornot2code.org/1.0"><Document/><Bus name="b"><Message '
        f'id="1" length="8" name="M"><Signal name="S" offset="0" length="8"><Value unit="{text}"/></Signal></Message>'
        "</Bus></NetworkDefinition>",
    }[format_]
    found = loaded(format_, written.encode(encoding), encoding)
    assert found.messages[0].signals[0].unit == text


@pytest.mark.parametrize(
    "text", ["°C", "Größe", "m²", "µs", "é à ç", "±5 °C", "Ä", "W/m²·K W/m²·K", "ÄÖ", "§", "²³"]
)
def test_accented_letters_are_not_chinese(text):
    assert not is_chinese(text.encode("cp1252"))
    assert decode(text.encode("cp1252"))[0] == text


@pytest.mark.parametrize(
    ("data", "is_it"),
    [
        ("b0a1 d7f9", True),  # the first and the last common letter
        ("b0a1 b0a1", False),  # the same one twice may be two accented letters
        ("b0a1", False), ("b0a1 b0a2 a1e6 a1e7", True), ("b0a1 b0a2 a1e6 a1e7 a1e8", False),
        ("b0a1 b0a2 a1a0", False), ("b0a1 b0a2 a0a1", False), ("b0a1 b0a2 f8a1", False), ("b0a1 b0a2 f7fe", True),
        ("b0a1b0a2b0", False), ("b0a1 b0a2 b0", False), ("afa1 afa2", False), ("d8a1 d8a2", False), ("", False),
    ],
)  # fmt: skip
def test_chinese_is_what_is_made_of_common_letters(data, is_it):
    assert is_chinese(b" x ".join(bytes.fromhex(word) for word in data.split())) is is_it


def test_only_encodings_of_text_are_taken():
    assert encoding_named("GBK") == "gbk"
    assert encoding_named("latin-1") == "iso8859-1"
    for name in ("base64", "rot13", "hex", "nothing", "", "x" * 100, "idna", "a\0b"):
        assert encoding_named(name) is None


# --- KCD, SYM, ARXML


def test_an_id_of_29_bits_makes_a_kcd_message_extended():
    text = """<NetworkDefinition xmlns="http://kayak.2codeornot2code.org/1.0"><Document/>
  <Bus name="CAN"><Message id="0x18FEF100" length="2" name="Speed"><Signal name="v" offset="0" length="16"/></Message>
  </Bus></NetworkDefinition>"""
    found = loaded("kcd", text)
    assert [(item.frame_id, item.is_extended) for item in found.messages] == [(0x18FEF100, True)]
    assert notes(found) == ["message Speed is repaired: its id 0x18FEF100 is taken as an extended one"]


PAGES = """FormatVersion=6.0 // Do not edit this line!
Title="own"

{{SENDRECEIVE}}

[Pages]
ID={id}
Len=8
Mux=First 0,8 9
Var=DataA unsigned 8,8

[Pages]
Len=8
Mux=Second 0,8 {mux} // a page A0h
Var=DataB unsigned 8,8
"""


@pytest.mark.parametrize("mux", ["A0h", "0A0h", "a0h", "160"])
@pytest.mark.parametrize(("number", "frame_id"), [("123h", 0x123), ("7FFh", 0x7FF), ("A1h", 0xA1)])
def test_hexadecimal_multiplexer_values_of_sym_may_begin_with_a_letter(mux, number, frame_id):
    found = loaded("sym", PAGES.format(mux=mux, id=number))
    assert found.messages[0].frame_id == frame_id
    assert values(found, "Pages", b"\x09\x11") == {"First": 9, "DataA": 17}
    assert values(found, "Pages", b"\xa0\x22") == {"First": 160, "DataB": 34}


def test_sym_5_is_read():
    text = """FormatVersion=5.0 // Do not edit this line!
Title="canmatrix-Export"
{ENUMS}
enum OnOff(0="Off", 1="On")

{SENDRECEIVE}

[BE]
ID=123h
Type=Standard
DLC=8
Var=W unsigned 0,16 -m /f:0.1
Var=E unsigned 16,8 /e:OnOff
"""
    found = loaded("sym", text)
    assert values(found, "BE", bytes.fromhex("0911010000000000")) == {"W": 232.1, "E": 1}
    assert found.messages[0].signals[1].labels == {0: "Off", 1: "On"}


ARXML = """<?xml version="1.0" encoding="UTF-8"?>
<AUTOSAR xmlns="http://autosar.org/3.2.3"><TOP-LEVEL-PACKAGES>
<AR-PACKAGE><SHORT-NAME>Cluster</SHORT-NAME><ELEMENTS>
 <CAN-CLUSTER><SHORT-NAME>CAN</SHORT-NAME><PHYSICAL-CHANNELS><{channel}><SHORT-NAME>Ch</SHORT-NAME>
 <FRAME-TRIGGERINGSS><CAN-FRAME-TRIGGERING><SHORT-NAME>FT</SHORT-NAME><FRAME-REF DEST="FRAME">/Frame/Status</FRAME-REF>
  <CAN-ADDRESSING-MODE>STANDARD</CAN-ADDRESSING-MODE><IDENTIFIER>291</IDENTIFIER></CAN-FRAME-TRIGGERING></FRAME-TRIGGERINGSS>
 <I-SIGNAL-TRIGGERINGS>{triggerings}</I-SIGNAL-TRIGGERINGS></{channel}></PHYSICAL-CHANNELS></CAN-CLUSTER></ELEMENTS></AR-PACKAGE>
<AR-PACKAGE><SHORT-NAME>Frame</SHORT-NAME><ELEMENTS><FRAME><SHORT-NAME>Status</SHORT-NAME><FRAME-LENGTH>8</FRAME-LENGTH>
 <PDU-TO-FRAME-MAPPINGS><PDU-TO-FRAME-MAPPING><SHORT-NAME>M</SHORT-NAME>
 <PACKING-BYTE-ORDER>MOST-SIGNIFICANT-BYTE-LAST</PACKING-BYTE-ORDER><PDU-REF DEST="SIGNAL-I-PDU">/PDU/StatusPdu</PDU-REF>
 <START-POSITION>0</START-POSITION></PDU-TO-FRAME-MAPPING></PDU-TO-FRAME-MAPPINGS></FRAME></ELEMENTS></AR-PACKAGE>
<AR-PACKAGE><SHORT-NAME>PDU</SHORT-NAME><ELEMENTS><SIGNAL-I-PDU><SHORT-NAME>StatusPdu</SHORT-NAME><LENGTH>64</LENGTH>
 <SIGNAL-TO-PDU-MAPPINGS><I-SIGNAL-TO-I-PDU-MAPPING><SHORT-NAME>MS</SHORT-NAME>
 <PACKING-BYTE-ORDER>MOST-SIGNIFICANT-BYTE-LAST</PACKING-BYTE-ORDER><SIGNAL-REF DEST="I-SIGNAL">/Sig/Speed</SIGNAL-REF>
 <START-POSITION>0</START-POSITION></I-SIGNAL-TO-I-PDU-MAPPING></SIGNAL-TO-PDU-MAPPINGS></SIGNAL-I-PDU></ELEMENTS></AR-PACKAGE>
<AR-PACKAGE><SHORT-NAME>Sig</SHORT-NAME><ELEMENTS>{signals}</ELEMENTS></AR-PACKAGE>
</TOP-LEVEL-PACKAGES></AUTOSAR>"""
TRIGGERING = "<I-SIGNAL-TRIGGERING><SHORT-NAME>T</SHORT-NAME></I-SIGNAL-TRIGGERING>"
I_SIGNAL = (
    "<I-SIGNAL><SHORT-NAME>Speed</SHORT-NAME>"
    '<SYSTEM-SIGNAL-REF DEST="SYSTEM-SIGNAL">/Sig/Speed</SYSTEM-SIGNAL-REF></I-SIGNAL>'
)
SYSTEM_SIGNAL = "<SYSTEM-SIGNAL><SHORT-NAME>Speed</SHORT-NAME><LENGTH>16</LENGTH></SYSTEM-SIGNAL>"


@pytest.mark.parametrize("channel", ["PHYSICAL-CHANNEL", "CAN-PHYSICAL-CHANNEL"])
@pytest.mark.parametrize("signals", [I_SIGNAL + SYSTEM_SIGNAL, SYSTEM_SIGNAL + I_SIGNAL])
def test_elements_of_one_path_are_told_apart_by_their_kind(channel, signals):
    text = ARXML.format(channel=channel, triggerings=2 * TRIGGERING, signals=signals)
    found = loaded("arxml", text)
    assert values(found, "Status", bytes.fromhex("0F10204080000000")) == {"Speed": 4111}
    assert (
        "path /Cluster/CAN/Ch/T is there more than once: a reference means the first one of its kind"
        in notes(found)
    )


# --- dice

SYM_LINES = [
    "FormatVersion=6.0 // Do not edit this line!", 'Title="own"', "{ENUMS}",
    *(f'Enum=E{n}(0="off", 1="on")' for n in range(6)), "{SENDRECEIVE}",
    *(line for n in range(6) for line in (
        f"[M{n}]", f"ID={n + 256:X}h", "Len=8", f"Var=A{n} unsigned 0,8 /e:E{n}", f"Var=B{n} signed 8,16 -m /f:0.5",
    )),
]  # fmt: skip
KCD_LINES = [
    '<NetworkDefinition xmlns="http://kayak.2codeornot2code.org/1.0"><Document/><Bus name="b">',
    *(line for n in range(6) for line in (
        f'<Message id="{n + 256}" length="8" name="M{n}">', f'<Signal name="A{n}" offset="0" length="8"/>',
        f'<Signal name="B{n}" offset="8" length="16" endianess="big"><Value type="signed" slope="0.5"/></Signal>',
        "</Message>",
    )),
    "</Bus></NetworkDefinition>",
]  # fmt: skip
SPAN = {"sym": (10, 5), "kcd": (1, 4)}
"""Where the messages begin, and how many lines each has."""


@pytest.mark.parametrize("format_", ["sym", "kcd"])
@pytest.mark.parametrize("seed", range(25))
def test_an_odd_item_of_a_database_costs_its_message_at_most(format_, seed):
    """Words in one message are dropped, doubled or replaced; every other message says what it said."""
    dice = random.Random(f"{format_} {seed}")
    lines = SYM_LINES if format_ == "sym" else KCD_LINES
    first, size = SPAN[format_]
    data = bytes(dice.randint(0, 1) for _ in range(8))
    whole = loaded(format_, "\n".join(lines))
    changed = dice.randrange(6)
    made = list(lines)
    if format_ == "sym":
        at = first + changed * size + dice.randrange(1, size)
        words = made[at].split(" ")
        which = dice.randrange(len(words))
        junk = dice.choice(["x", "-1", "999999", "0", "Foo=1", '"', "/f:", "/e:None", "h", "=", "1.5", "é"])
        words[which : which + 1] = dice.choice([[], [words[which]] * 2, [junk], [words[which], junk]])
        made[at] = " ".join(words)
    else:  # what is no XML is none: only attributes change
        at = first + changed * size + dice.randrange(size - 1)
        parts = made[at].split('"')
        which = dice.randrange(1, len(parts), 2)
        parts[which] = dice.choice(["", "x", "-1", "999999", "1e999", "steep", "é", parts[which] * 2])
        made[at] = '"'.join(parts)
    found = loaded(format_, "\n".join(made))
    for number in range(6):
        if number != changed:
            assert values(found, f"M{number}", data) == values(whole, f"M{number}", data)
    assert len(found.messages) <= 6
