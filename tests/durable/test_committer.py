"""The committer's thread: what fails is kept whole and in order, and nothing ends it."""

import asyncio
import shutil
import sqlite3
import stat

import pytest
from conftest import eventually

from fieldbus.durable import committer as committer_module
from fieldbus.durable.committer import Committer
from fieldbus.durable.spool import Spool


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(committer_module, "RETRY_S", 0.02)


class Numbers:
    """Keeps whole numbers in a table."""

    def __init__(self):
        self.trouble = None
        self.poison = ()
        self.committed_items = []
        self.spoilt_items = []
        self.texts = []
        self.opens = 0

    def opened(self, connection):
        self.opens += 1
        connection.execute("CREATE TABLE IF NOT EXISTS numbers(id INTEGER PRIMARY KEY, n INTEGER)")

    def apply(self, connection, items):
        for item in items:
            connection.execute("INSERT INTO numbers(n) VALUES(?)", (item,))
            if self.trouble is not None:
                raise self.trouble
            if item in self.poison:
                raise KeyError(item)
        return connection.execute("SELECT max(id) FROM numbers").fetchone()[0]

    def settled(self, *, is_committed):
        pass

    def is_in(self, connection, result):
        return connection.execute("SELECT 1 FROM numbers WHERE id = ?", (result,)).fetchone() is not None

    def spoilt(self, items):
        self.spoilt_items += items

    def committed(self, items, result):
        self.committed_items += items

    def said(self, text, *, is_bad):
        self.texts.append((text, is_bad))


@pytest.fixture
async def bench(tmp_path):
    keeper = Numbers()
    subject = Committer(tmp_path / "numbers.db", keeper, 0.005)
    subject.open()
    yield keeper, subject
    subject.close()


def numbers_in(path):
    with sqlite3.connect(path) as connection:
        found = [n for (n,) in connection.execute("SELECT n FROM numbers ORDER BY id")]
    connection.close()
    return found


@pytest.mark.parametrize(
    "trouble",
    [
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.OperationalError("attempt to write a readonly database"),
        sqlite3.OperationalError("unable to open database file"),
        sqlite3.IntegrityError("UNIQUE constraint failed"),
        OSError(5, "Input/output error"),
        OverflowError("Python int too large to convert to SQLite INTEGER"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        KeyError("a mistake of ours"),
    ],
    ids=lambda error: type(error).__name__ + " " + str(error)[:20],
)
async def test_whatever_goes_wrong_while_it_is_written_it_is_kept_said_once_and_written_later(bench, trouble):
    keeper, subject = bench
    keeper.trouble = trouble
    for n in range(5):
        subject.put(n)
    await eventually(lambda: keeper.texts)
    for n in range(5, 10):
        subject.put(n)
    await asyncio.sleep(0.1)
    assert subject.is_open
    assert keeper.committed_items == []
    keeper.trouble = None
    await eventually(lambda: len(keeper.committed_items) == 10)
    assert keeper.committed_items == list(range(10))
    assert numbers_in(subject.path) == list(range(10))
    assert [is_bad for _, is_bad in keeper.texts] == [True, False]


async def test_a_question_that_fails_ends_nothing(bench):
    keeper, subject = bench

    def ask_wrongly(connection):
        raise KeyError("a mistake of ours")

    with pytest.raises(Exception, match="mistake"):
        await subject.ask(ask_wrongly)
    subject.put(1)
    await eventually(lambda: keeper.committed_items == [1])


async def test_a_hurried_commit_waits_for_no_group(tmp_path):
    keeper = Numbers()
    subject = Committer(tmp_path / "numbers.db", keeper, 3600.0)
    subject.open()
    subject.put(1)
    await asyncio.sleep(0.05)
    assert keeper.committed_items == []
    subject.hurry()
    await eventually(lambda: keeper.committed_items == [1])
    subject.put(2)  # the hurry was for what waited then
    await asyncio.sleep(0.05)
    assert keeper.committed_items == [1]
    subject.hurry()
    await eventually(lambda: keeper.committed_items == [1, 2])
    subject.put(3)
    subject.close()
    assert numbers_in(subject.path) == [1, 2, 3]


async def test_a_thread_that_has_nothing_to_commit_does_not_hang(tmp_path):
    subject = Committer(tmp_path / "numbers.db", Numbers(), 3600.0)
    subject.put(1)
    assert subject.hangs_s() == 0.0  # there is no thread yet
    subject.open()
    subject.hurry()
    await eventually(lambda: subject.commits == 1)
    assert subject.hangs_s() == 0.0
    subject.turned_s -= 100.0
    subject.put(2)
    subject.close()
    assert subject.hangs_s() == 0.0


@pytest.mark.parametrize("is_idle", [False, True])
async def test_a_file_that_is_deleted_while_it_is_used_is_begun_anew(bench, is_idle):
    keeper, subject = bench
    subject.put(1)
    await eventually(lambda: keeper.committed_items == [1])
    for path in subject.path.parent.glob("numbers.db*"):
        path.unlink()
    if is_idle:
        await eventually(lambda: keeper.opens == 2, 3)
    subject.put(2)
    await eventually(lambda: keeper.committed_items == [1, 2])
    assert numbers_in(subject.path) == [2]
    assert keeper.texts == [
        (f"{subject.path} was deleted or replaced while it was used; a new one is begun", True)
    ]


async def test_a_folder_that_is_deleted_is_made_anew(tmp_path):
    keeper = Numbers()
    subject = Committer(tmp_path / "data" / "numbers.db", keeper, 0.005)
    subject.open()
    subject.put(1)
    await eventually(lambda: keeper.committed_items == [1])
    shutil.rmtree(tmp_path / "data")
    subject.put(2)
    await eventually(lambda: keeper.committed_items == [1, 2])
    assert numbers_in(subject.path) == [2]
    assert stat.S_IMODE(subject.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(subject.path.parent.stat().st_mode) == 0o700
    subject.close()


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path, suffix):
    keeper = Numbers()
    (tmp_path / "other").write_bytes(b"theirs")
    (tmp_path / f"numbers.db{suffix}").symlink_to(tmp_path / "other")
    subject = Committer(tmp_path / "numbers.db", keeper, 0.005)
    subject.open()
    assert "symbolic link" in subject.trouble
    subject.put(1)
    (tmp_path / f"numbers.db{suffix}").unlink()
    await eventually(lambda: keeper.committed_items == [1])
    assert (tmp_path / "other").read_bytes() == b"theirs"
    subject.close()


async def test_what_is_held_nobody_commits_meanwhile(bench):
    _, subject = bench
    with subject.held():
        subject.put(1)
        subject.hurry()
        await asyncio.sleep(0.05)
        assert subject.take_oldest() == 1


async def test_a_transaction_that_cannot_even_begin_changes_no_number(tmp_path):
    """Another program has the file locked."""
    spool = Spool(tmp_path / "spool.db", group_commit_s=0.005)
    committer_module_busy = committer_module._BUSY_S
    committer_module._BUSY_S = 0.05
    try:
        spool.open()
        stream = spool.stream("s", lambda items: repr(list(items)).encode())
        stream.append([1, 2, 3])
        await eventually(lambda: stream.committed == 3)
        other = sqlite3.connect(spool.committer.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        stream.append([4])
        await eventually(lambda: spool.trouble is not None)
        assert spool._file._last == {"s": 3}
        assert "s" in spool._file._ids
        other.execute("ROLLBACK")
        other.close()
        await eventually(lambda: stream.committed == 4)
        assert [row.first for row in await stream.rows_after(0)] == [1, 4]
    finally:
        committer_module._BUSY_S = committer_module_busy
        spool.close()


async def test_a_file_that_is_lost_just_after_a_transaction_could_not_begin_costs_no_number(tmp_path):
    spool = Spool(tmp_path / "spool.db", group_commit_s=0.005)
    spool.open()
    stream = spool.stream("s", lambda items: repr(list(items)).encode())
    stream.append([1, 2, 3])
    await eventually(lambda: stream.committed == 3)
    connection = spool.committer._connection

    def spoil(_):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()  # the next transaction cannot begin
        with spool.committer.path.open("r+b") as file:
            file.write(b"\xa5" * 8192)
        return True

    assert await spool.committer.ask(spoil)
    stream.append([4])
    await eventually(lambda: stream.committed == 4, what=f"{spool.trouble}")
    assert stream.dropped == 3
    spool.close()


async def test_a_stream_that_is_wanted_again_goes_on_though_the_one_before_was_not_on_disk_yet(tmp_path):
    spool = Spool(tmp_path / "spool.db", group_commit_s=0.02)
    spool.open()

    def encode(items):
        return repr(list(items)).encode()

    stream = spool.stream("s", encode)
    stream.append([1, 2])
    await eventually(lambda: stream.committed == 2)
    stream.append([3, 4, 5])
    stream.forget()
    again = spool.stream("s", encode)
    again.append([6])
    await eventually(lambda: again.committed == 6)
    [row] = await again.rows_after(again.floor)
    # Whoever gets it must not wait for what was thrown away.
    assert row.first - 1 - row.gap <= again.floor
    assert again.backlog == 1
    spool.close()


async def test_while_a_disk_hangs_without_a_word_memory_is_bounded_too(tmp_path, monkeypatch):
    from fieldbus.durable import spool as spool_module

    monkeypatch.setattr(spool_module, "HANGS_S", 0.05)
    spool = Spool(tmp_path / "spool.db", group_commit_s=0.005, max_waiting=100)
    spool.open()
    stream = spool.stream("s", lambda items: repr(list(items)).encode())
    hangs = asyncio.Event()
    loop = asyncio.get_running_loop()
    release = asyncio.run_coroutine_threadsafe

    def hang(_):
        release(hangs.wait(), loop).result()

    question = asyncio.create_task(spool.committer.ask(hang))
    await asyncio.sleep(0.1)
    for _ in range(100):
        stream.append([0] * 10)
    assert stream.waiting <= 110
    assert stream.dropped == 1000 - stream.waiting
    hangs.set()
    await question
    await eventually(lambda: stream.waiting == 0)
    assert stream.committed == 1000
    spool.close()


# --- a COMMIT whose end is not known


class Doubtful(sqlite3.Connection):
    """Reports an error at COMMIT, as a disk does that fails when it is to confirm."""

    fails = True
    writes_all_the_same = True

    def execute(self, statement, *arguments):
        if statement == "COMMIT" and Doubtful.fails:
            Doubtful.fails = False
            if Doubtful.writes_all_the_same:
                super().execute("COMMIT")
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(statement, *arguments)


@pytest.mark.parametrize("writes_all_the_same", [True, False])
@pytest.mark.parametrize("is_closed", [True, False])
async def test_a_commit_that_reports_an_error_writes_nothing_twice_and_loses_nothing(
    tmp_path, monkeypatch, writes_all_the_same, is_closed
):
    monkeypatch.setattr(Doubtful, "fails", True)
    monkeypatch.setattr(Doubtful, "writes_all_the_same", writes_all_the_same)
    connect = sqlite3.connect
    monkeypatch.setattr(
        committer_module.sqlite3, "connect", lambda *args, **named: connect(*args, factory=Doubtful, **named)
    )
    keeper = Numbers()
    subject = Committer(tmp_path / "numbers.db", keeper, 0.005)
    subject.open()
    for n in range(5):
        subject.put(n)
    await eventually(lambda: keeper.texts)
    if is_closed:
        subject.close()
        await asyncio.sleep(0)
    else:
        for n in range(5, 8):
            subject.put(n)
        await eventually(lambda: len(keeper.committed_items) == 8)
        subject.close()
    monkeypatch.undo()
    wanted = list(range(5 if is_closed else 8))
    assert keeper.committed_items == wanted
    assert numbers_in(subject.path) == wanted


async def test_what_is_doubted_is_not_taken_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Doubtful, "fails", True)
    monkeypatch.setattr(committer_module, "RETRY_S", 0.3)
    connect = sqlite3.connect
    monkeypatch.setattr(
        committer_module.sqlite3, "connect", lambda *args, **named: connect(*args, factory=Doubtful, **named)
    )
    keeper = Numbers()
    subject = Committer(tmp_path / "numbers.db", keeper, 0.005)
    subject.open()
    subject.put(1)
    await eventually(lambda: keeper.texts)
    assert subject.take_oldest() is None
    await eventually(lambda: keeper.committed_items == [1])
    subject.close()


# --- an item that cannot be written


@pytest.mark.parametrize("poison", [[0], [9], [4, 5], [0, 3, 9]])
async def test_an_item_that_cannot_be_written_costs_itself_only(tmp_path, poison):
    keeper = Numbers()
    keeper.poison = poison
    subject = Committer(tmp_path / "numbers.db", keeper, 0.005)
    subject.open()
    for n in range(10):
        subject.put(n)
    wanted = [n for n in range(10) if n not in poison]
    await eventually(lambda: keeper.committed_items == wanted)
    await eventually(lambda: keeper.spoilt_items == poison)
    assert numbers_in(subject.path) == wanted
    assert sum(f"{len(poison)} entries cannot be written" in text for text, _ in keeper.texts) == 1
    assert [is_bad for _, is_bad in keeper.texts] == [True, False, True]
    assert subject.trouble is None
    subject.close()


async def test_an_item_that_cannot_be_written_alone_waits_for_one_that_can(bench):
    keeper, subject = bench
    keeper.poison = [1]
    subject.put(1)
    await eventually(lambda: keeper.texts)
    await asyncio.sleep(0.1)
    assert keeper.spoilt_items == []
    subject.put(2)
    await eventually(lambda: keeper.committed_items == [2])
    await eventually(lambda: keeper.spoilt_items == [1])


async def test_an_item_that_could_not_be_written_for_a_moment_is_not_dropped(tmp_path):
    keeper = Numbers()
    left = {4: 10**9, 7: 3}  # so often an item fails
    apply = keeper.apply

    def fail_at_times(connection, items):
        for item in items:
            if left.get(item, 0) > 0:
                left[item] -= 1
                raise KeyError(item)
        return apply(connection, items)

    keeper.apply = fail_at_times
    subject = Committer(tmp_path / "numbers.db", keeper, 0.005)
    subject.open()
    for n in range(10):
        subject.put(n)
    wanted = [n for n in range(10) if n != 4]
    await eventually(lambda: keeper.committed_items == wanted)
    assert keeper.spoilt_items == [4]
    assert numbers_in(subject.path) == wanted
    subject.close()


async def test_a_thread_that_has_nothing_to_do_sleeps(tmp_path, monkeypatch):
    looks = []
    subject = Committer(tmp_path / "numbers.db", Numbers(), 0.005)
    monkeypatch.setattr(subject, "_look_idly", lambda: looks.append(1))
    subject.open()
    subject.put(1)
    await eventually(lambda: subject.commits == 1)
    await asyncio.sleep(0.3)
    assert len(looks) <= 1
    subject.close()
