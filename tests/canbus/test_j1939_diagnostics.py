"""DM1 and DM2: lamps and faults."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.canbus.j1939.diagnostics import Fault, Lamp, decode
from fieldbus.errors import ConversionError

SPN_100 = bytes([100, 0, 1, 3])


def test_one_fault_in_a_frame():
    found = decode(bytes([0b01_00_11_10, 0b00_11_01_11]) + SPN_100 + b"\xff\xff")
    assert found.protect == Lamp(2, 3)
    assert found.amber_warning == Lamp(3, 1)
    assert found.red_stop == Lamp(0, 3)
    assert found.malfunction == Lamp(1, 0)
    assert [
        lamp.is_on for lamp in (found.protect, found.amber_warning, found.red_stop, found.malfunction)
    ] == [
        None,
        None,
        False,
        True,
    ]
    assert found.faults == (Fault(100, 1, 3),)
    assert not found.is_truncated
    assert str(found) == "protect error; malfunction flashing slowly; SPN 100 FMI 1 ×3"


def test_all_nineteen_bits_of_the_spn_in_their_places():
    found = decode(b"\x00\xff" + bytes([0x45, 0x23, 0xC0 | 0x1F, 0x7F]))
    assert found.faults == (Fault(0x62345, 31, None),)
    assert str(found.faults[0]) == "SPN 402245 FMI 31"


def test_many_faults_of_a_message_in_packets():
    found = decode(b"\x04\x04" + SPN_100 + bytes([110, 0, 0, 126]))
    assert str(found) == "amber warning flashing fast; SPN 100 FMI 1 ×3, SPN 110 FMI 0 ×126"


@pytest.mark.parametrize("nothing", ["00000000", "ffffffff", "00000005", "", "0000", "ffff", "00000000ffff"])
def test_no_faults_whatever_stands_for_none(nothing):
    found = decode(b"\x00\xff" + bytes.fromhex(nothing))
    assert (found.faults, found.is_truncated) == ((), False)
    assert str(found) == "no faults"


def test_fmi_0_of_a_real_parameter_and_spn_0_with_a_mode_are_faults():
    assert decode(b"\x00\xff" + bytes([1, 0, 0, 1, 0, 0, 2, 1])).faults == (Fault(1, 0, 1), Fault(0, 2, 1))


def test_bytes_that_make_no_fault_are_said():
    found = decode(b"\x00\xff" + SPN_100 + b"\x01\x02\x03")
    assert found.faults == (Fault(100, 1, 3),)
    assert found.is_truncated
    assert str(found).endswith("(incomplete)")


def test_an_old_layout_is_ambiguous_and_says_what_it_may_be():
    (fault,) = decode(b"\x00\xff" + bytes([0x12, 0x34, 0x40 | 5, 0x80 | 2])).faults
    assert fault.is_ambiguous
    assert fault.spn is None
    assert fault.candidates == (0x12 << 11 | 0x34 << 3 | 2, 0x34 << 11 | 0x12 << 3 | 2, 2 << 16 | 0x3412)
    assert (fault.fmi, fault.occurrence_count, fault.conversion_method) == (5, 2, 1)
    assert str(fault) == f"SPN {' or '.join(map(str, fault.candidates))} (old layout) FMI 5 ×2"


def test_an_old_layout_in_which_all_agree_is_not_ambiguous():
    (fault,) = decode(b"\x00\xff" + bytes([0, 0, 5, 0x81])).faults
    assert (fault.spn, fault.conversion_method) == (0, 1)


@pytest.mark.parametrize("payload", [b"", b"\x00"])
def test_a_payload_without_lamps_is_refused(payload):
    with pytest.raises(ConversionError):
        decode(payload)


@given(st.binary(min_size=2, max_size=1785))
def test_anything_can_be_read(payload):
    found = decode(payload)
    assert len(found.faults) <= (len(payload) - 2) // 4
    assert str(found)
