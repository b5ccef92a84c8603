"""Names, and how nodes get their addresses."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.canbus.bus import EXTENDED, REMOTE
from fieldbus.canbus.j1939.address import AddressClaimer, Name
from fieldbus.canbus.j1939.identifiers import request

ME = Name(identity_number=100, manufacturer_code=5, is_arbitrary_address_capable=True)
LOWER = Name(identity_number=99, manufacturer_code=5, is_arbitrary_address_capable=True)
HIGHER = Name(identity_number=101, manufacturer_code=5, is_arbitrary_address_capable=True)
FIXED = Name(identity_number=100)
ASK = request(60928)


def claim(address, name):
    return EXTENDED | 0x18EEFF00 | address, name.to_bytes()


def claimed(name=ME, preferred=25):
    """A claimer that has its address."""
    claimer = AddressClaimer(name, preferred, cannot_claim_delay_s=0.1)
    claimer.start(0.0)
    claimer.tick(0.25)
    assert claimer.address == preferred
    return claimer


def test_a_name_of_a_real_device_is_read_field_by_field():
    data = bytes.fromhex("f501c02cefaa46c0")
    name = Name.from_bytes(data)
    assert name == Name(
        identity_number=501,
        manufacturer_code=358,
        ecu_instance=7,
        function_instance=29,
        function=170,
        vehicle_system=35,
        industry_group=4,
        is_arbitrary_address_capable=True,
    )
    assert name.to_bytes() == data
    assert "manufacturer_code 358" in str(name)


@given(st.integers(0, (1 << 64) - 1))
def test_any_64_bits_are_a_name_and_stay_themselves(number):
    assert int(Name.from_int(number)) == number
    assert Name.from_bytes(number.to_bytes(8, "little")).to_bytes() == number.to_bytes(8, "little")


@pytest.mark.parametrize(
    "fields",
    [{"identity_number": 1 << 21}, {"manufacturer_code": -1}, {"industry_group": 8}, {"reserved": 2}],
)
def test_a_field_that_does_not_fit_is_refused(fields):
    with pytest.raises(ValueError, match="does not fit"):
        Name(**fields)


def test_a_name_of_another_size_is_refused():
    for data in (b"", bytes(7), bytes(9)):
        with pytest.raises(ValueError, match="bytes"):
            Name.from_bytes(data)
    with pytest.raises(ValueError, match="64 bits"):
        Name.from_int(1 << 64)
    with pytest.raises(ValueError, match="address 254"):
        AddressClaimer(ME, 254)


def test_the_address_is_ours_after_a_quarter_of_a_second_without_objection():
    claimer = AddressClaimer(ME, 25)
    assert (claimer.address, claimer.conflict, claimer.due_s) == (None, None, None)
    assert claimer.start(10.0) == [ASK, claim(25, ME)]
    assert claimer.due_s == 10.25
    assert claimer.tick(10.24) == []
    assert claimer.address is None
    assert claimer.tick(10.25) == []
    assert (claimer.address, claimer.due_s, claimer.conflict) == (25, None, None)


def test_a_higher_name_hears_our_claim_again():
    claimer = claimed()
    assert claimer.heard(*claim(25, HIGHER), 1.0) == [claim(25, ME)]
    assert claimer.address == 25
    assert claimer.table == {}
    claimer.start(2.0)
    assert claimer.heard(*claim(25, HIGHER), 2.1) == [claim(25, ME)]
    claimer.tick(2.25)
    assert claimer.address == 25


def test_a_lower_name_gets_the_address_and_we_take_the_next_free_one():
    claimer = claimed()
    claimer.heard(*claim(128, HIGHER), 0.5)
    assert claimer.heard(*claim(25, LOWER), 1.0) == [claim(129, ME)]
    assert claimer.address is None
    claimer.tick(1.25)
    assert claimer.address == 129
    assert claimer.table == {128: HIGHER, 25: LOWER}
    assert claimer.heard(*claim(129, LOWER), 2.0) == [claim(130, ME)]
    assert claimer.table == {128: HIGHER, 129: LOWER}


def test_the_search_for_a_free_address_goes_round_once():
    claimer = AddressClaimer(ME, 247, cannot_claim_delay_s=0.1)
    claimer.start(0.0)
    for address in range(128, 247):
        claimer.heard(*claim(address, Name(identity_number=1000 + address)), 0.1)
    assert len(claimer.table) == 119
    assert claimer.heard(*claim(247, LOWER), 0.2) == []
    assert "no address" in claimer.conflict
    assert claimer.tick(0.31) == [claim(254, ME)]


def test_a_node_of_one_address_says_that_it_has_none_and_is_silent():
    claimer = claimed(FIXED)
    assert claimer.heard(*claim(25, Name(identity_number=99)), 1.0) == []
    assert (claimer.address, claimer.due_s) == (None, 1.1)
    assert claimer.tick(1.1) == [claim(254, FIXED)]
    assert claimer.heard(*claim(25, Name(identity_number=98)), 2.0) == []
    assert claimer.heard(*request(60928, 255, 3), 3.0) == []
    assert claimer.tick(3.1) == [claim(254, FIXED)]
    assert claimer.heard(*request(60928, 25, 3), 3.0) == []
    assert claimer.due_s is None
    assert claimer.conflict is not None
    assert claimer.start(4.0)[1:] == [claim(25, FIXED)]
    assert claimer.conflict is None


def test_requests_for_addresses_are_answered():
    claimer = claimed()
    assert claimer.heard(*ASK, 1.0) == [claim(25, ME)]
    assert claimer.heard(*request(60928, 25, 3), 1.0) == [claim(25, ME)]
    assert claimer.heard(*request(60928, 26, 3), 1.0) == []
    assert claimer.heard(*request(65226, 255, 3), 1.0) == []
    assert AddressClaimer(ME, 25).heard(*ASK, 1.0) == []


def test_two_nodes_of_one_name_end_in_silence_not_in_a_flood():
    claimer = claimed()
    assert claimer.heard(*claim(25, ME), 1.0) == []
    assert (claimer.address, claimer.due_s) == (None, None)
    assert "our NAME" in claimer.conflict
    assert claimer.heard(*ASK, 2.0) == claimer.heard(*claim(25, HIGHER), 2.0) == claimer.tick(9.0) == []
    claimer = claimed()
    assert claimer.heard(*claim(30, ME), 1.0) == []
    assert claimer.address == 25


def test_the_table_follows_who_moves_and_who_has_none():
    claimer = claimed()
    claimer.heard(*claim(3, HIGHER), 1.0)
    claimer.heard(*claim(4, HIGHER), 1.0)
    assert claimer.table == {4: HIGHER}
    claimer.heard(*claim(4, LOWER), 1.0)
    assert claimer.table == {4: LOWER}
    claimer.heard(*claim(254, LOWER), 1.0)
    assert claimer.table == {}
    with pytest.raises(TypeError):
        claimer.table[1] = ME


def test_other_frames_are_passed_over():
    claimer = claimed()
    can_id, data = claim(25, LOWER)
    assert claimer.heard(can_id & ~EXTENDED, data, 1.0) == []
    assert claimer.heard(can_id | REMOTE, data, 1.0) == []
    assert claimer.heard(can_id, data[:7], 1.0) == []
    assert claimer.heard(can_id + 0x10000, data, 1.0) == []
    assert claimer.address == 25


def test_delays_of_neighbouring_names_differ():
    delays = set()
    for number in range(50):
        claimer = AddressClaimer(Name(identity_number=number + 1), 25)
        claimer.start(0.0)
        claimer.heard(*claim(25, Name()), 0.0)
        assert 0 <= claimer.due_s <= 0.153
        delays.add(claimer.due_s)
    assert len(delays) > 40


@pytest.mark.parametrize("seed", range(40))
def test_nodes_that_want_the_same_addresses_all_end_with_their_own(seed):
    rng = random.Random(seed)
    capable = [rng.random() < 0.8 for _ in range(rng.randint(2, 40))]
    names = [
        Name(identity_number=number, is_arbitrary_address_capable=can) for number, can in enumerate(capable)
    ]
    rng.shuffle(names)
    nodes = [AddressClaimer(name, rng.choice([25, 128, 130, 247])) for name in names]
    events = [(rng.choice([0.0, rng.random()]), index) for index in range(len(nodes))]
    heapq.heapify(events)
    queues = [[] for _ in nodes]
    started, now_s, count = set(), 0.0, 0
    while True:
        ready = [index for index, queue in enumerate(queues) if queue]
        if ready:
            sender = rng.choice(ready)
            frame = queues[sender].pop(0)
            now_s += 0.0005
            count += 1
            assert count < 60 * len(nodes) ** 2
            for index in started - {sender}:
                queues[index] += nodes[index].heard(*frame, now_s)
        elif events:
            starts_s, index = heapq.heappop(events)
            now_s = max(now_s, starts_s)
            started.add(index)
            queues[index] += nodes[index].start(now_s)
        else:
            dues = [node.due_s for node in nodes if node.due_s is not None]
            if not dues:
                break
            now_s = max(now_s, min(dues))
        for index in started:
            queues[index] += nodes[index].tick(now_s)
    addresses = [node.address for node in nodes if node.address is not None]
    assert len(set(addresses)) == len(addresses)
    for node in nodes:
        if node.address is None:
            assert node.conflict is not None
            assert not node.name.is_arbitrary_address_capable
            holder = next(other for other in nodes if other.address == node.preferred)
            assert int(holder.name) < int(node.name)
        others = {
            other.address: other.name for other in nodes if other is not node and other.address is not None
        }
        assert node.table == others
