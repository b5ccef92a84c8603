"""Spools that come out of a backup, a copied memory card or an older version: nothing new is taken for old."""

import random
import shutil
import sqlite3

import pytest
from conftest import eventually
from test_damaged_rows import Bench


async def deliver(bench, values):
    await bench.write(values)
    if bench.task is None or bench.task.done():
        await bench.send_all()
    await eventually(lambda: bench.stream.backlog == 0, 10.0, "all is acknowledged")


async def end(bench):
    await bench.close()
    bench.task = None


def copy_of(bench, name):
    """Copy the file as it is on the disk now, as a backup does."""
    target = bench.path.with_name(name)
    with sqlite3.connect(bench.path) as source, sqlite3.connect(target) as copy:
        source.backup(copy)
    source.close()
    copy.close()
    return target


def put_back(copy, bench):
    for suffix in ("", "-wal", "-shm"):
        bench.path.with_name(bench.path.name + suffix).unlink(missing_ok=True)
    shutil.copy(copy, bench.path)
    bench.open()


def values(word, count):
    return [f"{word}{number}" for number in range(count)]


async def test_after_a_backup_was_put_back_what_is_new_arrives_and_what_was_there_comes_once(tmp_path):
    bench = Bench(tmp_path)
    await deliver(bench, values("a", 700))
    bench.task.cancel()
    await bench.write(values("b", 600))  # the peer gets these after the backup was made
    backup = copy_of(bench, "backup.db")
    await deliver(bench, values("c", 900))
    await end(bench)
    put_back(backup, bench)
    assert bench.stream.backlog == 600
    await deliver(bench, values("d", 2000))
    wanted = [*values("a", 700), *values("b", 600), *values("c", 900), *values("d", 2000)]
    assert bench.wire.keeper.values == wanted
    assert (bench.wire.intake.doubled, bench.wire.intake.lost, bench.stream.dropped) == (600, 0, 0)
    await end(bench)


async def test_two_gateways_with_copies_of_one_memory_card_lose_nothing(tmp_path):
    first = Bench(tmp_path)
    await deliver(first, values("a", 100))
    card = copy_of(first, "card.db")
    await end(first)
    wire = first.wire
    benches = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(card, tmp_path / name / "spool.db")
        benches.append(Bench(tmp_path / name, wire))
    wanted = values("a", 100)
    for number in range(3):
        for name, bench in zip("xy", benches, strict=True):
            wire.pump = bench.sink.pump
            wanted += values(f"{name}{number}.", 50)
            await deliver(bench, values(f"{name}{number}.", 50))
    assert wire.keeper.values == wanted
    assert wire.intake.lost == 0
    for bench in benches:
        await end(bench)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_restarted_and_put_back_all_that_is_new_arrives_once_in_order(tmp_path, seed):
    dice = random.Random(seed)
    bench = Bench(tmp_path)
    written = []
    backups = []
    for number in range(12):
        some = values(f"{number}.", dice.randint(1, 900))
        written += some
        await bench.write(some)
        kind = dice.choice(["go on", "restart", "backup", "put back", "send"])
        if kind == "backup":
            backups.append(copy_of(bench, f"backup{number}.db"))
        if kind in ("send", "put back"):
            await deliver(bench, [])
        if kind == "restart":
            await end(bench)
            bench.open()
        if kind == "put back" and backups:
            await end(bench)
            put_back(dice.choice(backups), bench)
    await deliver(bench, ["last"])
    assert bench.wire.keeper.values == [*written, "last"]
    assert (bench.wire.intake.lost, bench.stream.dropped) == (0, 0)
    await end(bench)


async def test_the_file_of_version_0_1_is_gone_on_with(tmp_path):
    bench = Bench(tmp_path)
    await bench.write(values("a", 1200))
    await end(bench)
    with sqlite3.connect(bench.path) as connection:  # as version 0.1 had it
        connection.execute("DROP TABLE lives")
        connection.execute("ALTER TABLE rows DROP COLUMN crc")
        (boot,) = connection.execute("SELECT boot FROM spool").fetchone()
    connection.close()
    bench.wire.keeper.marks = {f"tx/{boot}/broker data rx": 700}  # the peer had these of it
    bench.open()
    assert bench.stream.backlog == 1200
    await deliver(bench, values("b", 10))
    assert bench.wire.keeper.values == [*values("a", 1200)[700:], *values("b", 10)]
    assert (bench.wire.intake.lost, bench.stream.dropped) == (0, 0)
    await end(bench)


async def test_an_acknowledgement_of_an_incarnation_counts_up_to_its_end_only(tmp_path):
    bench = Bench(tmp_path)
    await bench.write(values("a", 10))
    boot = bench.spool.boot
    await end(bench)
    bench.open()
    await bench.write(values("b", 10))
    stream = bench.stream
    assert [stream.life_at(number) for number in (1, 10, 11, 99)] == [
        (boot, 0), (boot, 0), (bench.spool.boot, 10), (bench.spool.boot, 10)
    ]  # fmt: skip
    assert [stream.number_of(boot, seq) for seq in (0, 9, 10, 11, 10**6)] == [0, 9, 10, 10, 10]
    assert [stream.number_of(bench.spool.boot, seq) for seq in (0, 1, 10)] == [10, 11, 20]
    assert stream.number_of("another", 5) is None
    await end(bench)
    bench.open()
    bench.stream.acknowledge(12)
    await bench.write(["c"])
    await end(bench)
    bench.open()  # what is acknowledged to its end is forgotten
    assert bench.stream.number_of(boot, 5) == 5  # of the first one the file itself says which it was
    assert len(bench.spool.lives_of("broker data rx")) == 2
    await end(bench)
