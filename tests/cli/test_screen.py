"""What `watch` shows on a terminal that is too small, on one that is gone, and in a pipe."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
from conftest import free_port
from rich.console import Console

from fieldbus.cli.common import number_text, sample_line, samples_table
from fieldbus.cli.screen import Screen, foot_of, keys_in


def item(name, value=1.5, **more):
    return {
        "point": name,
        "value": value,
        "quality": "good",
        "reason": None,
        "time": "2026-12-01T10:00:00Z",
    } | more


class Terminal(Console):
    def __init__(self, width=80, height=10):
        super().__init__(width=width, height=height, force_terminal=True, color_system=None)
        self.shown = ""

    def lines(self, screen):
        with self.capture() as captured:
            self.print(screen._live.renderable)
        return [line.rstrip() for line in captured.get().rstrip("\n").split("\n")]


@pytest.fixture
def ended():
    return []


def screen_of(terminal, ended):
    screen = Screen(terminal, 2, lambda: ended.append(True))
    screen._live.update = lambda content, refresh: setattr(screen._live, "_renderable", content)
    return screen


def test_what_has_no_room_is_counted_and_can_be_scrolled_to(ended):
    terminal = Terminal(height=10)
    screen = screen_of(terminal, ended)
    screen.show(samples_table([item(f"d.p{number}") for number in range(18)], "press-line"))

    def names():
        return re.findall(r"d\.p(\d+)", " ".join(terminal.lines(screen)))

    assert terminal.lines(screen)[0].startswith("press-line")
    assert terminal.lines(screen)[1].startswith("point")
    assert names() == [str(number) for number in range(7)]
    assert terminal.lines(screen)[-1].startswith("11 more – ")
    assert len(terminal.lines(screen)) == 10
    for key in ("j", "\x1b[B"):
        screen.press(key)
    assert names()[0] == "2"
    assert terminal.lines(screen)[-1].startswith("9 more, 2 above – ")
    screen.press(" ")
    assert names()[0] == "9"
    screen.press("G")
    assert (names()[0], names()[-1]) == ("11", "17")
    assert terminal.lines(screen)[-1].startswith("the end, 11 above – ")
    screen.press("j")  # no further
    assert names()[0] == "11"
    screen.press("k")
    assert names()[0] == "10"
    screen.press("g")
    assert names()[0] == "0"
    screen.press("x")
    assert not ended
    screen.press("q")
    assert ended == [True]


def test_a_table_that_has_room_has_no_foot(ended):
    terminal = Terminal(height=10)
    screen = screen_of(terminal, ended)
    screen.show(samples_table([item(f"d.p{number}") for number in range(8)], "press-line"))
    assert len(terminal.lines(screen)) == 10
    assert "more" not in " ".join(terminal.lines(screen))


def test_long_reasons_are_folded_and_not_cut(ended):
    terminal = Terminal(width=60, height=20)
    screen = screen_of(terminal, ended)
    reason = "device exception 02, after 1 of 2 requests were accepted by the device"
    screen.show(samples_table([item("boiler.return_temperature", None, quality="bad", reason=reason)], "x"))
    text = " ".join(terminal.lines(screen))
    assert "…" not in text
    assert all(word in text for word in reason.split())


def test_keys_are_letters_and_escape_sequences():
    assert list(keys_in("j\x1b[Aq\x1b[5~é")) == ["j", "\x1b[A", "q", "\x1b[5~", "é"]
    assert foot_of(0, 1).plain.startswith("1 more – ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234568.07, "1234568.07"),
        (26235234.0, "26235234"),
        (1234567936.0, "1234567936"),
        (230.72000122070312, "230.72"),
        (230.70000000000002, "230.7"),
        (0.1 + 0.2, "0.3"),
        (0.10000000149011612, "0.1"),
        (72.5, "72.5"),
        (0.0, "0"),
        (-0.25, "-0.25"),
        (1e-5, "0.00001"),
        (123456789.123456, "123456789.123456"),
        (9007199254740993.0, "9007199254740992"),
        (1e300, "1e+300"),
        (1e-9, "1e-09"),
        (3.4028234663852886e38, "3.4028235e+38"),
    ],
)
def test_a_number_is_shown_with_every_digit_that_it_has(value, text):
    assert number_text(value) == text


def test_a_sample_is_one_line_in_a_pipe():
    assert sample_line(item("a.b", 1234568.07, unit="kWh")) == "2026-12-01 10:00:00Z  a.b = 1234568.07 kWh"
    bad = item("a.b", None, quality="bad", reason="timeout", time=None)
    assert sample_line(bad) == "–  a.b = – (bad: timeout)"


CONFIG = """version: 1
gateway: {name: small}
links: {plc: {type: modbus-server, host: 127.0.0.1, port: PORT}}
devices: {d: {link: plc, points: {POINTS}}}
"""


def test_watch_on_a_small_terminal_scrolls_and_ends_with_q(tmp_path):
    points = ", ".join(
        f"p{n:02}: {{table: holding, address: {n}, access: readwrite, initial: {n}}}" for n in range(30)
    )
    file = tmp_path / "plant.yaml"
    file.write_text(CONFIG.replace("PORT", str(free_port())).replace("POINTS", points))
    command = [sys.executable, "-m", "fieldbus"]
    gateway = subprocess.Popen([*command, "run", str(file)], stderr=subprocess.DEVNULL)
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (12, 70))
    before = termios.tcgetattr(child)
    watching = None
    try:
        for _ in range(15):
            if (
                subprocess.run(
                    [*command, "watch", str(file), "--once"], capture_output=True, check=False
                ).returncode
                == 0
            ):
                break
            time.sleep(0.1)
        own = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
        watching = subprocess.Popen(
            [*command, "watch", str(file)],
            stdin=child,
            stdout=child,
            stderr=child,
            env=own | {"TERM": "xterm"},
        )

        def until(text, seconds=10.0):
            seen, ends_s = "", time.monotonic() + seconds
            while text not in seen:
                assert time.monotonic() < ends_s, f"no {text!r} in {seen[-1500:]!r}"
                if select.select([parent], [], [], 0.1)[0]:
                    seen += os.read(parent, 65536).decode(errors="replace")
            return seen

        assert "d.p00" in until("21 more")
        os.write(parent, b"jjj")
        until("18 more, 3 above")
        os.write(parent, b"G")
        assert "d.p29" in until("the end, 21 above")
        os.write(parent, b"q")
        os.set_blocking(parent, False)
        assert watching.wait(10) == 0
        assert termios.tcgetattr(child) == before
    finally:
        for process in (watching, gateway):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(15)
        os.close(parent)
        os.close(child)
