"""AUTOSAR end-to-end profiles, against a library that others wrote."""

import e2e
import pytest
from crccheck import crc as models
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.canbus.e2e import CRC_MODELS, DataIdMode, EndToEnd, make_crc

BYTE_CRCS = sorted(
    name
    for name, model in CRC_MODELS.items()
    if model.width() in {4, 8, 16, 24, 32, 64} and model.reflect_input() == model.reflect_output()
)


@pytest.mark.parametrize("name", BYTE_CRCS)
def test_every_crc_gives_its_published_check_value(name):
    assert make_crc(name)(b"123456789") == CRC_MODELS[name].check_result()


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from(BYTE_CRCS), st.binary(max_size=64), st.data())
def test_a_crc_is_what_crccheck_says_bit_by_bit(name, data, draw):
    model = CRC_MODELS[name]
    initial = draw.draw(st.integers(0, (1 << model.width()) - 1))
    assert make_crc(name)(data) == model.calc(data)
    assert make_crc(name, initial=initial)(data) == model.calc(data, initvalue=initial)
    assert make_crc(name, xor_out=0)(data) == model.calc(data) ^ model.xor_output()


@pytest.mark.parametrize("name", ["Crc5Usb", "Crc12Umts"])
def test_a_crc_that_is_not_made_for_bytes_is_refused(name):
    with pytest.raises(ValueError, match="bytes"):
        make_crc(name)


def test_all_models_are_known_under_all_their_names():
    assert set(CRC_MODELS.values()) == set(models.ALLCRCCLASSES)
    assert CRC_MODELS["Crc8Maxim"] is CRC_MODELS["Crc8MaximDow"]


P1 = {
    DataIdMode.BOTH: e2e.p01.E2E_P01_DATAID_BOTH,
    DataIdMode.ALTERNATING: e2e.p01.E2E_P01_DATAID_ALT,
    DataIdMode.LOW: e2e.p01.E2E_P01_DATAID_LOW,
    DataIdMode.NIBBLE: e2e.p01.E2E_P01_DATAID_NIBBLE,
}
P11 = {
    DataIdMode.BOTH: e2e.p11.E2E_P11_DATAID_BOTH,
    DataIdMode.NIBBLE: e2e.p11.E2E_P11_DATAID_NIBBLE,
}
HEADERS = {"1": 2, "2": 2, "4": 12, "5": 3, "6": 5, "7": 20, "11": 2}
KINDS = [("1", mode) for mode in P1] + [("11", mode) for mode in P11]
KINDS += [(profile, DataIdMode.BOTH) for profile in ("2", "4", "5", "6", "7")]


@st.composite
def layouts(draw):
    """Draw our object, and the oracle's two functions with the same layout."""
    profile, mode = draw(st.sampled_from(KINDS))
    header = HEADERS[profile]
    length = draw(st.integers(max(header, 3), 64))
    offset = 0 if profile == "2" else draw(st.integers(0, length - header))
    bits = 12 if mode is DataIdMode.NIBBLE else 32 if profile in {"4", "7"} else 16
    data_id = draw(st.integers(0, (1 << bits) - 1))
    module = getattr(e2e, f"p{int(profile):02}")
    protect = getattr(module, f"e2e_p{int(profile):02}_protect")
    check = getattr(module, f"e2e_p{int(profile):02}_check")
    if profile == "2":
        ids = draw(st.binary(min_size=16, max_size=16))
        ours = EndToEnd(profile, length, data_id_list=ids)
        args, options = (ids,), {"length": length}
    else:
        ours = EndToEnd(profile, length, data_id=data_id, mode=mode, offset=offset)
        args, options = (data_id,), {"length": length, "offset": offset}
        if profile in {"1", "11"}:
            options["data_id_mode"] = (P1 if profile == "1" else P11)[mode]
    data = draw(st.binary(min_size=length, max_size=64))
    return (
        ours,
        data,
        lambda frame, increment: protect(frame, *args, increment_counter=increment, **options),
        lambda frame: check(bytearray(frame), *args, **options),
    )


@settings(max_examples=examples(1500), deadline=None)
@given(layouts(), st.integers(0, 1 << 32))
def test_what_we_protect_is_what_the_other_library_protects(layout, counter):
    ours, data, protect, check = layout
    counter %= ours.counters
    sealed = ours.seal(data, counter)
    theirs = bytearray(sealed)
    for field in ours.fields:  # they fill in everything but the counter
        if field is not ours.fields[1]:
            field.put(theirs, 0)
    protect(theirs, False)
    assert sealed == theirs
    assert check(sealed)
    assert ours.is_intact(sealed)
    assert ours.counter(sealed) == counter


@settings(max_examples=examples(500), deadline=None)
@given(layouts())
def test_their_next_frame_is_intact_and_one_further(layout):
    ours, data, protect, _ = layout
    frame = bytearray(ours.seal(data, ours.counters - 2))
    for counter in (ours.counters - 1, 0, 1):
        protect(frame, True)
        assert ours.is_intact(bytes(frame))
        assert ours.counter(bytes(frame)) == counter


@settings(max_examples=examples(1000), deadline=None)
@given(layouts(), st.integers(0, 14), st.data())
def test_a_changed_bit_is_found_by_both(layout, counter, draw):
    ours, data, _, check = layout
    frame = bytearray(ours.seal(data, counter))
    bit = draw.draw(st.integers(0, ours.length * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    # Another counter takes another byte of the list or of the identifier, which may make it right again.
    if ours.counter(bytes(frame)) == counter:
        assert not ours.is_intact(bytes(frame))
    assert ours.is_intact(bytes(frame)) == check(frame)


@settings(max_examples=examples(300), deadline=None)
@given(layouts(), st.binary(max_size=70))
def test_of_any_bytes_both_say_the_same(layout, data):
    ours, _, _, check = layout
    assert ours.is_intact(data) == (len(data) >= ours.length and check(data))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"profile": "1", "length": 8, "data_id": 0x10000}, "16 bits"),
        ({"profile": "1", "length": 8, "data_id": 0x1000, "mode": DataIdMode.NIBBLE}, "12 bits"),
        ({"profile": "11", "length": 8, "mode": DataIdMode.LOW}, "profile 11"),
        ({"profile": "5", "length": 8, "mode": DataIdMode.NIBBLE}, "profile 5"),
        ({"profile": "2", "length": 8, "data_id_list": bytes(15)}, "16 identifiers"),
        ({"profile": "4", "length": 8}, "does not fit 8 bytes"),
        ({"profile": "1", "length": 8, "offset": 7}, "does not fit"),
    ],
)
def test_an_impossible_layout_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        EndToEnd(**options)


def test_a_frame_that_is_too_short_cannot_be_protected():
    with pytest.raises(ValueError, match="8 are protected"):
        EndToEnd("1", 8).seal(bytes(7), 0)
