"""A process that was told to end is over in time, whatever hangs in it and however often it is told."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fieldbus
from fieldbus.gateway import loop

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM that a process can catch"
)

PROGRAM = """
import asyncio, logging, sys, threading, time
from fieldbus.gateway import last_resort, log, loop
last_resort.END_S = 3.0
log.set_up()

async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def main():
    stop = asyncio.Event()
    loop.on_signal(stop.set, ends_process=True)
    {begin}
    print("ready", flush=True)
    await stop.wait()
    {end}

loop.run(main())
print("over", flush=True)
"""


def start(begin="pass", end="pass"):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(begin=begin, end=end)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def end(process, *pauses_s, number=signal.SIGINT):
    """Send a signal, and another one after each pause; return status, output, log and seconds."""
    began_s = time.monotonic()
    process.send_signal(number)
    for pause_s in pauses_s:
        time.sleep(pause_s)
        process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err, time.monotonic() - began_s


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_by_itself_is_left_alone(number):
    assert end(start(), number=number)[:3] == (0, "over\n", "")


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.003, 0.01, 0.03])
def test_signals_at_nearly_the_same_time_are_one(pause_s):
    status, out, err, _ = end(start(end="await asyncio.sleep(0.1)"), pause_s, pause_s)
    assert (status, out, err) == (0, "over\n", "")


def test_a_task_that_does_not_end_is_named_and_the_process_is_over():
    status, out, err, took_s = end(start(begin="held = asyncio.create_task(stubborn(), name='link plc')"))
    assert status == 70
    assert out == ""
    assert "not stopped within 2 s; still running: " in err
    assert "task link plc at stubborn (line " in err
    assert took_s < 5


def test_a_thread_that_does_not_end_is_named():
    status, out, err, _ = end(
        start(begin="threading.Thread(target=time.sleep, args=(60,), name='adapter').start()")
    )
    assert (status, out) == (70, "over\n")
    assert "thread adapter at " in err


def test_a_loop_that_hangs_is_no_obstacle():
    status, _, err, _ = end(start(end="time.sleep(60)"))
    assert status == 70
    assert "thread MainThread at main (line " in err


def test_a_log_that_nobody_reads_is_no_obstacle():
    # More than a pipe holds, from a thread that has the log's lock.
    flood = "threading.Thread(target=lambda: logging.getLogger('fieldbus').info('x' * 2**20), daemon=True).start()"
    process = start(end=f"{flood}; await asyncio.sleep(60)")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGALRM
    process.communicate()


def test_a_second_signal_after_a_while_ends_it_at_once():
    status, out, _, took_s = end(start(end="await asyncio.sleep(60)"), 1.2)
    assert (status, out) == (-signal.SIGINT, "")
    assert took_s < 1.9  # what hung would have been ended only after this


def test_ctrl_c_while_modules_are_imported_ends_without_a_word():
    for pause_s in (0.05, 0.1, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-m", "fieldbus", "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        killer = threading.Timer(pause_s, os.kill, (process.pid, signal.SIGINT))
        killer.start()
        _, err = process.communicate(timeout=20)
        killer.cancel()
        # Python itself may say something before our code runs.
        assert f"{Path(fieldbus.__file__).parent / 'cli'}" not in err


def test_a_shell_that_ignores_ctrl_c_for_a_job_in_the_background_is_obeyed():
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import fieldbus.cli.main as m; m.main = lambda: print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)\n"
        "from fieldbus.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "True\n"


def test_after_a_loop_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def main():
        loop.on_signal(lambda: None)
        return signal.getsignal(signal.SIGINT)

    assert loop.run(main()) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
