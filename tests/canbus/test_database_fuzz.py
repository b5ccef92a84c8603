"""Damaged DBC texts: whatever was done to one, it is read or refused, and what was not touched is there."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.canbus.database.loading import Database, content
from fieldbus.canbus.database.reader import read

COUNT = 6
HEAD = ['VERSION ""', "NS_ :", "\tCM_", "\tBA_", "BS_:", "BU_: ECU GW"]
MESSAGES = [
    [
        f"BO_ {(0x80000400 if index % 2 else 0x100) + index} Message{index}: 8 ECU",
        f' SG_ Page{index} M : 0|4@1+ (1,0) [0|0] "" GW',
        f' SG_ Speed{index} m1 : 8|16@1- (0.125,-{index}) [0|8000] "rpm" GW,ECU',
        f' SG_ Torque{index} m2 : 15|16@0+ (1,0) [0|100] "Nm" GW',
        f' SG_ Level{index} : 32|32@1- (1,0) [0|0] "°C" GW',
        "",
    ]
    for index in range(COUNT)
]
TAIL = [
    line
    for index in range(COUNT)
    for number in [(0x80000400 if index % 2 else 0x100) + index]
    for line in (
        f'CM_ BO_ {number} "about',
        f'message {index}";',
        f'BA_ "GenMsgCycleTime" BO_ {number} 100;',
        f'VAL_ {number} Page{index} 1 "one" 2 "two" ;',
        f"SIG_VALTYPE_ {number} Level{index} : 1;",
        f"SG_MUL_VAL_ {number} Speed{index} Page{index} 1-1, 3-5;",
    )
]
LINES = [*HEAD, *(line for message in MESSAGES for line in message), *TAIL]
LINE_OF = [len(HEAD) + index * len(MESSAGES[0]) for index in range(COUNT)]


def messages(text):
    """Return what is read of a text, as far as a signal's layout goes; empty if it is refused."""
    answer = json.loads(json.dumps(read("dbc", text.encode("utf-8", "replace"))))
    if "error" in answer:
        return {}
    found = content(answer, "dbc", 0)
    assert isinstance(Database(found.messages, []).messages, list)
    return {
        message.name: [
            (signal.name, signal.start, signal.length, signal.linear.scale, signal.minimum)
            for signal in message.signals
        ]
        for message in found.messages
    }


WHOLE = messages("\n".join(LINES))

line_numbers = st.integers(0, len(LINES) - 1)
edits = st.lists(
    st.tuples(
        st.sampled_from(["delete", "double", "swap", "cut", "character", "insert"]),
        line_numbers,
        line_numbers,
        st.integers(0, 60),
        st.sampled_from(
            [*'";:|@()[],.-+\\ \n\0mM0123456789aBO_SG°', "BO_ ", "SG_ ", 'CM_ "', "1e999", "//", "NS_ :"]
        ),
    ),
    min_size=1,
    max_size=4,
)


def damage(changes):
    """Return the damaged lines, and the numbers of the lines that were touched."""
    lines = list(LINES)
    touched = set()
    for kind, at, other, column, piece in changes:
        touched.add(at)
        line = lines[at]
        if kind == "delete":
            lines[at] = ""
        elif kind == "double":
            lines[at] = f"{line}\n{line}"
        elif kind == "swap":
            lines[at], lines[other] = lines[other], line
            touched.add(other)
        elif kind == "cut":
            lines[at] = line[:column]
        elif kind == "character":
            lines[at] = line[:column] + piece + line[column + 1 :]
        else:
            lines[at] = line[:column] + piece + line[column:]
    return lines, touched


def test_the_undamaged_text_is_read_whole():
    assert [len(signals) for signals in WHOLE.values()] == [4] * COUNT


@given(edits)
@settings(max_examples=examples(300), deadline=None, suppress_health_check=list(HealthCheck))
def test_what_was_not_touched_is_there_whatever_was_done_to_the_rest(changes):
    lines, touched = damage(changes)
    found = messages("\n".join(lines))
    for index, at in enumerate(LINE_OF):
        name = f"Message{index}"
        # Without the head of the next message, its signals are this one's: nothing tells them apart.
        own = set(range(at - 1, at + len(MESSAGES[0]) + 1))
        behind = len(HEAD) + COUNT * len(MESSAGES[0]) + index * len(TAIL) // COUNT
        own |= set(range(behind, behind + len(TAIL) // COUNT))
        if not own & touched and name not in "\n".join(lines[number] for number in touched):
            assert found.get(name) == WHOLE[name], changes


@given(st.integers(0, len("\n".join(LINES))))
@settings(max_examples=examples(100), deadline=None)
def test_a_file_that_ends_anywhere_gives_what_was_before(end):
    text = "\n".join(LINES)[:end]
    found = messages(text)
    for index in range(COUNT - 1):
        if f" Message{index + 1}: " in text:
            assert [signal[0] for signal in found[f"Message{index}"]] == [
                signal[0] for signal in WHOLE[f"Message{index}"]
            ]


OTHERS = {
    "kcd": """<NetworkDefinition xmlns="http://kayak.2codeornot2code.org/1.0"><Document/><Bus name="b">
<Message id="0x1" length="8" name="A" interval="50"><Multiplex name="M" offset="0" length="4">
<MuxGroup count="1"><Signal name="S" offset="8" length="16" endianess="big"><Value slope="0.5" min="0" max="9"/>
<LabelSet><Label name="off" value="0"/></LabelSet></Signal></MuxGroup></Multiplex></Message>
<Message id="0x10000" length="auto" name="B" format="extended"><Signal name="S" offset="3"/></Message></Bus>
</NetworkDefinition>""",
    "sym": """FormatVersion=6.0 // Do not edit this line!
Title="t"
{ENUMS}
Enum=E(0="off", 1="on")
{SIGNALS}
Sig=S signed 16 -m /u:V /f:0.5 /o:-10 /min:0 /max:9 // comment
Sig=T E 4
{SENDRECEIVE}
[A]
ID=100h
Len=8
CycleTime=100
Mux=M1 0,8 01h
Sig=S 8
[A]
Len=8
Mux=M2 0,8 02h
Sig=T 8
[B]
ID=00000100h-00000102h
Type=Extended
Len=2
Var=V unsigned 0,8
""",
}


@given(
    st.sampled_from(sorted(OTHERS)),
    st.lists(
        st.tuples(
            st.integers(0, 900),
            st.integers(0, 12),
            # Numbers beyond all reason are for the limits of the reader's process, which this is not.
            st.sampled_from(["", "0", "-1", "1e999", "x", '"', "<", "999"]),
        ),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=examples(200), deadline=None)
def test_other_formats_are_read_or_refused_whatever_was_done_to_them(format_, changes):
    text = OTHERS[format_]
    for at, length, piece in changes:
        text = text[:at] + piece + text[at + length :]
    answer = json.loads(json.dumps(read(format_, text.encode())))
    if "error" not in answer:
        content(answer, format_, 0)


def test_the_undamaged_texts_of_other_formats_are_read_whole():
    assert {format_: len(read(format_, text.encode())["messages"]) for format_, text in OTHERS.items()} == {
        "kcd": 2,
        "sym": 4,
    }


@given(st.binary(max_size=400))
@settings(max_examples=examples(100), deadline=None)
def test_any_bytes_are_read_or_refused(data):
    read("dbc", data)
