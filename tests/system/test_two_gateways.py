"""The example of two gateways as a newcomer runs it: one command, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, free_port, program

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
SCRIPT = ROOT / "configs" / "two-gateways" / "run"


def command(*arguments, password=None, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "fieldbus", *map(str, arguments)],
        capture_output=True, text=True, timeout=40, stdin=subprocess.DEVNULL, check=False,
        env={**os.environ, "FIELDBUS_PASSWORD": password or ""},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def example(start, tmp_path):
    """The example at work: its process, the lines that it printed, its folder."""
    program("mosquitto_passwd", "mosquitto")
    process = start(
        str(SCRIPT), env={"PORT": str(free_port()), "TMPDIR": str(tmp_path)}, start_new_session=True
    )
    lines = []
    while not lines or "Ctrl-C ends all" not in lines[-1]:
        line = process.popen.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    [folder] = tmp_path.glob("two-gateways.*")
    yield process, "".join(lines), folder
    if process.popen.poll() is None:
        process.popen.send_signal(signal.SIGTERM)
        process.popen.communicate(timeout=30)


def test_the_example_of_two_gateways_does_what_it_says(example):
    process, said, folder = example
    typed = [line.split() for line in said.splitlines() if line.startswith("  fieldbus ")]
    assert {line[1] for line in typed} == {"network", "watch", "write", "history", "audit"}
    words = said.split()
    assert all(os.path.exists(word) for line in typed for word in line if word.startswith("/"))
    password = next(word for word in words if word.startswith("FIELDBUS_PASSWORD=")).partition("=")[2]
    url = next(word for word in words if word.endswith("/press-line"))
    hq = folder / "hq.yaml"
    network = json.loads(command("network", url.rpartition("/")[0], "--json", password=password))
    assert [item["gateway"] for item in network] == ["hq", "press-line"]

    deadline_s = time.monotonic() + 20
    while not (stored := command("history", hq, "press_line.press.temperature", "--json").splitlines()):
        assert time.monotonic() < deadline_s, "nothing is in the store"
    assert {json.loads(line)["quality"] for line in stored} <= {"good", "bad"}

    written = command("write", url, "press.setpoint=42.5", "--json", password=password)
    assert [item["outcome"] for item in json.loads(written)] == ["written"]
    refused = command("write", url, "press.setpoint=42.3", "--json", password=password, code=1)
    assert json.loads(refused)[0]["reason"] == "42.3 is between the steps of 0.5"
    written = command("write", hq, "press_line.press.setpoint=50", "--json")
    assert [item["outcome"] for item in json.loads(written)] == ["written"]
    shown = command("watch", url, "--once", "--json", "--only", "setpoint", password=password)
    assert [json.loads(line)["value"] for line in shown.splitlines()] == [50.0]
    audit = command("audit", "show", folder / "press-line.yaml")
    assert "operator" in audit
    assert "hq" in audit

    os.killpg(process.popen.pid, signal.SIGINT)  # as Ctrl-C does, to all at once
    process.popen.communicate(timeout=30)
    assert process.popen.returncode == 0
    assert not folder.exists()
