"""Messages in packets, followed by listening alone: frames by hand."""

import pytest

from fieldbus.canbus.bus import ERROR, EXTENDED, REMOTE
from fieldbus.canbus.j1939.transport import Broken, Reassembler

DM1 = "cafe00"
PAYLOAD = bytes(range(20))
BAM = "20 1400 03 ff" + DM1
RTS = "10 1400 03 ff" + DM1
CTS = "11 03 01 ffff" + DM1
EOMA = "13 1400 03 ff" + DM1
PACKETS = ["01 00010203040506", "02 0708090a0b0c0d", "03 0e0f10111213ff"]


def management(data, source=1, destination=255):
    return EXTENDED | 0x1CEC0000 | destination << 8 | source, bytes.fromhex(data)


def data(data, source=1, destination=255):
    return EXTENDED | 0x1CEB0000 | destination << 8 | source, bytes.fromhex(data)


def broadcast(packets=PACKETS, announcement=BAM, source=1):
    return [management(announcement, source), *(data(packet, source) for packet in packets)]


def feed(reassembler, frames, step_s=0.05, start_s=0.0):
    """Feed frames one after the other; return the messages that came out."""
    found = []
    for index, frame in enumerate(frames):
        message = reassembler.feed(*frame, start_s + index * step_s)
        if message is not None:
            found.append(message)
    return found


def connection(*, packets=PACKETS, cts=(CTS,), announcement=RTS, end=EOMA, sender=1, receiver=2):
    """A connection in which all packets come after the first CTS."""
    frames = [management(announcement, sender, receiver)]
    frames += [management(word, receiver, sender) for word in cts]
    frames += [data(packet, sender, receiver) for packet in packets]
    return [*frames, management(end, receiver, sender)]


def test_a_broadcast_comes_out_whole():
    reassembler = Reassembler()
    assert feed(reassembler, broadcast()) == [(65226, 1, 255, PAYLOAD, 0.0, pytest.approx(0.15))]
    assert (reassembler.completed, len(reassembler), reassembler.next_due_s) == (1, 0, None)


def test_a_connection_of_others_comes_out_when_it_is_acknowledged():
    reassembler = Reassembler()
    frames = connection()
    assert feed(reassembler, frames[:-1]) == []
    assert feed(reassembler, frames[-1:], start_s=0.5) == [(65226, 1, 2, PAYLOAD, 0.0, 0.5)]


@pytest.mark.parametrize(
    ("packets", "reason"),
    [
        (PACKETS[1:], Broken.SEQUENCE),
        ([PACKETS[0], PACKETS[2]], Broken.SEQUENCE),
        ([PACKETS[0], PACKETS[0], *PACKETS[1:]], Broken.SEQUENCE),
        ([PACKETS[0], PACKETS[2], PACKETS[1]], Broken.SEQUENCE),
        ([*PACKETS[:2], "02 ff", PACKETS[2]], Broken.SEQUENCE),
        ([PACKETS[0], "01 ffffffffffffff", *PACKETS[1:]], Broken.ALTERED),
        ([*PACKETS[:2], "04 00000000000000"], Broken.SEQUENCE),
        ([*PACKETS[:2], "00 00000000000000"], Broken.SEQUENCE),
        ([*PACKETS[:2], ""], Broken.SEQUENCE),
        ([*PACKETS[:2], "03 0e0f101112"], Broken.SEQUENCE),
        (["01 000102030405", *PACKETS[1:]], Broken.SEQUENCE),
    ],
)
def test_a_broadcast_that_is_not_in_sequence_yields_nothing(packets, reason):
    reassembler = Reassembler()
    assert feed(reassembler, broadcast(packets)) == []
    assert reassembler.broken == {reason: 1}
    assert len(reassembler) == 0


def test_a_last_packet_without_filling_is_enough():
    assert feed(Reassembler(), broadcast([*PACKETS[:2], "03 0e0f10111213"]))[0].payload == PAYLOAD


def test_a_packet_that_is_late_ends_a_broadcast():
    reassembler = Reassembler()
    assert feed(reassembler, broadcast(), step_s=0.76) == []
    assert reassembler.broken == {Broken.TIMEOUT: 1}


def test_what_never_ends_is_given_up_in_time():
    reassembler = Reassembler()
    feed(reassembler, broadcast()[:2])
    assert reassembler.next_due_s == pytest.approx(0.8)
    reassembler.expire(0.79)
    assert len(reassembler) == 1
    reassembler.expire(0.8)
    assert (len(reassembler), reassembler.broken) == (0, {Broken.TIMEOUT: 1})


def test_a_new_announcement_replaces_the_old():
    reassembler = Reassembler()
    assert [message.payload for message in feed(reassembler, broadcast()[:3] + broadcast())] == [PAYLOAD]
    assert reassembler.broken == {Broken.REPLACED: 1}


@pytest.mark.parametrize(
    "announcement",
    ["20 0800 02 ff", "20 fa06 ff ff", "20 1400 02 ff", "20 1400 04 ff", "20 0000 00 ff", "20 ffff ff ff"],
)
def test_an_announcement_that_cannot_be_is_counted_and_passed_over(announcement):
    reassembler = Reassembler()
    assert feed(reassembler, broadcast(announcement=announcement + DM1)) == []
    assert reassembler.broken == {Broken.MALFORMED: 1}


def test_a_pgn_beyond_18_bits_is_malformed_and_a_destination_in_it_is_cut_off():
    reassembler = Reassembler()
    assert feed(reassembler, broadcast(announcement="20 1400 03 ff 000004")) == []
    assert feed(reassembler, broadcast(announcement="20 1400 03 00 05ef00"))[0].pgn == 0xEF00


def test_broadcasts_of_several_nodes_and_connections_do_not_mix():
    reassembler = Reassembler()
    others = ["01 " + "aa" * 7, "02 " + "bb" * 7, "03 " + "cc" * 7]
    frames = [
        frame
        for four in zip(
            [*broadcast(), management(EOMA, 9, 9)],
            [*broadcast(others, source=3), management(EOMA, 9, 9)],
            connection()[:1] + connection()[2:],
            connection(packets=others, sender=2, receiver=1)[:1]
            + connection(packets=others, sender=2, receiver=1)[2:],
            strict=True,
        )
        for frame in four
    ]
    frames[4:4] = [management(CTS, 2, 1), management(CTS, 1, 2)]
    found = feed(reassembler, frames, step_s=0.01)
    other = bytes.fromhex("aa" * 7 + "bb" * 7 + "cc" * 6)
    assert {(m.source_address, m.destination_address): m.payload for m in found} == {
        (1, 255): PAYLOAD,
        (3, 255): other,
        (1, 2): PAYLOAD,
        (2, 1): other,
    }


def test_packets_that_the_receiver_asks_for_again_are_waited_for():
    reassembler = Reassembler()
    frames = connection(packets=[PACKETS[0], PACKETS[2]])
    frames[-1:] = [
        management("11 00 ff ffff" + DM1, 2, 1),
        management("11 01 02 ffff" + DM1, 2, 1),
        data(PACKETS[1], 1, 2),
        frames[-1],
    ]
    assert [message.payload for message in feed(reassembler, frames)] == [PAYLOAD]


def test_a_whole_window_sent_again_is_the_same_message():
    frames = connection()
    frames[-1:] = [management(CTS, 2, 1), *(data(packet, 1, 2) for packet in PACKETS), frames[-1]]
    assert [message.payload for message in feed(Reassembler(), frames)] == [PAYLOAD]


def test_packets_sent_again_with_other_contents_are_none():
    reassembler = Reassembler()
    frames = connection()
    frames[-1:] = [management("11 02 02 ffff" + DM1, 2, 1), data("02 ffffffffffffff", 1, 2), frames[-1]]
    assert feed(reassembler, frames) == []
    assert reassembler.broken == {Broken.ALTERED: 1}


def test_a_message_whose_rts_we_missed_is_not_filled_up_from_the_one_before():
    reassembler = Reassembler()
    again = [management(CTS, 2, 1), data("02 ffffffffffffff", 1, 2), data(PACKETS[2], 1, 2)]
    frames = [*connection()[:3], *again]
    assert feed(reassembler, [*frames, management(EOMA, 2, 1)]) == []
    assert reassembler.broken == {Broken.INCOMPLETE: 1}


@pytest.mark.parametrize(
    "packets",
    [
        PACKETS[1:],
        [PACKETS[0], PACKETS[2]],
        [PACKETS[0], PACKETS[2], PACKETS[1]],
        [*PACKETS[:2], "03 00"],
        [],
    ],
)
def test_a_connection_of_which_we_missed_a_packet_yields_nothing(packets):
    reassembler = Reassembler()
    assert feed(reassembler, connection(packets=packets)) == []
    assert reassembler.broken == {Broken.INCOMPLETE: 1}


def test_packets_that_no_cts_allows_do_not_count():
    reassembler = Reassembler()
    assert feed(reassembler, connection(cts=())) == []
    assert feed(reassembler, connection(cts=("11 02 01 ffff" + DM1,))) == []
    assert feed(reassembler, connection(cts=(CTS, "11 00 ff ffff" + DM1))) == []
    assert feed(reassembler, connection(cts=("11 03 01 ffff cbfe00",))) == []
    assert reassembler.broken == {Broken.INCOMPLETE: 4}


@pytest.mark.parametrize(
    "changed",
    [
        {"end": "13 1500 03 ff" + DM1},
        {"end": "13 1400 04 ff" + DM1},
        {"end": "13 1400 03 ff cbfe00"},
        {"cts": ("11 01 04 ffff" + DM1,)},
        {"cts": ("11 01 00 ffff" + DM1,)},
    ],
)
def test_a_receiver_that_means_another_message_ends_it(changed):
    reassembler = Reassembler()
    assert feed(reassembler, connection(**changed)) == []
    assert reassembler.broken == {Broken.DISAGREEMENT: 1}


@pytest.mark.parametrize(("source", "destination"), [(1, 2), (2, 1)])
def test_either_node_may_abort(source, destination):
    reassembler = Reassembler()
    frames = connection()
    frames[-1:] = [
        management("ff 03 ffffff cbfe00", source, destination),
        management("ff 03 ffffff" + DM1, source, destination),
        frames[-1],
    ]
    assert feed(reassembler, frames) == []
    assert reassembler.broken == {Broken.ABORTED: 1}


@pytest.mark.parametrize(("gap_after", "gap_s"), [(1, 1.25), (2, 1.25), (3, 0.75), (5, 1.25)])
def test_a_connection_that_stalls_is_given_up(gap_after, gap_s):
    for extra, count in ((-0.01, 1), (0.01, 0)):
        reassembler = Reassembler()
        frames = connection()
        found = feed(reassembler, frames[:gap_after], step_s=0.0)
        found += feed(reassembler, frames[gap_after:], step_s=0.0, start_s=gap_s + extra)
        assert len(found) == count
        assert reassembler.broken == ({} if count else {Broken.TIMEOUT: 1})


def test_there_is_a_limit_and_the_oldest_goes():
    reassembler = Reassembler(max_sessions=2)
    for source in (1, 3, 4):
        reassembler.feed(*broadcast(source=source)[0], 0.0)
    assert (len(reassembler), reassembler.broken) == (2, {Broken.EVICTED: 1})
    assert feed(reassembler, broadcast()[1:]) == []
    assert len(feed(reassembler, broadcast(source=3)[1:])) == 1


def test_dropped_frames_end_everything_under_way():
    reassembler = Reassembler()
    feed(reassembler, broadcast()[:2] + connection()[:3])
    reassembler.clear()
    assert feed(reassembler, broadcast()[2:] + connection()[3:]) == []
    assert reassembler.broken == {Broken.OVERRUN: 2}


def test_other_frames_are_passed_over():
    reassembler = Reassembler()
    can_id, announcement = management(BAM)
    for word in (
        can_id & ~EXTENDED,
        can_id | REMOTE,
        can_id & ~EXTENDED | ERROR,
        can_id & ~0xFF | 254,
        can_id + (1 << 24),
    ):
        assert reassembler.feed(word, announcement, 0.0) is None
    assert reassembler.feed(can_id, announcement[:7], 0.0) is None
    assert reassembler.feed(*management(BAM, 1, 2), 0.0) is None
    assert reassembler.feed(*management(RTS, 1, 255), 0.0) is None
    assert reassembler.feed(*management("12 1400 03 ff" + DM1), 0.0) is None
    assert reassembler.feed(*management(EOMA, 2, 1), 0.0) is None
    assert reassembler.feed(*data(PACKETS[0]), 0.0) is None
    assert (len(reassembler), reassembler.broken) == (0, {})
