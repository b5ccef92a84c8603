"""What is remembered of the ids of commands, and what is refused once some were forgotten."""

import pytest

from fieldbus.errors import RefusedError
from fieldbus.gateway.commands import ids as module
from fieldbus.gateway.commands.ids import Ids


@pytest.fixture
def ids(monkeypatch):
    monkeypatch.setattr(module, "MOST_EXECUTED", 3)
    monkeypatch.setattr(module, "MOST_REFUSED", 2)
    return Ids()


def why(ids, actor, id_, expires_ns=1000, command=None):
    """Return why an id is refused; None if it is not."""
    try:
        ids.check(actor, id_, expires_ns, command)
    except RefusedError as error:
        return str(error).partition(":")[0]
    return None


EXECUTED = "this command was executed already"
REFUSED = "this command was refused already"
FORGOTTEN = "it cannot be told whether this command was decided already"


def test_as_many_are_remembered_as_there_is_room_for(ids):
    for number in range(2):
        ids.executed("a", str(number), 10)
    ids.make_room(99)  # there is room for one more: none is forgotten, although both have expired
    ids.executed("a", "2", 10)
    assert [why(ids, "a", str(number)) for number in range(4)] == [EXECUTED] * 3 + [None]
    assert len(ids) == 3


def test_only_what_has_expired_makes_room(ids):
    for id_, until_ns in (("first", 20), ("second", 10), ("third", 30)):
        ids.executed("a", id_, until_ns)
    with pytest.raises(RefusedError, match="too many commands at once"):
        ids.make_room(9)
    ids.make_room(10)
    assert [why(ids, "a", id_) for id_ in ("first", "second", "third")] == [EXECUTED, None, EXECUTED]
    assert len(ids) == 2


def test_what_may_be_one_of_the_forgotten_ones_is_refused(ids):
    for number in range(3):
        ids.executed("a", str(number), 10 * number + 10)
    ids.make_room(20)
    assert [why(ids, "b", "new", expires_ns) for expires_ns in (19, 20, None)] == [FORGOTTEN] * 3
    assert why(ids, "b", "new", 21) is None


def test_the_last_of_all_forgotten_ones_counts(ids):
    for number in range(3):
        ids.executed("a", str(number), 50)
    ids.make_room(50)
    for number in range(3):  # the clock was set back meanwhile
        ids.executed("a", str(number), 30)
    ids.make_room(30)
    assert why(ids, "a", "new", 50) == FORGOTTEN
    assert why(ids, "a", "new", 51) is None


def test_of_refused_ones_the_first_is_forgotten_by_its_actor_alone(ids):
    for number, until_ns in enumerate((40, 20, 60)):
        ids.refused("a", str(number), until_ns, "no")
    assert [why(ids, "a", str(number), 41) for number in range(3)] == [None, REFUSED, REFUSED]
    assert why(ids, "a", "0", 40) == FORGOTTEN
    assert why(ids, "b", "0", 1) is None
    ids.refused("a", "3", 60, "no")  # this forgets one that expired before the one that was forgotten first
    assert why(ids, "a", "1", 40) == FORGOTTEN
    assert why(ids, "a", "1", 41) is None


@pytest.mark.parametrize(("executed_ns", "refused_ns"), [(50, 20), (20, 50)])
def test_of_forgotten_executed_and_refused_ones_the_later_counts(ids, executed_ns, refused_ns):
    for number in range(3):
        ids.executed("a", str(number), executed_ns)
        ids.refused("a", f"no {number}", refused_ns, "no")
    ids.make_room(executed_ns)
    assert why(ids, "a", "new", 50) == FORGOTTEN
    assert why(ids, "a", "new", 51) is None


def test_what_was_decided_once_keeps_its_first_answer(ids):
    ids.executed("a", "done", 10)
    ids.refused("a", "done", 10, "no")
    assert why(ids, "a", "done") == EXECUTED
    ids.refused("a", "no", 10, "one reason")
    ids.refused("a", "no", 10, "another reason")
    with pytest.raises(RefusedError, match="one reason"):
        ids.check("a", "no", 1000, None)
    ids.withdraw("a", "never came", "it was not sent")
    assert why(ids, "a", "never came") is None


def test_a_repeated_refusal_forgets_no_other_one(ids):
    for id_ in ("0", "1", "1", "1"):
        ids.refused("a", id_, 10, "no")
    assert why(ids, "a", "0") == REFUSED


def test_the_first_of_two_has_the_id_until_it_is_decided(ids):
    first, second = object(), object()
    ids.claim("a", "x", first)
    ids.claim("a", "x", second)
    assert why(ids, "a", "x", command=first) is None
    assert why(ids, "a", "x", command=second) == EXECUTED
    assert not ids.release("a", "x", second)
    assert ids.release("a", "x", first)
    assert ids.release("a", "x", second)
    assert why(ids, "a", "x", command=second) is None


def test_an_undone_command_stays_refused_for_its_time(ids):
    ids.executed("a", "x", 40)
    ids.withdraw("a", "x", "its turn came too late")
    assert why(ids, "a", "x") == REFUSED
    ids.refused("a", "y", 10, "no")
    ids.refused("a", "z", 10, "no")
    assert why(ids, "a", "x", 40) == FORGOTTEN
    assert why(ids, "a", "x", 41) is None
