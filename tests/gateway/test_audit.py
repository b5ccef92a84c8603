"""The audit log: what is in it stays in it, and whoever changes it is found."""

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest
from conftest import missing
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from typer.testing import CliRunner

from fieldbus.cli.main import app
from fieldbus.gateway.commands import audit as audit_module
from fieldbus.gateway.commands.audit import FILE_NAME, START, Audit, export, last_files, verify
from fieldbus.gateway.commands.recall import recall

NOW_NS = 1_800_000_000_000_000_000


def write(audit, count, **more):
    for number in range(count):
        what = {"way": "mqtt", "actor": "operator", "point": "press.speed", "value": number, **more}
        assert audit.record(NOW_NS + number * 1_000_000_000, what)


@pytest.fixture
def audit(tmp_path):
    log = Audit(tmp_path)
    yield log
    log.close()


def lines(folder):
    return (folder / FILE_NAME).read_bytes().splitlines(keepends=True)


def put(folder, changed):
    (folder / FILE_NAME).write_bytes(b"".join(changed))


def is_whole(folder, records=None):
    found = verify(folder)
    assert not found.faults, found.faults
    return records is None or found.records == records


def run(*arguments):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


# --- the chain


def test_each_record_has_the_hash_of_the_one_before(audit, tmp_path):
    write(audit, 3)
    previous = START
    for number, line in enumerate(lines(tmp_path), 1):
        record = json.loads(line)
        assert (record["n"], record["prev"], record["value"]) == (number, previous, number - 1)
        body = line[: line.rindex(b',"hash":"')]
        assert record["hash"] == hashlib.sha256(previous.encode() + body).hexdigest()
        previous = record["hash"]
    assert (audit.count, audit.last_hash) == (3, previous)
    assert verify(tmp_path)[:3] == (3, previous, [])


def test_nothing_is_opened_before_there_is_something_to_record(tmp_path):
    Audit(tmp_path / "audit")
    assert not list(tmp_path.iterdir())


def test_the_log_is_not_for_everybody(audit, tmp_path):
    write(audit, 1)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o007 == 0


def test_after_a_restart_the_chain_goes_on(tmp_path):
    for _ in range(3):
        audit = Audit(tmp_path)
        write(audit, 2)
        audit.close()
    assert is_whole(tmp_path, 6)
    assert [record["n"] for record in export(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "torn",
    [b"{", b'{"n":', b'{"n":4', b'{"n":4,"time":"2027', b'{"n":4,"ti' + b"\0" * 99, b"\0" * 5000],
)
def test_a_torn_last_line_is_left_and_told_and_the_chain_goes_on_behind_it(tmp_path, torn):
    audit = Audit(tmp_path)
    write(audit, 3)
    audit.close()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(torn)
    audit = Audit(tmp_path)
    write(audit, 2)
    audit.close()
    found = verify(tmp_path)
    assert (found.records, found.faults, [fault.line for fault in found.torn]) == (5, [], [4])
    assert torn.strip(b"\n") in (tmp_path / FILE_NAME).read_bytes()


RECORD = {"n": 4, "time": "2027-01-15T08:00:00Z", "prev": "0" * 64, "hash": "0" * 64}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe",
        b'{"n":4}',
        b"[]",
        b"5",
        b"some words",
        b'{"n":7,"time":"2027',
        b'{"n":4' + b"4" * 5000,
        json.dumps(RECORD | {"n": 1 << 62}).encode(),
        b'{"n":' + b"9" * 5000 + b',"time":"","prev":"","hash":""}',
        json.dumps(RECORD | {"n": 0}).encode(),
        json.dumps(RECORD | {"n": 4.0}).encode(),
        json.dumps(RECORD | {"hash": "\ud800" * 64}).encode(),
        json.dumps(RECORD | {"prev": "\ud800" * 64}).encode(),
        json.dumps(RECORD | {"hash": "F" * 64}).encode(),
        json.dumps(RECORD | {"hash": "0" * 63}).encode(),
        json.dumps(RECORD | {"time": 5}).encode(),
        b'"' + b"[" * 100_000,
    ],
    ids=range(17),
)
def test_garbage_between_records_is_named_and_the_chain_goes_on_behind_it(tmp_path, garbage):
    audit = Audit(tmp_path)
    write(audit, 3)
    audit.close()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(garbage + b"\n")
    audit = Audit(tmp_path)  # whatever stands there, a gateway begins
    write(audit, 2)
    audit.close()
    found = verify(tmp_path)
    assert (found.records, found.torn) == (5, [])
    assert [(fault.line, fault.text[:10]) for fault in found.faults] == [(4, "no record:")]
    assert all(fault.text.isprintable() and len(fault.text) < 300 for fault in found.faults)
    assert [record["n"] for record in export(tmp_path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_wherever_a_power_cut_tears_the_last_record_the_others_are_whole(tmp_path, cut):
    audit = Audit(tmp_path)
    write(audit, 3)
    audit.close()
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(whole[:-cut])
    audit = Audit(tmp_path)
    write(audit, 1)
    audit.close()
    assert is_whole(tmp_path, 3 if cut > 1 else 4)


def test_files_are_closed_when_they_are_long_and_the_chain_goes_on_in_the_next(tmp_path):
    audit = Audit(tmp_path, max_bytes=1000)
    write(audit, 30)
    audit.close()
    closed = sorted(path.name for path in tmp_path.glob("audit-*"))
    assert len(closed) > 5
    assert closed[0] == "audit-000000000001.jsonl"
    for path in tmp_path.glob("audit-*"):
        assert json.loads(path.read_text().splitlines()[0])["n"] == int(path.stem[6:])
    assert is_whole(tmp_path, 30)
    audit = Audit(tmp_path, max_bytes=1000)
    write(audit, 3)
    audit.close()
    assert is_whole(tmp_path, 33)


def test_a_log_without_a_record_proves_nothing(tmp_path):
    (tmp_path / FILE_NAME).touch()
    done = run("verify", tmp_path)
    assert (done.exit_code, done.output.strip()) == (1, f"{tmp_path}: there is no record in it")


def test_a_file_that_was_just_closed_is_gone_on_from_after_a_restart(tmp_path):
    audit = Audit(tmp_path)
    write(audit, 4)
    audit.close()
    (tmp_path / FILE_NAME).rename(tmp_path / "audit-000000000001.jsonl")
    assert run("verify", tmp_path).exit_code == 0
    audit = Audit(tmp_path)
    write(audit, 1)
    audit.close()
    assert is_whole(tmp_path, 5)


def test_no_closed_file_takes_another_s_place(tmp_path):
    precious = '{"n":1,"time":"pre\n'
    (tmp_path / "audit-000000000001.jsonl").write_text(precious)
    audit = Audit(tmp_path, max_bytes=100)
    write(audit, 5)
    audit.close()
    assert (tmp_path / "audit-000000000001.jsonl").read_text() == precious
    assert is_whole(tmp_path, 5)


# --- tampering


def changed(name):
    """Return the change of that name: from ten lines to the lines afterwards."""

    def removed(rows):
        return rows[:4] + rows[5:]

    def first_removed(rows):
        return rows[1:]

    def inserted(rows):
        forged = json.loads(rows[4])
        text = json.dumps(
            {key: value for key, value in forged.items() if key != "hash"}, separators=(",", ":")
        )
        hash_ = hashlib.sha256((forged["prev"] + text[:-1]).encode()).hexdigest()
        return [*rows[:5], f'{text[:-1]},"hash":"{hash_}"}}\n'.encode(), *rows[5:]]

    def swapped(rows):
        return [*rows[:3], rows[4], rows[3], *rows[5:]]

    def twice(rows):
        return rows[:5] + rows[4:]

    def rehashed(rows):
        """The record is made right again, but not those behind it."""
        record = json.loads(rows[4])
        record["value"] = 4000
        del record["hash"]
        text = json.dumps(record, separators=(",", ":"))[:-1]
        hash_ = hashlib.sha256((record["prev"] + text).encode()).hexdigest()
        return [*rows[:4], f'{text},"hash":"{hash_}"}}\n'.encode(), *rows[5:]]

    def of(old, new):
        def change(rows):
            assert old in rows[4]
            return [*rows[:4], rows[4].replace(old, new, 1), *rows[5:]]

        return change

    return {
        "removed": removed, "first removed": first_removed, "inserted": inserted, "swapped": swapped,
        "twice": twice, "rehashed": rehashed,
        "value": of(b'"value":4', b'"value":5'), "space": of(b'"value":4', b'"value": 4'),
        "actor": of(b"operator", b"mallory!"), "number": of(b'"n":5', b'"n":6'),
        "number as text": of(b'"n":5', b'"n":"5"'), "number as truth": of(b'"n":5', b'"n":true'),
        "more behind the hash": of(b'"}\n', b'","value":9}\n'),
        "other hash behind the hash": of(b'"}\n', b'","hash":"' + b"0" * 64 + b'"}\n'),
        "space behind the hash": of(b'"}\n', b'" }\n'), "carriage return": of(b'"}\n', b'"}\r\n'),
        "previous as number": of(b'"prev":"', b'"prev":5,"x":"'), "garbage": of(b'{"n":5', b"\xff"),
        "hash as number": of(b'"hash":"', b'"hash":7,"x":"'),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "removed", "first removed", "inserted", "swapped", "twice", "rehashed", "value", "space", "actor", "number",
        "number as text", "number as truth", "more behind the hash", "other hash behind the hash",
        "space behind the hash", "carriage return", "previous as number", "garbage", "hash as number",
    ],
)  # fmt: skip
def test_whoever_changes_a_record_is_found(audit, tmp_path, name):
    write(audit, 10)
    assert run("verify", tmp_path).exit_code == 0
    before = lines(tmp_path)
    after = changed(name)(before)
    put(tmp_path, after)
    assert verify(tmp_path).faults
    said = run("verify", tmp_path)
    assert said.exit_code == 1
    line = (
        1
        if name == "first removed"
        else 6
        if name in ("inserted", "twice")
        else 4
        if name == "swapped"
        else 5
    )
    if name in ("rehashed", "garbage") or name.endswith("as text") or "as number" in name or "truth" in name:
        line = 6  # the fifth is no record any more, or one that is sound in itself
    assert f"{FILE_NAME}:{line}: " in said.output


def test_every_single_byte_of_the_log_is_protected(audit, tmp_path):
    write(audit, 3)
    whole = (tmp_path / FILE_NAME).read_bytes()
    last = whole.rindex(b"\n", 0, -1)
    for at in range(last):
        data = bytearray(whole)
        data[at] ^= 1
        (tmp_path / FILE_NAME).write_bytes(data)
        assert verify(tmp_path).faults, (at, whole[at - 10 : at + 10])


@settings(max_examples=examples(100), deadline=None)
@given(rows=st.lists(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.dictionaries(st.sampled_from(["n", "time", "prev", "hash", "id", "point", "value", "count"]), inner),
).map(lambda data: json.dumps(data).encode()), max_size=5))  # fmt: skip
def test_a_log_may_hold_anything_and_is_looked_at_all_the_same(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("audit")
    put(folder, [row + b"\n" for row in rows])
    verify(folder)
    audit = Audit(folder)
    recall(last_files(folder), 0, NOW_NS)
    assert audit.record(NOW_NS, {"value": 1})
    audit.close()
    assert list(export(folder))[-1]["value"] == 1


def test_that_the_end_is_missing_is_found_by_what_others_keep(audit, tmp_path):
    write(audit, 10)
    expected = f"{audit.count}:{audit.last_hash}"
    assert run("verify", tmp_path, "--expect", expected).exit_code == 0
    put(tmp_path, lines(tmp_path)[:9])
    assert run("verify", tmp_path).exit_code == 0
    said = run("verify", tmp_path, "--expect", expected)
    assert said.exit_code == 1
    assert "the end was cut off, or the log was replaced" in said.output


def test_older_files_may_be_put_elsewhere_and_that_is_said(tmp_path):
    audit = Audit(tmp_path, max_bytes=1000)
    write(audit, 20)
    audit.close()
    first, second, *_ = sorted(tmp_path.glob("audit-*"))
    number = int(second.stem[6:])
    first.rename(tmp_path / "elsewhere")
    said = run("verify", tmp_path)
    assert said.exit_code == 0
    assert f"records from record {number} on, older files are not here" in said.output
    second.unlink()
    assert run("verify", tmp_path).exit_code == 0
    sorted(tmp_path.glob("audit-*"))[1].unlink()
    assert run("verify", tmp_path).exit_code == 1


def test_a_log_that_is_removed_while_it_is_written_shows_that(audit, tmp_path):
    write(audit, 5)
    (tmp_path / FILE_NAME).unlink()
    write(audit, 1)
    assert [record["n"] for record in export(tmp_path)] == [6]
    said = run("verify", tmp_path)
    assert said.exit_code == 1
    assert "record 6 where 1 should be" in said.output


def test_a_log_that_is_cut_while_it_is_written_shows_that(audit, tmp_path):
    write(audit, 5)
    os.truncate(tmp_path / FILE_NAME, len(b"".join(lines(tmp_path)[:2])))
    write(audit, 1)
    assert "record 6 where 3 should be" in run("verify", tmp_path).output


# --- disks


class Disk:
    """`os.write` of a disk that has so many bytes left."""

    def __init__(self, monkeypatch, room=0):
        self.room = room
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(fd, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 100, 250])
def test_on_a_full_disk_records_are_counted_and_the_chain_goes_on_when_there_is_room(
    audit, tmp_path, monkeypatch, room
):
    write(audit, 3)
    disk = Disk(monkeypatch, room)
    for lost in (1, 2, 3):
        assert not audit.record(NOW_NS, {"value": "x" * 300})
        assert (audit.lost, audit.trouble) == (lost, "no space left on device")
    disk.room = 100_000
    write(audit, 3)
    assert audit.trouble is None
    assert is_whole(tmp_path, 6)
    assert not verify(tmp_path).torn


def test_what_a_full_disk_has_torn_and_kept_is_left_behind_a_line_feed(audit, tmp_path, monkeypatch):
    write(audit, 3)
    disk = Disk(monkeypatch, 50)
    with monkeypatch.context() as context:
        context.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
        assert not audit.record(NOW_NS, {"value": 1})
    assert not audit.record(NOW_NS, {"value": 2})
    disk.room = 100_000
    write(audit, 3)
    found = verify(tmp_path)
    assert (found.records, found.faults, len(found.torn)) == (6, [], 1)


def test_the_line_feed_behind_a_torn_line_may_find_no_room_either(tmp_path, monkeypatch):
    audit = Audit(tmp_path)
    write(audit, 3)
    audit.close()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"n":4')
    audit = Audit(tmp_path)
    disk = Disk(monkeypatch)
    assert not audit.record(NOW_NS, {"value": 1})
    assert not audit.is_ready()
    disk.room = 100_000
    write(audit, 2)
    audit.close()
    assert is_whole(tmp_path, 5)


def test_a_folder_that_cannot_be_made_is_known_before_anything_is_done(tmp_path):
    (tmp_path / "audit").write_text("a file")
    audit = Audit(tmp_path / "audit")
    assert not audit.is_ready()
    assert audit.trouble == "file exists"
    assert not audit.record(NOW_NS, {})


def test_a_full_disk_is_known_before_anything_is_done(audit, monkeypatch):
    assert audit.is_ready()
    real = os.fstatvfs

    def full(fd):
        found = list(real(fd))
        found[4] = 1  # f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", full)
    assert not audit.is_ready()
    assert audit.trouble == "no space left on device"
    monkeypatch.undo()
    assert audit.is_ready()


def test_dev_full_is_a_full_disk(tmp_path, monkeypatch):
    if not os.path.exists("/dev/full"):
        missing("there is no /dev/full")
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    monkeypatch.setattr(audit_module, "open_own", os.open)
    monkeypatch.setattr(Path, "lstat", Path.stat)
    audit = Audit(tmp_path)
    assert not audit.record(NOW_NS, {"value": 1})
    assert audit.trouble == "no space left on device"
    audit.close()


# --- who else is there


def test_who_reads_while_it_is_written_sees_whole_records(tmp_path):
    audit = Audit(tmp_path, max_bytes=20_000)
    faults = []
    over = threading.Event()

    def read():
        while not over.is_set():
            try:
                faults.extend(verify(tmp_path).faults)
            except FileNotFoundError:
                continue  # it was closed in this moment

    reader = threading.Thread(target=read)
    reader.start()
    audit_file = tmp_path / FILE_NAME
    write(audit, 40)
    for _ in range(300):
        write(audit, 1)
        if audit_file.stat().st_size > 19_000:
            break
    over.set()
    reader.join(10)
    audit.close()
    assert not faults


def _crowd(folder, name, count):
    audit = Audit(folder, max_bytes=5000)
    for number in range(count):
        while not audit.record(NOW_NS, {"actor": name, "value": number}):
            assert audit.trouble == "locked by another process"
    audit.close()


def test_several_processes_write_one_chain(tmp_path):
    context = multiprocessing.get_context("spawn")
    crowd = [context.Process(target=_crowd, args=(tmp_path, str(name), 100)) for name in range(3)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(40)
        assert process.exitcode == 0
    assert is_whole(tmp_path, 300)
    for name in "012":
        values = [record["value"] for record in export(tmp_path) if record["actor"] == name]
        assert values == list(range(100))


def test_who_holds_the_file_does_not_hold_us_up_for_long(audit, tmp_path):
    write(audit, 1)
    with (tmp_path / FILE_NAME).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not audit.record(NOW_NS, {})
        assert audit.trouble == "locked by another process"
    write(audit, 1)
    assert is_whole(tmp_path, 2)


# --- what is in a record


@settings(max_examples=examples(200), deadline=None)
@given(st.dictionaries(
    st.sampled_from(["actor", "point", "reason", "from", "id"]),
    st.text(st.characters(exclude_categories=()), max_size=50) | st.just('","hash":"0"}\n'),
), st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text())  # fmt: skip
def test_whatever_is_recorded_comes_back(tmp_path_factory, texts, value):
    folder = tmp_path_factory.mktemp("audit")
    audit = Audit(folder)
    for _ in range(2):
        assert audit.record(NOW_NS, {**texts, "value": value})
    audit.close()
    assert is_whole(folder, 2)
    for record in export(folder):
        assert {key: record[key] for key in texts} == texts
        assert record["value"] == value


def test_halves_of_surrogates_are_recorded_and_the_chain_is_whole(audit, tmp_path):
    assert audit.record(NOW_NS, {"id": "\ud800", "reason": "x\udfff"})
    write(audit, 1)
    assert is_whole(tmp_path, 2)
    assert next(export(tmp_path))["id"] == "\ud800"


def test_no_record_is_endless(audit, tmp_path):
    assert audit.record(NOW_NS, {"from": "x" * 1_000_000, "reason": "ä" * 1_000_000})
    assert (tmp_path / FILE_NAME).stat().st_size < 2000


def test_who_waits_for_the_disk_waits_for_what_another_has_begun(audit, monkeypatch):
    """Housekeeping synchronises too: what it has only begun is not on the disk."""
    ended = []
    begun, may_end = threading.Event(), threading.Event()

    def slow(_):
        begun.set()
        may_end.wait(10)
        ended.append("first")

    monkeypatch.setattr(os, "fdatasync", slow)
    write(audit, 1)
    first = threading.Thread(target=audit.sync)
    first.start()
    begun.wait(10)
    second = threading.Thread(target=lambda: (audit.sync(), ended.append("second")))
    second.start()
    second.join(0.05)
    assert ended == []
    may_end.set()
    first.join(10)
    second.join(10)
    assert ended == ["first", "second"]


def test_a_log_in_whose_place_is_a_link_is_not_written(tmp_path):
    folder, other = tmp_path / "audit", tmp_path / "other"
    folder.mkdir()
    other.write_text("somebody else's\n")
    (folder / FILE_NAME).symlink_to(other)
    audit = Audit(folder)
    assert not audit.is_ready()
    assert not audit.record(NOW_NS, {"value": 1})
    assert audit.trouble == "it is a symbolic link, and links are not followed here"
    assert other.read_text() == "somebody else's\n"


def test_the_log_and_its_folder_are_the_owners_only(tmp_path):
    before = os.umask(0)
    try:
        audit = Audit(tmp_path / "data" / "audit")
        write(audit, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(audit.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(audit.file.stat().st_mode) == 0o600
    audit.close()


# --- what it says of the time before a restart

S = 1_000_000_000


def recalled(folder, since_ns, now_ns):
    found, opened = recall(last_files(folder), since_ns, now_ns)
    return [(item.record["value"], item.latest_ns) for item in found], [record["value"] for record in opened]


def test_only_what_is_recent_is_recalled_from_the_last_two_files(tmp_path):
    audit = Audit(tmp_path, max_bytes=2000)
    write(audit, 60)
    assert len(list(tmp_path.glob("audit-*.jsonl"))) > 5
    found, opened = recalled(tmp_path, NOW_NS + 50 * S, NOW_NS + 60 * S)
    assert found == [(number, NOW_NS + number * S) for number in range(50, 60)]
    assert not opened
    audit.close()


@pytest.mark.parametrize(
    ("times", "ages"),
    [
        ([10, 20, 30], [10, 20, 30]),
        ([10, -NOW_NS // S, 30], [10, 30, 30]),  # one of 1970 is not older than the one before it
        ([10, -NOW_NS // S], [10, 100]),  # and was perhaps just now, if nothing comes after it
        ([10, 5_000, 30], [10, 30, 30]),  # one of the future was before the one after it
        ([5_000, 6_000, 30, 20, 40], [30, 30, 30, 40, 40]),
        ([5_000], [100]),
    ],
)
def test_the_order_of_records_counts_where_their_times_cannot_be_right(tmp_path, times, ages):
    audit = Audit(tmp_path)
    for number, seconds in enumerate(times):
        audit.record(NOW_NS + seconds * S, {"value": number})
    found, _ = recalled(tmp_path, NOW_NS, NOW_NS + 100 * S)
    assert found == [(number, NOW_NS + seconds * S) for number, seconds in enumerate(ages)]
    audit.close()


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50_000), st.sampled_from([0, 0, 0, 0, -1e9, 4000, 1e9])), max_size=30)
)
def test_no_record_is_ever_taken_for_older_than_it_is(tmp_path_factory, steps):
    """Whatever the clock was in between (long before there was fieldbus, or ahead), if it is right now."""
    folder = tmp_path_factory.mktemp("audit")
    audit = Audit(folder)
    true_s = 0
    truth = []
    for number, (step_s, off_s) in enumerate(steps):
        true_s += step_s
        truth.append(true_s)
        audit.record(NOW_NS + round((true_s + off_s) * S), {"value": number})
    now_s = true_s + 10
    found = dict(recalled(folder, NOW_NS + (now_s - 86400) * S, NOW_NS + now_s * S)[0])
    for number, at_s in enumerate(truth):
        if at_s > now_s - 86400:
            assert NOW_NS + at_s * S <= found[number] <= NOW_NS + now_s * S
    audit.close()


def test_an_intent_without_an_end_is_open_however_old_it_is(tmp_path):
    audit = Audit(tmp_path)
    numbers = [audit.intend(NOW_NS + n, {"value": n, "from": f'x,"intent":{n + 1}}}'}) for n in range(4)]
    assert numbers == [1, 2, 3, 4]
    for number in (2, 4):
        audit.record(NOW_NS, {"value": 9, "outcome": "verified", "intent": number})
    write(audit, 3, outcome="refused")
    found, opened = recalled(tmp_path, NOW_NS + 10**6 * S, NOW_NS + 10**7 * S)
    assert (found, opened) == ([], [0, 2])
    audit.close()


# --- the command


def test_the_newest_records_are_shown(audit, tmp_path):
    write(audit, 60, outcome="refused", reason="[red]no[/red] \x1b[31m")
    said = run("show", tmp_path, "--last", "5")
    rows = said.stdout.splitlines()
    assert len(rows) == 6
    assert rows[-1].split()[0] == "60"
    assert "\x1b" not in said.stdout
    assert "[red]no[/red]" in rows[-1]
    found = [
        json.loads(row) for row in run("show", tmp_path, "--json", "--only", '"value": 7').stdout.splitlines()
    ]
    assert [record["value"] for record in found] == [7]
    assert run("show", tmp_path, "--last", "-1").exit_code == 2


def test_where_nothing_was_written_that_is_said(tmp_path):
    said = run("verify", tmp_path)
    assert said.exit_code == 1
    assert "nothing was ever written" in said.stderr


def test_the_configuration_says_where_the_log_is(tmp_path):
    (tmp_path / "plant.yaml").write_text("version: 1\ngateway: {name: gw, data_dir: there}\nlinks: {}\n")
    audit = Audit(tmp_path / "there" / "audit")
    write(audit, 2)
    audit.close()
    for where in (tmp_path / "plant.yaml", tmp_path / "there", tmp_path / "there" / "audit"):
        said = run("verify", where)
        assert (said.exit_code, "2 records, the chain is whole" in said.stdout) == (0, True), said.output
