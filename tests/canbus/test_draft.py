"""What DBC texts say, put together to messages that can be used."""

import pytest
from dbc_reading import SIGNAL, conditions, one, read, signals

from fieldbus.canbus.database.draft import MAX_IDS_PER_SIGNAL, clip, safe_name


def test_what_is_said_of_messages_and_signals_arrives_there():
    message, notes = one("""BO_ 2147484672 A: 8 ECU
 SG_ S : 7|16@0- (0.5,-10) [-10|100] "km/h" X
 SG_ F : 16|32@1- (1,0) [0|0] "" X
BO_TX_BU_ 2147484672 : ECU,Other;
CM_ BO_ 2147484672 "message";
CM_ SG_ 2147484672 S "signal";
BA_DEF_DEF_ "GenMsgCycleTime" 500;
BA_ "GenMsgCycleTime" BO_ 2147484672 20;
BA_ "GenMsgTimeoutTime" BO_ 2147484672 200;
BA_ "GenSigStartValue" SG_ 2147484672 S 7;
BA_ "GenSigTimeoutTime" SG_ 2147484672 S 0;
BA_ "GenSigTimeoutTime_ECU1" SG_ 2147484672 S 300;
BA_ "GenSigTimeoutTime_ECU2" SG_ 2147484672 S 150;
VAL_TABLE_ Table 0 "a" 1 "b" ;
VAL_ 2147484672 S -1 "error" 3 "three" ;
VAL_ 2147484672 F Table ;
SIG_VALTYPE_ 2147484672 F : 1;
""")
    assert (message.frame_id, message.is_extended, message.length, message.comment) == (
        1024,
        True,
        8,
        "message",
    )
    assert (message.cycle_s, message.timeout_s, message.senders) == (0.02, 0.2, ["ECU", "Other"])
    first, second = message.signals
    assert (first.start, first.length, first.is_little_endian, first.is_signed) == (7, 16, False, True)
    assert (first.scale, first.offset, first.minimum, first.maximum, first.unit) == (
        0.5,
        -10,
        -10,
        100,
        "km/h",
    )
    assert (first.comment, first.raw_initial, first.timeout_s) == ("signal", 7, 0.15)
    assert first.labels == {-1: "error", 3: "three"}
    assert (second.is_float, second.labels, second.minimum) == (True, {0: "a", 1: "b"}, None)
    assert notes == []


def test_a_timeout_of_a_relation_counts_and_a_cycle_of_zero_is_none():
    message, _ = one(
        "BO_ 1 A: 8 X\n" + SIGNAL + 'BA_REL_ "GenSigTimeoutTime" BU_SG_REL_ Y SG_ 1 S 80;\n'
        'BA_DEF_DEF_ "GenMsgCycleTime" 100;\nBA_ "GenMsgCycleTime" BO_ 1 0;\n'
    )
    assert (message.signals[0].timeout_s, message.cycle_s) == (0.08, None)


@pytest.mark.parametrize(
    ("attributes", "is_j1939", "is_fd"),
    [
        ("", False, False),
        ('BA_ "ProtocolType" "J1939";', True, False),
        ('BA_DEF_DEF_ "ProtocolType" "J1939";', True, False),
        ('BA_ "BusType" "j1939";', True, False),
        ('BA_ "VFrameFormat" BO_ 2147484672 3;', True, False),
        ('BA_DEF_DEF_ "VFrameFormat" "J1939PG";', True, False),
        ('BA_ "ProtocolType" "J1939";\nBA_ "VFrameFormat" BO_ 2147484672 1;', False, False),
        ('BA_ "VFrameFormat" BO_ 2147484672 15;', False, True),
        (
            'BA_DEF_ BO_ "VFrameFormat" ENUM "J1939PG","StandardCAN_FD";\nBA_ "VFrameFormat" BO_ 2147484672 1;',
            False,
            True,
        ),
    ],
)
def test_the_kind_of_frame_is_found(attributes, is_j1939, is_fd):
    message, notes = one(f"BO_ 2147484672 A: 8 X\n{SIGNAL}{attributes}\n")
    assert (message.is_j1939, message.is_fd, notes) == (is_j1939, is_fd, [])


def test_only_messages_of_j1939_may_be_long():
    text = "BO_ 2147484672 A: 1785 X\nBO_ 2147484673 B: 1786 X\nBO_ 3 C: 65 X\nBO_ 4 D: 64 X\n"
    found, notes = read(text + 'BA_ "ProtocolType" "J1939";\n')
    assert [(message.name, message.is_fd) for message in found] == [("A", False), ("D", True)]
    assert notes == [
        (2, "message B is left out: it has 1786 bytes, 1785 at most"),
        (3, "message C is left out: it has 65 bytes, 64 at most"),
    ]


def test_ids_without_the_bit_for_extended_ones_are_repaired_and_impossible_ones_left_out():
    found, notes = read("BO_ 2048 A: 8 X\nBO_ 1075054137 B: 8 X\nBO_ 0x12 C: 8 X\nBO_ 3221225473 D: 8 X\n")
    assert [(message.name, message.frame_id, message.is_extended) for message in found] == [("A", 2048, True)]
    assert [line for line, _ in notes] == [1, 2, 3, 4]
    assert notes[0][1] == "message A is repaired: its id 0x800 is taken as an extended one"


def test_names_become_safe_and_stay_apart():
    found, notes = read(
        'BO_ 1 1A: 8 X\n SG_ a.b : 0|8@1+ (1,0) [0|0] "" X\n SG_ a_b : 8|8@1+ (1,0) [0|0] "" X\n'
        ' SG_ My Signal : 16|8@1+ (1,0) [0|0] "" X\n'
        "BO_ 2 B: 8 X\nBO_ 500 B: 8 X\nBO_ 3 B_1F4: 8 X\n"
    )
    assert [message.name for message in found] == ["_1A", "B", "B_1F4_2", "B_1F4"]
    assert signals(found[0]) == ["a_b", "a_b_2", "My_Signal"]
    assert "message B is repaired: it is called B_1F4_2" in [text for _, text in notes]
    assert len(notes) == 5


def test_signals_of_one_name_are_kept_and_both_have_the_labels():
    message, notes = one("BO_ 1 A: 8 X\n" + SIGNAL + SIGNAL.replace("0|8", "8|8") + 'VAL_ 1 S 0 "off" ;\n')
    assert [(signal.name, signal.start, signal.labels) for signal in message.signals] == [
        ("S", 0, {0: "off"}),
        ("S_2", 8, {0: "off"}),
    ]
    assert notes == ["message A: signal S is repaired: it is called S_2"]


def test_long_names_are_taken_unless_they_are_anothers():
    long = 'BA_ "SystemSignalLongSymbol" SG_ 1 {} "{}";\n'
    message, notes = one(
        "BO_ 1 A: 8 X\n"
        ' SG_ P M : 0|8@1+ (1,0) [0|0] "" X\n SG_ Q m1 : 8|8@1+ (1,0) [0|0] "" X\n'
        ' SG_ R : 16|8@1+ (1,0) [0|0] "" X\n SG_ T : 24|8@1+ (1,0) [0|0] "" X\n SG_ U : 32|8@1+ (1,0) [0|0] "" X\n'
        + long.format("P", "Page_of_all") + long.format("R", "Twice") + long.format("T", "Twice") + long.format("U", "Q")
        + 'BA_ "SystemMessageLongSymbol" BO_ 1 "A_long_name";\n'
    )  # fmt: skip
    assert (message.name, signals(message)) == ("A_long_name", ["Page_of_all", "Q", "R", "T", "U"])
    assert conditions(message)["Q"] == [("Page_of_all", ((1, 1),))]
    assert len(notes) == 3
    assert (
        "message A_long_name: signal R keeps its short name: the long one, Twice, is another's too" in notes
    )


def test_two_messages_of_one_id_are_kept_and_said():
    found, notes = read("BO_ 1 A: 8 X\nBO_ 1 B: 8 X\n")
    assert [message.name for message in found] == ["A", "B"]
    assert notes == [(2, "messages A and B have one id, 0x1: a frame is decoded as both")]


def test_what_is_about_nothing_is_dropped_and_said_once():
    found, notes = read(
        'BO_ 1 A: 8 X\nVAL_ 1 S 0 "x" ;\nVAL_ 9 S 0 "x" ;\nCM_ BO_ 9 "x";\nSIG_VALTYPE_ 1 S : 1;\nCM_ BU_ X "x";\n'
        'BO_ 3221225472 VECTOR__INDEPENDENT_SIG_MSG: 0 X\n SG_ I : 0|8@1+ (1,0) [0|0] "" X\nCM_ SG_ 3221225472 I "x";\n'
    )
    assert [message.name for message in found] == ["A"]
    dropped = "about a message or signal that is not in the file: dropped"
    assert notes == [
        (2, f"2 statements VAL_ are {dropped}"),
        (4, f"one CM_ is {dropped}"),
        (5, f"one SIG_VALTYPE_ is {dropped}"),
        (7, "one signal that is in no message (VECTOR__INDEPENDENT_SIG_MSG): left out"),
    ]


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "extra", "words"),
    [
        ("0|65@1+ (1,0) [0|0]", "", "it has 65 bits, which must be 1..64"),
        ("0|0@1+ (1,0) [0|0]", "", "it has 0 bits"),
        ("0|1000000@1+ (1,0) [0|0]", "", "it has 1000000 bits"),
        ("0|x@1+ (1,0) [0|0]", "", "its start or its length is no whole number"),
        ("64|1@1+ (1,0) [0|0]", "", "it begins at bit 64 of a message of 8 bytes"),
        ("60|8@1+ (1,0) [0|0]", "", "it ends behind the message's 8 bytes"),
        ("63|9@0+ (1,0) [0|0]", "", "it ends behind the message's 8 bytes"),
        ("0|8@1+ (0,0) [0|0]", "", "its scale is 0"),
        ("0|8@1+ (nan,0) [0|0]", "", "its scale or offset is no finite number"),
        ("0|8@1+ (1,1e999) [0|0]", "", "its scale or offset is no finite number"),
        ("0|12@1+ (1,0) [0|0]", "SIG_VALTYPE_ 1 S : 1;", "it is a float of 12 bits"),
    ],
)
def test_a_signal_whose_value_could_be_wrong_is_left_out(layout, extra, words):
    message, notes = one(f'BO_ 1 A: 8 X\n SG_ S : {layout} "" X\n SG_ T : 0|8@1+ (1,0) [0|0] "" X\n{extra}\n')
    assert signals(message) == ["T"]
    assert notes[0].startswith("message A: signal S is left out: ")
    assert words in notes[0]


def test_a_range_that_is_none_is_dropped():
    for written in ("[5|-5]", "[nan|5]", "[0|1e999]"):
        message, notes = one(f'BO_ 1 A: 8 X\n SG_ S : 0|8@1+ (1,0) {written} "" X\n')
        assert (message.signals[0].minimum, message.signals[0].maximum) == (None, None)
        assert "signal S is repaired: its range" in notes[0]


def test_overlapping_signals_are_kept_and_said_but_not_in_different_branches():
    text = (
        'BO_ 1 A: 8 X\n SG_ M M : 0|8@1+ (1,0) [0|0] "" X\n SG_ P m0 : 8|8@1+ (1,0) [0|0] "" X\n'
        ' SG_ Q m1 : 8|8@1+ (1,0) [0|0] "" X\n'
    )
    assert one(text)[1] == []
    message, notes = one(
        text + ' SG_ R m1 : 23|16@0+ (1,0) [0|0] "" X\n SG_ T m1 : 31|1@0+ (1,0) [0|0] "" X\n'
    )
    assert len(message.signals) == 5
    assert notes == ["message A: signal T shares bits with one before it"]


# --- multiplexers ---------------------------------------------------------------------------------

SELECTORS = (
    'BO_ 1 A: 8 X\n SG_ M M : 0|4@1+ (0.5,3) [0|0] "" X\n SG_ N m2M : 4|4@1+ (1,0) [0|0] "" X\n'
    ' SG_ P m3 : 8|8@1+ (1,0) [0|0] "" X\n'
)


def test_nested_and_extended_multiplexing_is_resolved():
    message, notes = one(SELECTORS + "SG_MUL_VAL_ 1 N M 2-2, 5-6;\nSG_MUL_VAL_ 1 P N 3-3, 8-9, 10-20;\n")
    assert conditions(message) == {
        "M": [],
        "N": [("M", ((2, 2), (5, 6)))],
        "P": [("M", ((2, 2), (5, 6))), ("N", ((3, 3), (8, 15)))],
    }
    assert notes == []


def test_a_marker_without_a_value_is_a_multiplexers_and_said():
    text = f"BO_ 1 A: 8 X\n{SIGNAL.replace('S :', 'P m :')}{SIGNAL.replace('S :', 'S m1 :').replace('0|8', '8|8')}"
    message, notes = one(text)
    assert conditions(message) == {"P": [], "S": [("P", ((1, 1),))]}
    assert notes == ["message A: signal P is repaired: its m is taken as M"]


def test_several_independent_multiplexers_are_resolved():
    message, notes = one(
        SELECTORS.replace("m2M", "M") + ' SG_ Q m1 : 16|8@1+ (1,0) [0|0] "" X\n'
        "SG_MUL_VAL_ 1 P M 3-3;\nSG_MUL_VAL_ 1 Q N 1-1;\n"
    )
    assert conditions(message) == {"M": [], "N": [], "P": [("M", ((3, 3),))], "Q": [("N", ((1, 1),))]}
    assert notes == []


def test_a_signal_whose_multiplexer_is_unclear_is_left_out():
    message, notes = one(SELECTORS)
    assert conditions(message) == {"M": [], "N": [("M", ((2, 2),))]}
    assert (
        "signal P is left out: it is multiplexed, but its file does not say by which multiplexer" in notes[0]
    )


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        ("SG_MUL_VAL_ 1 P Nothing 1-1;", "its multiplexer Nothing is not in the message"),
        ("SG_MUL_VAL_ 1 P P 1-1;", "it selects itself"),
        ("SG_MUL_VAL_ 1 P M 16-99;", "its multiplexer can never have the value that selects it"),
        (
            "SG_MUL_VAL_ 1 P W 0-1000000;",
            f"1000001 multiplexer values select it, {MAX_IDS_PER_SIGNAL} at most",
        ),
        ("SG_MUL_VAL_ 1 P W 5-4;", "its multiplexer can never have the value"),
    ],
)
def test_a_signal_that_cannot_be_selected_is_left_out(statements, words):
    text = SELECTORS.replace(" SG_ N m2M : 4|4", " SG_ W M : 16|32").replace(" m3", "")
    message, notes = one(f"{text}{statements}\n")
    assert signals(message) == ["M", "W"]
    assert words in notes[0]


def test_what_a_left_out_multiplexer_selects_is_left_out():
    message, notes = one(SELECTORS.replace("0|4@1+ (0.5", "0|4@1+ (0") + "SG_MUL_VAL_ 1 P N 3-3;\n")
    assert signals(message) == []
    assert len(notes) == 3


def test_selectors_of_each_other_are_left_out():
    message, notes = one(
        SELECTORS.replace(" M M", " M m1M")
        + "SG_MUL_VAL_ 1 M N 1-1;\nSG_MUL_VAL_ 1 N M 1-1;\nSG_MUL_VAL_ 1 P N 1-1;\n"
    )
    assert (signals(message), len(notes)) == ([], 3)


def test_ranges_are_clipped_merged_and_may_be_negative_for_a_signed_selector():
    assert clip([(5, 9), (0, 3), (4, 4), (300, 400)], 8, False) == ((0, 9),)
    assert clip([(-200, -100), (200, 300)], 8, True) == ((-128, -100), (200, 255))
    assert clip([(-5, -1)], 8, False) == ()


def test_names_are_made_safe():
    assert [safe_name(name) for name in ("Speed", "1st", "a b/c", "ÄÖ", "", "x-y", "a" * 999)] == [
        "Speed", "_1st", "a_b_c", "__", "_", "x-y", "a" * 128,
    ]  # fmt: skip
