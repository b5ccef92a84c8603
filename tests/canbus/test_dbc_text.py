"""DBC texts taken apart."""

import random
import time

import pytest
from dbc_reading import SIGNAL, one, read, signals

from fieldbus.canbus.database import dbc_text
from fieldbus.canbus.database.draft import MAX_NOTES
from fieldbus.canbus.database.encodings import decode


@pytest.mark.parametrize(
    "data",
    [
        'CM_ "°C";'.encode("cp1252"),
        'CM_ "°C";'.encode(),
        b"\xef\xbb\xbf" + 'CM_ "°C";'.encode(),
        b"\xff\xfe" + 'CM_ "°C";'.encode("utf-16-le"),
        b"\xfe\xff" + 'CM_ "°C";'.encode("utf-16-be"),
        'CM_ "°C";'.encode("utf-16-le"),
        'CM_ "°C";'.encode("utf-16-be"),
    ],
)
def test_the_encoding_is_found_out(data):
    assert decode(data) == ('CM_ "°C";', None)


def test_lines_may_end_in_any_way():
    assert decode(b"a\r\nb\rc\n") == ("a\nb\nc\n", None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3", -3), ("0.5", 0.5), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0),
        ("nan", None), ("inf", None), ("1e999", None), ("1e9999999999", None), ("9" * 65, None),
        ("1,5", None), ("", None), ("0x10", None),
    ],
)  # fmt: skip
def test_numbers_are_finite_and_bounded(text, value):
    found = dbc_text.number(text)
    assert (found, type(found)) == (value, type(value))


def test_statements_keep_their_lines_and_strings_may_span_lines():
    text = 'VERSION "1"\n\nBO_ 1 A: 8 X\n' + SIGNAL + 'CM_ BO_ 1 "two\nlines; BO_ 2 B: 8 X";\nBO_ 3 C: 8 X\n'
    found, notes = read(text)
    assert [(message.name, message.line, message.comment) for message in found] == [
        ("A", 3, "two\nlines; BO_ 2 B: 8 X"),
        ("C", 7, ""),
    ]
    assert found[0].signals[0].line == 4
    assert notes == []


def test_statements_may_share_a_line_and_have_comments_between():
    text = 'BO_ 1 A: 8 X SG_ S : 0|8@1+ (1,0) [0|0] "" X, Y SG_ T : 8|8@1+ (1,0) [0|0] "" X BO_ 2 B: 8 X // end\n// BO_ 3 C: 8 X\nBO_ 4 D: 8 X'
    found, notes = read(text)
    assert [(message.name, signals(message)) for message in found] == [
        ("A", ["S", "T"]),
        ("B", []),
        ("D", []),
    ]
    assert notes == []


def test_the_list_of_new_symbols_is_no_list_of_statements():
    found, notes = read("NS_ :\n\tCM_\n\tBA_DEF_\n\tBO_TX_BU_\n\nBS_:\n\nBU_: A B\n\nBO_ 1 A: 8 X\n" + SIGNAL)
    assert (signals(found[0]), notes) == (["S"], [])


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ('CM_ BO_ 1 "no end;', "this CM_ cannot be read"),
        ('VAL_ 1 S 0 "a" 1 b ;', "this VAL_ cannot be read"),
        ("SG_MUL_VAL_ 1 S ;", "this SG_MUL_VAL_ cannot be read"),
        ('BA_ "A" BO_ 1 ;', "this BA_ cannot be read"),
        ("what is this;", "this is no statement of a DBC file"),
        ('SIG_GROUP_ 1 "', "a string in it has no end"),
    ],
)
def test_a_statement_that_cannot_be_read_costs_itself(statement, words):
    text = f"BO_ 1 A: 8 X\n{SIGNAL}\n{statement}\nBO_ 2 B: 8 X\n{SIGNAL}"
    found, notes = read(text)
    assert [signals(message) for message in found] == [["S"], ["S"]]
    assert [line for line, _ in notes] == [4]
    assert words in notes[0][1]


def test_a_signal_that_cannot_be_read_costs_itself():
    message, notes = one("BO_ 1 A: 8 X\n SG_ Bad : 0|8@2+ (1,0)\n" + SIGNAL)
    assert signals(message) == ["S"]
    assert "this signal of message A cannot be read" in notes[0]


def test_signals_behind_a_broken_head_do_not_become_those_of_the_message_before():
    for head in ("BO_ 2 B 8 X", "B_ 2 B: 8 X", "BU_: 2 B: 8 X", "BO_ 2"):
        found, notes = read(f'BO_ 1 A: 8 X\n{SIGNAL}{head}\n SG_ T : 8|8@1+ (1,0) [0|0] "" X\n')
        assert [(message.name, signals(message)) for message in found] == [("A", ["S"])], head
        assert any("it is not known which message" in text for _, text in notes), head


def test_a_missing_semicolon_is_repaired():
    message, notes = one('BO_ 1 A: 8 X\nCM_ BO_ 1 "why"\nBA_ "GenMsgCycleTime" BO_ 1 100\nBO_TX_BU_ 1 : Y\n')
    assert (message.comment, message.cycle_s, message.senders) == ("why", 0.1, ["X", "Y"])
    assert notes == [
        f"this {keyword} is repaired: its `;` is missing" for keyword in ("CM_", "BA_", "BO_TX_BU_")
    ]


def test_quotes_inside_a_string_may_be_escaped_or_bare_and_a_backslash_may_end_it():
    for written, meant in (
        (r"say \"hi\"", 'say "hi"'),
        ('say "hi" twice', 'say "hi" twice'),
        ("C:\\", "C:\\"),
    ):
        message, notes = one(f'BO_ 1 A: 8 X\nCM_ BO_ 1 "{written}";\n{"":30}\nBO_TX_BU_ 1 : Y;\n')
        assert (message.comment, message.senders, notes) == (meant, ["X", "Y"], [])


# --- hostile texts --------------------------------------------------------------------------------


def test_a_file_names_a_bounded_number_of_multiplexer_values():
    many = "".join(f' SG_ S{i} : 24|8@1+ (1,0) [0|0] "" X\n' for i in range(40))
    values = "".join(f"SG_MUL_VAL_ 1 S{i} W {i}-{i + 50000};\n" for i in range(40))
    message, notes = one(f'BO_ 1 A: 8 X\n SG_ W M : 0|24@1+ (1,0) [0|0] "" X\n{many}{values}')
    assert len(message.signals) == 1 + 20
    assert "the file names more than 1048576 multiplexer values" in notes[-1]


def test_the_number_of_notes_is_bounded():
    _, notes = read("".join(f"BO_ {i} A{i}: 99 X\n" for i in range(2 * MAX_NOTES)))
    assert len(notes) == MAX_NOTES + 1
    assert notes[-1] == (0, f"{MAX_NOTES} more warnings are not shown")


@pytest.mark.parametrize(
    "unit",
    [
        "BO_ 1 " + " " * 50,
        'CM_ "',
        'CM_ "x" "y"\n',
        'VAL_ 1 S 0 "',
        'VAL_ 1 S 0 "a" ',
        'SG_ a : 0|8@1+ (1,0) [0|0] "" x ',
        "SG_MUL_VAL_ 1 A B 1-1, ",
        "\n",
        "//",
        '"',
        '\\"',
        'BA_ "\\\\" ',
        "NS_ :\nCM_\n",
        "BU_ a ",
        ' SG_ S : 0|8@1+ (1,0) [0|0] "" X\n',
        "BO_ 1 A: 8 X\n",
        'VAL_ 1 S 0 "a" ;\n',
        ' SG_ S M : 0|8@1+ (1,0) [0|0] "" X\n',
    ],
)
def test_the_work_is_proportional_to_the_text_whatever_it_is(unit):
    def seconds(length):
        text = "BO_ 1 A: 8 X\n" + unit * (length // len(unit))
        start = time.process_time()
        read(text)
        return time.process_time() - start

    # The best of some: others use the machine too.
    short, long = (min(seconds(length) for _ in range(4)) for length in (20_000, 200_000))
    assert long < 40 * short + 0.05


def test_random_texts_are_read_without_an_error():
    rng = random.Random(3)
    pieces = [
        "BO_ ",
        "SG_ ",
        "1",
        " ",
        "\n",
        '"',
        ";",
        ":",
        "|",
        "@1+",
        "(1,0)",
        "[0|0]",
        "A",
        "VAL_ ",
        "CM_ ",
        "\\",
        "m1",
        "M",
        ",",
    ]
    for _ in range(300):
        read("".join(rng.choices(pieces, k=60)))
