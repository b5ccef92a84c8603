"""Few filters out of many."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldbus.canbus.bus import ERROR, EXTENDED, REMOTE
from fieldbus.canbus.kernel.filters import EXACT_EXTENDED, EXACT_STANDARD, LIMIT, merge

words = st.integers(0, 0xFFFF_FFFF)
exact = st.one_of(
    st.tuples(st.integers(0, 0x7FF), st.just(EXACT_STANDARD)),
    st.tuples(st.integers(0, 0x1FFF_FFFF).map(lambda i: i | EXTENDED), st.just(EXACT_EXTENDED)),
)


def lets_through(filters, can_id):
    return any(can_id & mask == wanted & mask for wanted, mask in filters)


@settings(deadline=None)
@given(st.lists(st.one_of(exact, st.tuples(words, words)), max_size=40), st.integers(1, 20), words)
def test_what_was_wanted_is_let_through_and_the_limit_is_kept(filters, limit, noise):
    merged = merge(filters, limit)
    assert len(merged) <= limit
    for wanted, mask in filters:
        can_id = (wanted & mask | noise & ~mask) & ~ERROR
        if not wanted & mask & ERROR:
            assert lets_through(merged, can_id)


@given(st.lists(exact, max_size=LIMIT))
def test_as_many_as_the_kernel_takes_stay_what_they_are(filters):
    assert set(merge(filters)) == set(filters)


def test_neighbours_that_make_a_block_join_without_a_stranger():
    merged = merge([(can_id, EXACT_STANDARD) for can_id in range(0x100, 0x140)], 1)
    assert [can_id for can_id in range(0x800) if lets_through(merged, can_id)] == list(range(0x100, 0x140))


def test_a_thousand_scattered_identifiers_let_few_strangers_through():
    ids = random.Random(1).sample(range(0x1FFF_FFFF), 1000)
    merged = merge([(EXTENDED | can_id, EXACT_EXTENDED) for can_id in ids])
    assert len(merged) == LIMIT
    strangers = sum(1 << (32 - mask.bit_count()) for _, mask in merged) / (1 << 29)
    assert strangers < 0.2, f"{strangers:.0%} of all identifiers"


@pytest.mark.parametrize("can_id", [0x100, 0x100 | REMOTE])
def test_the_bit_that_would_turn_a_filter_round_is_left_out(can_id):
    assert merge([(can_id | ERROR, 0x7FF)]) == [(0x100, 0x7FF)]


def test_a_filter_for_nothing_but_error_frames_needs_no_place():
    assert merge([(ERROR, ERROR)]) == []
