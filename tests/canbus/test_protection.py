"""Checksums and alive counters of messages."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.examples import examples

from fieldbus.canbus.e2e import CRC_MODELS
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.protection import E2E, Checksum, Counter, Protection, Status
from fieldbus.canbus.protection_settings import ProtectedSettings

CRC = Signal("Crc", 0, 8)
ALIVE = Signal("Alive", 8, 4)
SPEED = Signal("Speed", 16, 16)


def message(*signals, length=8, frame_id=0x123, **more):
    return Message("Engine", frame_id, more.pop("is_extended", False), length, signals, **more)


ENGINE = message(CRC, ALIVE, SPEED)


def checked(algorithm, *, signal=CRC, length=8, counter=None, frame_id=0x123, is_extended=False, **options):
    return Protection(
        message(signal, ALIVE, length=length, frame_id=frame_id, is_extended=is_extended),
        Checksum(signal.name, algorithm, **options),
        counter,
    )


# ---------------------------------------------------------------- checksums


@pytest.mark.parametrize(
    ("algorithm", "data", "checksum"),
    [
        # Published check values, of the digits 1 to 9.
        ("crc8-j1850", "313233343536373839", 0x4B),
        ("crc8-autosar", "313233343536373839", 0xDF),
        ("Crc8Maxim", "313233343536373839", 0xA1),
        # By hand.
        ("xor", "0102040810204080ff", 0x00),
        ("xor", "010204", 0x07),
        ("sum", "fffe05", 0x02),
        ("sum-inverted", "fffe05", 0xFE),
    ],
)
def test_a_checksum_is_that_of_the_bytes_behind_it(algorithm, data, checksum):
    data = bytes.fromhex(data)
    protection = checked(algorithm, length=1 + len(data))
    assert protection.protect(b"\0" + data) == bytes((checksum,)) + data
    assert protection.check(bytes((checksum,)) + data) is None
    assert protection.check(bytes((checksum ^ 1,)) + data) == "bad checksum"


@pytest.mark.parametrize(
    ("algorithm", "signal", "expected"),
    [
        ("crc16-ccitt", Signal("Crc", 0, 16), "b129"),
        ("crc16-ccitt", Signal("Crc", 7, 16, is_little_endian=False), "29b1"),
        ("crc32", Signal("Crc", 0, 32), "2639f4cb"),
        ("crc32-autosar", Signal("Crc", 7, 32, is_little_endian=False), "1697d06a"),
        ("sum", Signal("Crc", 7, 16, is_little_endian=False), "01dd"),
    ],
)
def test_a_wide_checksum_has_the_byte_order_of_its_signal(algorithm, signal, expected):
    expected = bytes.fromhex(expected)
    protection = checked(algorithm, signal=signal, length=len(expected) + 9)
    assert protection.protect(bytes(len(expected)) + b"123456789") == expected + b"123456789"


def test_its_own_byte_in_the_middle_is_left_out():
    protection = checked("sum", signal=Signal("Crc", 16, 8), length=5)
    assert protection.protect(bytes((1, 2, 0xEE, 4, 8))) == bytes((1, 2, 15, 4, 8))


@pytest.mark.parametrize(
    ("options", "checksum"),
    [
        ({}, 1 + 2 + 4 + 8),
        ({"over": (0, 2)}, 1 + 2),
        ({"over": (3, 4)}, 4 + 8),
        ({"initial": 0x20}, 15 + 0x20),
        ({"xor_out": 0xFF}, 0xFF - 15),
        ({"prefix": b"\x10", "suffix": b"\x20\x40"}, 15 + 0x70),
        ({"includes_id": True}, 15 + 0x01 + 0x23),
    ],
)
def test_what_goes_into_a_checksum_can_be_told(options, checksum):
    protection = checked("sum", signal=Signal("Crc", 16, 8), length=5, **options)
    assert protection.protect(bytes((1, 2, 0, 4, 8)))[2] == checksum


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        # Battery frames of a car, with a CRC that has no name: polynomial 0x85 over bytes 0 to 6.
        ("0020C01000000066", None),
        ("0220C010000001ED", None),
        ("0420C010000002F5", None),
        ("0620C0100000037F", "bad checksum"),
    ],
)
def test_a_crc_of_ones_own_polynomial(frame, fault):
    settings = ProtectedSettings.model_validate({"checksum": {"signal": "Crc", "polynomial": 0x85}})
    layout = message(Signal("Current", 7, 11, is_little_endian=False), Signal("Crc", 56, 8))
    assert settings.guard(layout)().check(bytes.fromhex(frame)) == fault


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, model in CRC_MODELS.items()
        if model.width() in (8, 16, 24, 32) and model.reflect_input() is model.reflect_output()
    ],
)
def test_a_polynomial_gives_what_its_named_crc_gives(name):
    model = CRC_MODELS[name]
    crc = Signal("Crc", 0, model.width())
    own = checked(
        "", signal=crc, length=13, polynomial=model.poly(), initial=model.initvalue(),
        xor_out=model.xor_output(), is_reflected=model.reflect_input(),
    )  # fmt: skip
    named = checked(name, signal=crc, length=13)
    data = bytes(4) + b"123456789"
    assert own.protect(data) == named.protect(data)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, "has an `algorithm`, or a CRC's `polynomial`"),
        ({"algorithm": "xor", "polynomial": 7}, "one of the two"),
        ({"algorithm": "xor", "reflected": True}, "goes with `polynomial`"),
        ({"polynomial": 0}, "greater than 0"),
    ],
)
def test_a_polynomial_stands_in_the_place_of_an_algorithm(keys, reason):
    with pytest.raises(ValidationError, match=reason):
        ProtectedSettings.model_validate({"checksum": {"signal": "Crc", **keys}})


def test_a_polynomial_with_its_highest_bit_is_refused():
    with pytest.raises(ValueError, match="0x185 does not fit 8 bits; its highest bit is not written"):
        checked("", polynomial=0x185)


def test_the_identifier_goes_in_low_byte_first_between_data_and_suffix():
    data = bytes(range(1, 8))
    crc = checked("Crc8").protect(b"\0" + data + b"\x23\x01\xaa")
    by_hand = checked("Crc8", length=11).protect(b"\0" + data + b"\x23\x01\xaa")
    assert checked("Crc8", includes_id=True, suffix=b"\xaa").protect(b"\0" + data)[0] == by_hand[0] != crc[0]
    by_hand = checked("Crc8", length=12).protect(b"\0" + data + b"\x78\x56\x34\x12")
    long = checked("Crc8", includes_id=True, frame_id=0x12345678, is_extended=True)
    assert long.protect(b"\0" + data)[0] == by_hand[0]


def test_toyota_adds_length_identifier_and_data():
    protection = checked("toyota", signal=Signal("Crc", 63, 8, is_little_endian=False), frame_id=0x2E4)
    # 8 + 0x02 + 0xE4 + 0x90 + 0x01 = 0x17F
    assert protection.protect(bytes.fromhex("90010000000000ff")) == bytes.fromhex("900100000000007f")


@pytest.mark.parametrize(
    ("frame_id", "is_extended", "last"),
    [
        # 8 - (3 + 3 + 13) - (4 + 1 + 2 + 5) = -23 = 9, modulo 16
        (0x33D, False, 0x59),
        # 8 + 3 - (1 + 8 + 13 + 10) - 12 = -33 = 15
        (0x18DA0000, True, 0x5F),
    ],
)
def test_honda_subtracts_nibbles_and_leaves_the_other_half_of_its_byte(frame_id, is_extended, last):
    signal = Signal("Crc", 35, 4, is_little_endian=False)
    protection = checked("honda", signal=signal, length=5, frame_id=frame_id, is_extended=is_extended)
    assert protection.protect(bytes.fromhex("4102000050")) == bytes((0x41, 2, 0, 0, last))


def test_hyundai_canfd_is_the_crc_behind_it_and_of_the_identifier():
    signal = Signal("Crc", 0, 16)
    data = bytes(range(2, 16))
    crc = checked("Crc16Xmodem", signal=signal, length=18).protect(b"\0\0" + data + b"\x23\x01")[:2]
    expected = int.from_bytes(crc, "little") ^ 0x041D
    protected = checked("hyundai-canfd", signal=signal, length=16).protect(b"\0\0" + data)
    assert protected == expected.to_bytes(2, "little") + data


ALGORITHMS = {
    "xor": 8, "sum": 8, "sum-inverted": 8, "crc8-j1850": 8, "crc8-autosar": 8, "Crc8Maxim": 8,
    "crc16-ccitt": 16, "Crc16Modbus": 16, "crc32": 32, "crc32-autosar": 32, "Crc4Interlaken": 4,
    "honda": 4, "toyota": 8, "hyundai-canfd": 16,
}  # fmt: skip


@st.composite
def protections(draw):
    algorithm = draw(st.sampled_from(sorted(ALGORITHMS)))
    bits = ALGORITHMS[algorithm]
    length = draw(st.sampled_from([8, 16, 32]))
    is_little = draw(st.booleans())
    place = draw(st.integers(0, length * 8 // bits - 1)) * bits
    if not is_little:  # the same place, by its most significant bit
        place = place // 8 * 8 + 7 - place % 8
    signal = Signal("Crc", place, bits, is_little)
    own = set(range(place // 8, signal.bytes_needed))
    counter = Signal("Alive", 8 * next(index for index in range(length) if index not in own), 4)
    both = message(signal, counter, length=length, is_fd=length > 8)
    return Protection(both, Checksum("Crc", algorithm), Counter("Alive"))


@settings(max_examples=examples(300), deadline=None)
@given(protections(), st.binary(min_size=32, max_size=32))
def test_what_was_protected_is_believed(protection, data):
    for _ in range(40):
        assert protection.check(protection.protect(data)) is None
    assert not any(protection.counters.values())


@settings(max_examples=examples(500), deadline=None)
@given(protections(), st.binary(min_size=32, max_size=32), st.data())
def test_a_single_flipped_bit_is_found(protection, data, draw):
    frame = bytearray(protection.protect(data))
    bit = draw.draw(st.integers(0, protection._seal.length * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    assert protection.check(bytes(frame)) == "bad checksum"


@settings(max_examples=examples(300), deadline=None)
@given(protections(), st.binary(max_size=70))
def test_no_bytes_raise(protection, data):
    assert protection.check(data) in {None, "bad checksum", "missing in a short frame"}


def test_a_short_frame_says_so_and_bytes_behind_the_message_are_nobodys():
    protection = checked("crc8-j1850")
    frame = protection.protect(bytes(range(8)))
    assert protection.check(frame[:7]) == "missing in a short frame"
    assert protection.check(frame + b"\x55" * 4) is None


def test_of_bytes_that_are_not_under_the_checksum_the_frame_may_lack():
    protection = checked("crc8-j1850", over=(0, 3))
    assert protection.check(protection.protect(bytes(8))[:4]) is None


# ---------------------------------------------------------------- counters


def frames(*counters):
    return [bytes((0, counter, 0, 0, 0, 0, 0, 0)) for counter in counters]


def reasons(protection, *counters):
    return [protection.check(frame) for frame in frames(*counters)]


def test_a_counter_that_counts_is_believed_over_its_end():
    assert reasons(Protection(ENGINE, counter=Counter("Alive")), 14, 15, 0, 1) == [None] * 4
    assert reasons(Protection(ENGINE, counter=Counter("Alive", modulo=15)), 13, 14, 0, 1) == [None] * 4


def test_the_first_repetition_is_a_stuck_counter_until_it_moves():
    protection = Protection(ENGINE, counter=Counter("Alive"))
    stuck = "stuck counter"
    assert reasons(protection, 3, 3, 3, 4, 4, 5) == [None, stuck, stuck, None, stuck, None]
    assert protection.counters["repeated"] == 3


def test_repetitions_may_be_allowed():
    protection = Protection(ENGINE, counter=Counter("Alive", stuck_after=4))
    assert reasons(protection, 3, 3, 3, 3, 3, 4, 4) == [None] * 3 + ["stuck counter"] * 2 + [None] * 2
    assert protection.judge(frames(4)[0]) is Status.REPEATED


@given(st.integers(0, 15), st.integers(1, 15), st.binary(min_size=6, max_size=6))
def test_every_repetition_is_found_whatever_else_is_in_the_frame(counter, repetitions, data):
    protection = checked("crc8-j1850", counter=Counter("Alive"))
    first = protection.protect(bytes(2) + data)
    assert protection.check(first) is None
    for index in range(repetitions):
        protection._next = 0
        again = protection.protect(bytes(2) + bytes((index,)) + data[1:])
        assert protection.check(again) == "stuck counter"


def test_lost_frames_are_counted_and_the_frame_is_a_value():
    protection = Protection(ENGINE, counter=Counter("Alive", max_lost=2))
    assert reasons(protection, 1, 4, 15, 0) == [None] * 4
    assert protection.counters["lost"] == 2 + 10
    assert protection.counters["jumps"] == 1
    assert [protection.judge(frame) for frame in frames(3, 7)] == [Status.OK, Status.WRONG_SEQUENCE]


@pytest.mark.parametrize(
    ("step", "modulo", "then", "lost"),
    [(2, 16, 4, 1), (-1, 16, 13, 2), (3, 16, 1, 10), (5, 15, 10, 1), (7, 15, 6, 2)],
)
def test_lost_frames_are_those_that_the_step_would_have_made(step, modulo, then, lost):
    protection = Protection(ENGINE, counter=Counter("Alive", step=step, modulo=modulo))
    assert reasons(protection, 0, then) == [None, None]
    assert protection.counters["lost"] == lost


def test_what_counting_cannot_reach_is_a_jump():
    protection = Protection(ENGINE, counter=Counter("Alive", step=2))
    assert reasons(protection, 0, 3) == [None, None]
    assert (protection.counters["lost"], protection.counters["jumps"]) == (0, 1)


def test_a_counter_beyond_its_modulo_is_none():
    protection = Protection(ENGINE, counter=Counter("Alive", modulo=15))
    assert reasons(protection, 14, 15, 0) == [None, "wrong counter", None]


def test_a_wrong_checksum_leaves_the_counter_as_it_was():
    protection = checked("crc8-j1850", counter=Counter("Alive"))
    first, second, third = (protection.protect(bytes(8)) for _ in range(3))
    assert protection.check(first) is None
    assert protection.check(bytes((second[0] ^ 1,)) + second[1:]) == "bad checksum"
    assert protection.check(second) is None
    assert protection.check(third) is None
    assert protection.counters["lost"] == 0


def test_after_a_reset_any_counter_is_the_first_and_what_we_send_counts_on():
    protection = checked("crc8-j1850", counter=Counter("Alive"))
    first = protection.protect(bytes(8))
    assert protection.check(first) is None
    protection.reset()
    assert protection.check(first) is None
    assert protection.protect(bytes(8))[1] == 1


# ---------------------------------------------------------------- sending


@pytest.mark.parametrize(
    ("counter", "period"),
    [
        (Counter("Alive"), 16),
        (Counter("Alive", modulo=15), 15),
        (Counter("Alive", step=4), 4),
        (Counter("Alive", step=-1), 16),
        (None, 1),
    ],
)
def test_a_sequence_is_a_turn_of_the_counter_and_goes_round(counter, period):
    sender, receiver = (checked("crc8-j1850", counter=counter) for _ in range(2))
    assert sender.period == period
    sender.protect(bytes(8))
    turn = sender.sequence(bytes(8))
    assert len(turn) == period
    assert [receiver.check(frame) for frame in turn * 2] == [None] * 2 * period
    assert receiver.counters["lost"] == 0
    # It begins where the last frame ended, and so do new data, so that they replace it frame by frame.
    assert turn[0] == sender.sequence(bytes(8))[0] == sender.protect(bytes(8))
    assert [frame[1] for frame in turn[1:] + turn[:1]] == [
        frame[1] for frame in sender.sequence(b"\7" * 8)
    ] or (counter is None)


def test_a_counter_that_is_too_long_for_a_sequence_is_protected_frame_by_frame():
    long = message(Signal("Count", 0, 16))
    protection = Protection(long, counter=Counter("Count"))
    assert protection.period is None
    with pytest.raises(ValueError, match="counter too long for Engine: 65536 frames"):
        protection.sequence(bytes(8))
    assert [protection.protect(bytes(8))[:2] for _ in range(2)] == [b"\0\0", b"\1\0"]
    assert Protection(long, counter=Counter("Count", modulo=256)).period == 256


def test_a_frame_that_is_too_short_is_not_protected():
    with pytest.raises(ValueError, match="8 are protected"):
        checked("crc8-j1850").protect(bytes(7))


def test_signals_that_protect_belong_to_the_protection():
    whole, apart = Signal("Raw", 0, 64), Signal("Door", 12, 1)
    both = message(CRC, ALIVE, SPEED, whole, apart)
    protection = Protection(both, Checksum("Crc", "xor"), Counter("Alive"))
    assert protection.owned == {"Crc", "Alive", "Raw"}
    assert Protection(both, counter=Counter("Alive")).owned == {"Alive", "Raw"}
    assert Protection(both, e2e=E2E("5", 0x1234)).owned == {"Crc", "Alive", "Raw", "Door", "Speed"}
    assert Protection(both, e2e=E2E("1", 0x1234)).owned == {"Crc", "Alive", "Raw"}
    assert Protection(both, e2e=E2E("11", 0x123, mode="nibble")).owned == {"Crc", "Alive", "Raw", "Door"}


# ---------------------------------------------------------------- end to end


@pytest.mark.parametrize("profile", ["1", "2", "4", "5", "6", "7", "11"])
def test_end_to_end_finds_errors_repetitions_and_jumps(profile):
    ids = {"data_id_list": bytes(range(16))} if profile == "2" else {"data_id": 0x123}
    protection = Protection(message(length=24), e2e=E2E(profile, max_delta=2, **ids))
    sent = [protection.protect(bytes(range(24))) for _ in range(9)]
    assert [protection.judge(sent[index]) for index in (0, 1, 3)] == [Status.OK] * 3
    assert protection.check(sent[3]) == "stuck counter"
    assert protection.judge(sent[8]) is Status.WRONG_SEQUENCE
    assert protection.check(sent[0]) == "wrong counter"
    assert protection.check(sent[1]) is None
    assert protection.check(sent[2][:-1] + b"\xff") == "bad checksum"
    assert protection.check(sent[2][:23]) == "missing in a short frame"
    other = {"data_id_list": bytes(16)} if profile == "2" else {"data_id": 0x124}
    stranger = Protection(message(length=24), e2e=E2E(profile, **other))
    assert stranger.check(sent[1]) == "bad checksum"


def test_without_a_largest_delta_lost_frames_are_only_counted():
    protection = Protection(message(), e2e=E2E("1", 0x123))
    sent = [protection.protect(bytes(8)) for _ in range(9)]
    assert [protection.check(sent[index]) for index in (0, 8)] == [None, None]
    assert protection.counters["lost"] == 7
    assert protection.period == 15
    assert Protection(message(length=12), e2e=E2E("4", 1)).period is None


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"checksum": {"signal": "Nix", "algorithm": "xor"}}, "no signal Nix"),
        (
            {"checksum": {"signal": "Speed", "algorithm": "xor"}},
            "Engine.Speed has 16 bits, a checksum by xor has 8",
        ),
        ({"checksum": {"signal": "Odd", "algorithm": "xor"}}, "does not begin at a byte"),
        ({"checksum": {"signal": "Half", "algorithm": "Crc4Interlaken"}}, "half of one"),
        ({"checksum": {"signal": "Crc", "algorithm": "xor", "over": "0-8"}}, "no bytes 0-8"),
        ({"checksum": {"signal": "Crc", "algorithm": "xor", "initial": 256}}, "at most 8 bits"),
        ({"checksum": {"signal": "Crc", "algorithm": "toyota", "initial": 1}}, "nothing but `signal`"),
        ({"checksum": {"signal": "Speed", "algorithm": "Crc12Umts"}}, "has 12"),
        ({"checksum": {"signal": "Branch", "algorithm": "xor"}}, "not in every frame"),
        ({"checksum": {"signal": "Far", "algorithm": "xor"}}, "beyond the message's 8 bytes"),
        ({"checksum": {"signal": "Crc", "algorithm": "xor"}, "counter": {"signal": "Raw"}}, "in common"),
        ({"counter": {"signal": "Alive", "modulo": 17}}, "cannot count modulo 17"),
        ({"counter": {"signal": "Alive", "step": 16}}, "does not move by 16"),
        ({"counter": {"signal": "Float"}}, "not an integer"),
        ({"e2e": {"profile": "4", "data_id": 1}}, "Engine: the header of 12 bytes does not fit 8 bytes"),
        ({"e2e": {"profile": "1", "data_id": 1, "length": 9}}, "Engine has 8 bytes, not 9"),
        ({"e2e": {"profile": "1", "data_id": 0x10000}}, "does not fit 16 bits"),
    ],
)
def test_what_a_message_does_not_allow_is_said_when_it_is_loaded(settings, says):
    of = message(
        CRC, ALIVE, SPEED, Signal("Odd", 33, 8), Signal("Half", 34, 4), Signal("Far", 64, 8),
        Signal("Branch", 40, 8, condition=(("Crc", frozenset({1})),)), Signal("Raw", 0, 64),
        Signal("Float", 32, 32, is_float=True),
    )  # fmt: skip
    with pytest.raises(ValueError, match="Engine") as caught:
        ProtectedSettings(**settings).guard(of)
    assert says in str(caught.value)


@pytest.mark.parametrize("algorithm", ["toyota", "honda", "sum"])
def test_an_identifier_that_varies_cannot_go_into_a_checksum(algorithm):
    signal = Signal("Crc", 0, 4 if algorithm == "honda" else 8)
    of = message(signal, frame_id=0x18FEEE00, is_extended=True, is_j1939=True)
    with pytest.raises(ValueError, match="always the same"):
        Protection(of, Checksum("Crc", algorithm, includes_id=algorithm == "sum"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"checksum": {"signal": "Crc", "algorithm": "md5"}}, "there is no checksum 'md5'"),
        ({"checksum": {"signal": "Crc", "algorithm": "xor", "over": "6-0"}}, "ends before it begins"),
        ({"checksum": {"signal": "Crc", "algorithm": "xor", "over": "0..6"}}, "such as 0-6"),
        ({"checksum": {"signal": "Crc", "algorithm": "xor", "prefix": "0x1"}}, "not hexadecimal"),
        ({"checksum": {"signal": "Crc", "algorithm": "xor"}, "counter": {"signal": "Crc"}}, "both"),
        ({"counter": {"signal": "Alive", "step": 0}}, "does not count"),
        ({"counter": {"signal": "Alive", "stuck_after": 1}}, "greater than or equal to 2"),
        ({"e2e": {"profile": "3", "data_id": 1}}, "there is no profile '3'"),
        ({"e2e": {"profile": "1"}}, "has a `data_id`"),
        ({"e2e": {"profile": "2", "data_id": 1}}, "`data_id_list` of 16 bytes"),
        ({"e2e": {"profile": "2", "data_id_list": "0102"}}, "`data_id_list` has 16 bytes"),
        ({"e2e": {"profile": "5", "data_id": 1, "variant": "C"}}, "in no such way"),
        ({"e2e": {"profile": "11", "data_id": 1, "variant": "B"}}, "in no such way"),
        ({"e2e": {"profile": "1", "data_id": 0x1000, "variant": "C"}}, "12 bits"),
        ({"e2e": {"profile": "1", "data_id": 1, "variant": "A", "data_id_mode": "low"}}, "one of them"),
        ({"e2e": {"profile": "1", "data_id": 1}, "counter": {"signal": "Alive"}}, "write it alone"),
    ],
)
def test_what_no_message_allows_is_said_without_one(settings, says):
    with pytest.raises(ValidationError) as caught:
        ProtectedSettings(**settings)
    assert says in str(caught.value)


def test_settings_make_as_many_protections_as_needed_each_with_its_own_counter():
    settings = ProtectedSettings(
        checksum={"signal": "Crc", "algorithm": "crc8-j1850"}, counter={"signal": "Alive"}
    )
    assert settings.is_protected
    make = settings.guard(ENGINE)
    one, other = make(), make()
    assert one.protect(bytes(8)) == other.protect(bytes(8))
    assert not ProtectedSettings().is_protected


def test_settings_are_handed_on_whole():
    found = ProtectedSettings(
        checksum={
            "signal": "Crc", "algorithm": "sum", "initial": 1, "xor_out": 2, "over": "0-6",
            "prefix": "12 34", "suffix": "56", "include_id": True,
        },
        counter={"signal": "Alive", "step": 2, "modulo": 14, "max_lost": 3, "stuck_after": 4},
    )  # fmt: skip
    assert found.checksum.plan() == Checksum("Crc", "sum", 1, 2, (0, 6), b"\x12\x34", b"\x56", True)
    assert found.counter.plan() == Counter("Alive", 2, 14, 3, 4)
    e2e = ProtectedSettings(
        e2e={"profile": "1", "data_id": 0x123, "variant": "C", "offset": 1, "length": 7, "max_delta": 3}
    ).e2e
    assert e2e.plan() == E2E("1", 0x123, b"", "nibble", 1, 7, 3, 2)
