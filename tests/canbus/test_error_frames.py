"""What error frames say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.canbus.bus import ERROR
from fieldbus.canbus.kernel.error_frames import (
    ACTIVE,
    BUS_OFF,
    PASSIVE,
    WARNING,
    ErrorFrame,
    decode_error_frame,
)


@pytest.mark.parametrize(
    ("classes", "data", "expected"),
    [
        (0x001, "", ErrorFrame(None, False, ("transmit timeout",))),
        (0x002, "00", ErrorFrame(None, False, ("arbitration lost",))),
        (0x002, "05", ErrorFrame(None, False, ("arbitration lost at bit 5",))),
        (0x004, "0000", ErrorFrame(None, False, ("controller problem",))),
        (0x004, "0001", ErrorFrame(None, False, ("controller receive overflow",))),
        (0x004, "0002", ErrorFrame(None, False, ("controller transmit overflow",))),
        (0x004, "0004", ErrorFrame(WARNING, False, ("receive errors at the warning level",))),
        (0x004, "0008", ErrorFrame(WARNING, False, ("transmit errors at the warning level",))),
        (0x004, "0010", ErrorFrame(PASSIVE, False, ("error passive by receive errors",))),
        (0x004, "0020", ErrorFrame(PASSIVE, False, ("error passive by transmit errors",))),
        (0x004, "0040", ErrorFrame(ACTIVE, False, ("error active again",))),
        (0x004, "0080", ErrorFrame(None, False, ("controller status 0x80",))),
        (0x008, "00000000", ErrorFrame(None, False, ("protocol violation",))),
        (0x008, "0000040A", ErrorFrame(None, False, ("bit stuffing error, in the data section",))),
        (0x008, "00008819", ErrorFrame(None, False, ("dominant bit could not be sent, in the acknowledge slot, while sending",))),
        (0x008, "00000311", ErrorFrame(None, False, ("single bit error and frame format error, at place 0x11",))),
        (0x010, "00000000", ErrorFrame(None, False, ("transceiver problem",))),
        (0x010, "0000000074", ErrorFrame(None, False, ("CAN high has no wire", "CAN low shorted to ground"))),
        (0x010, "0000000080", ErrorFrame(None, False, ("CAN low shorted to CAN high",))),
        (0x010, "0000000001", ErrorFrame(None, False, ("transceiver status 0x01",))),
        (0x020, "", ErrorFrame(None, False, ("no acknowledgement",))),
        (0x040, "", ErrorFrame(BUS_OFF, False, ("bus-off",))),
        (0x080, "", ErrorFrame(None, False, ("bus error",))),
        (0x100, "", ErrorFrame(ACTIVE, True, ("controller restarted",))),
        (0x200, "0000000000007F60", ErrorFrame(None, False, (), 0x7F, 0x60)),
        (0x204, "0008000000006000", ErrorFrame(WARNING, False, ("transmit errors at the warning level",), 96, 0)),
        (0x400, "", ErrorFrame(None, False, ("error class 0x400",))),
        (0x000, "", ErrorFrame(None, False, ("unspecified error",))),
    ],
)  # fmt: skip
def test_each_class_has_words(classes, data, expected):
    assert decode_error_frame(ERROR | classes, bytes.fromhex(data)) == expected


def test_counters_are_not_taken_from_a_frame_that_does_not_say_that_it_has_some():
    assert decode_error_frame(ERROR | 0x004, bytes([0, 8, 0, 0, 0, 0, 96, 1])).tx_errors is None


@given(st.integers(0, 0xFFFF_FFFF), st.binary(max_size=70))
def test_any_bytes_say_something(can_id, data):
    said = decode_error_frame(can_id, data)
    assert said.causes or said.tx_errors is not None
    assert all(text and not text.startswith(" ") for text in said.causes)


@given(st.sampled_from([0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40]), st.integers(1, 0x1F))
def test_every_protocol_violation_has_its_place(bit, place):
    (text,) = decode_error_frame(ERROR | 0x008, bytes([0, 0, bit, place])).causes
    assert ", " in text
    assert not text.startswith(",")
