"""The commands as a user types them, each in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import free_port, wait_for_port

# Some start many processes, beside others that do: processor time, and no bound of the program.
pytestmark = pytest.mark.timeout(180)
PLANT = """version: 1
gateway: {{name: test}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 200ms}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}}}
  can0: {{type: can, interface: virtual, channel: cli}}
devices:
  press:
    link: plc
    scan: 50ms
    points:
      temperature: {{table: holding, address: 0, type: float32, unit: °C, min: 0, max: 200}}
      setpoint: {{table: holding, address: 10, type: int16, scale: 0.1, access: readwrite, min: 0, max: 100}}
      mode: {{table: holding, address: 11, access: readwrite, enum: {{0: idle, 1: run}}}}
      start: {{table: coil, address: 0, access: readwrite}}
  panel:
    link: hmi
    points:
      temperature: {{table: holding, address: 0, type: float32}}
routes:
  - {{from: press.temperature, to: panel.temperature}}
"""


def fieldbus(*arguments, code=0, **options):
    """Run a command to its end and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "fieldbus", *map(str, arguments)],
        capture_output=True, text=True, timeout=40, stdin=subprocess.DEVNULL, check=False, **options,
    )  # fmt: skip
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.fixture
def plant(tmp_path):
    path = tmp_path / "plant.yaml"
    path.write_text(PLANT.format(plc=free_port(), hmi=free_port()))
    return path


def port_of(plant, link):
    return int(re.search(rf"{link}: .*port: (\d+)", plant.read_text())[1])


@pytest.fixture
def running(plant, start):
    """The gateway on simulated devices."""
    process = start(sys.executable, "-m", "fieldbus", "run", str(plant), "--simulate")
    wait_for_port(port_of(plant, "hmi"), 20)
    return process


def test_every_command_has_help():
    for command in ("run", "demo", "check", "plan", "sim", "read", "write", "watch", "schema"):
        assert "Usage: fieldbus" in re.sub(r"\s+", " ", fieldbus(command, "--help"))


def test_wrong_usage_is_exit_2(plant):
    fieldbus("run", code=2)
    fieldbus("nonsense", code=2)
    fieldbus("write", plant, "press.setpoint", code=2)
    fieldbus("read", plant, "press.setpoint", "--timeout", "soon", code=2)


def test_check_is_content_with_a_sound_config(plant):
    out = fieldbus("check", plant)
    assert "fine. 3 links, 2 devices, 5 points, 1 expanded routes" in out
    found = json.loads(fieldbus("check", plant, "--json"))
    assert (found["ok"], found["problems"], found["summary"]["routes"]) == (True, [], 1)


def test_check_tells_every_problem_on_a_line_of_its_own_and_exits_1(plant):
    text = plant.read_text().replace("float32, unit", "flaot32, unit").replace("scan: 50ms", "scan: 50")
    plant.write_text(text)
    lines = fieldbus("check", plant, code=1).splitlines()
    assert re.match(r".*plant\.yaml:10:11: devices\.press\.scan: 50 has no unit", lines[0])
    assert re.match(
        r".*plant\.yaml:12:\d+: devices\.press\.points\.temperature\.type: .*did you mean 'float32'", lines[1]
    )
    found = json.loads(subprocess.run([sys.executable, "-m", "fieldbus", "check", str(plant), "--json"],
                                      capture_output=True, text=True, check=False).stdout)  # fmt: skip
    assert [problem["line"] for problem in found["problems"]] == [10, 12]


@pytest.mark.parametrize("command", ["run", "plan", "sim", "watch"])
def test_a_config_with_problems_stops_every_command_with_the_same_words(plant, command):
    plant.write_text(plant.read_text().replace("scan: 50ms", "scan: 50"))
    assert "devices.press.scan: 50 has no unit" in fieldbus(command, plant, code=1)


def test_plan_shows_every_request(plant):
    found = json.loads(fieldbus("plan", plant, "--json"))
    assert [
        (item["table"], item["address"], item["count"], item["points"]) for item in found["requests"]
    ] == [
        ("coil", 0, 1, ["start"]),
        ("holding", 0, 12, ["temperature", "setpoint", "mode"]),
    ]
    assert "holding" in fieldbus("plan", plant)


def test_schema_is_json_schema():
    assert json.loads(fieldbus("schema"))["$schema"].startswith("https://json-schema.org")


def test_read_and_write_without_a_gateway(plant, start):
    text = plant.read_text()
    (plant.parent / "plc.yaml").write_text(
        text.replace("  can0: {type: can, interface: virtual, channel: cli}\n", "")
    )
    process = start(sys.executable, "-m", "fieldbus", "sim", str(plant.parent / "plc.yaml"))
    wait_for_port(port_of(plant, "plc"), 20)
    [sample] = json.loads(fieldbus("read", plant, "press.temperature", "--json"))
    assert sample["point"] == "press.temperature"
    assert sample["quality"] == "good"
    assert 0 <= sample["value"] <= 200
    assert (sample["unit"], sample["reason"]) == ("°C", None)
    results = json.loads(
        fieldbus("write", plant, "press.setpoint=42.5", "press.mode=run", "press.start=on", "--json")
    )
    assert [(item["outcome"], item["value"]) for item in results] == [
        ("written", 42.5),
        ("written", 1),
        ("written", True),
    ]
    found = json.loads(fieldbus("read", plant, "press.setpoint", "press.mode", "press.start", "--json"))
    assert [item["value"] for item in found] == [42.5, 1, True]
    assert found[1]["label"] == "run"
    for assignment, reason in (
        ("press.setpoint=101", "101 is outside 0 … 100"),
        ("press.temperature=5", "not writable"),
        ("press.mode=sprint", "is not a int, or one of idle, run"),
        ("press.start=2", "neither true nor false"),
    ):
        assert reason in fieldbus("write", plant, assignment, code=1)
    assert process.popen.poll() is None


def test_read_says_why_there_is_no_value(plant):
    out = json.loads(fieldbus("read", plant, "press.temperature", "--json", code=1))
    assert (out[0]["value"], out[0]["quality"]) == (None, "bad")
    assert out[0]["reason"] == "not connected: connection refused"
    assert "did you mean 'press.temperature'?" in fieldbus("read", plant, "press.temprature", code=1)


def test_a_running_gateway_can_be_watched_and_read_like_any_server(plant, running):
    deadline = time.monotonic() + 10
    while True:
        out = fieldbus("watch", plant, "--once")
        if re.search(r"panel\.temperature\s+[\d.]+\s+good", out) or time.monotonic() > deadline:
            break
    assert re.search(r"press\.temperature\s+[\d.]+\s+°C\s+good", out), out
    assert "sys." not in out
    assert "sys.press.online" in fieldbus("watch", plant, "--once", "--system")
    [sample] = json.loads(fieldbus("read", plant, "panel.temperature", "--json"))
    assert sample["quality"] == "good"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process could catch")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_gateway_with_0(plant, running, number):
    began_s = time.monotonic()
    os.kill(running.popen.pid, number)
    out, _ = running.popen.communicate(timeout=10)
    assert running.popen.returncode == 0
    assert time.monotonic() - began_s < 10
    assert "Traceback" not in out
    assert "test: stopped" in out
    assert not (plant.parent / "data" / "gateway.json").exists()


def test_a_second_gateway_on_the_same_data_is_refused(plant, running):
    deadline = time.monotonic() + 10
    while not (plant.parent / "data" / "gateway.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert f"already (process {running.popen.pid})" in fieldbus("run", plant, code=1)
    assert "press.temperature" in fieldbus("watch", plant, "--once")


def test_write_takes_one_value_for_each_point_and_no_patterns(plant):
    fieldbus("write", plant, "press.*=1", code=2)
    fieldbus("write", plant, "press.start=1", "press.start=0", code=2)
    assert "is not a whole number" in fieldbus("write", plant, "press.mode=0.5", code=1)


def test_what_devices_say_is_text_and_never_markup():
    from fieldbus.cli.common import cell

    assert cell("bad[/foo] \x1b[2J").plain == r"bad[/foo] \x1b[2J"


def test_watch_without_a_gateway_says_so(plant):
    assert "no gateway is running" in fieldbus("watch", plant, code=1)
    assert "not a URL" in fieldbus("watch", "http://127.0.0.1:1", code=2)


def test_sim_says_what_it_cannot_do(plant):
    assert "cannot be shared by two programs" in fieldbus("sim", plant, code=1)


def test_a_port_that_is_taken_is_said_once_and_the_rest_goes_on(plant, start, running):
    other = plant.parent / "other.yaml"
    other.write_text(plant.read_text().replace("name: test", "name: other, data_dir: other"))
    second = start(sys.executable, "-m", "fieldbus", "run", str(other))
    lines = []
    while not {"hmi", "plc"} <= {line.split(": ")[0].split()[-1] for line in lines}:
        lines.append(second.popen.stdout.readline())
        assert lines[-1], lines  # the end of its output: it gave up
    out = "".join(lines) + second.stop()
    assert out.count("hmi: not listening on") == 1, out
    assert "address already in use" in out
    assert "plc: connected to" in out
    assert second.popen.returncode == 0


def test_the_demo_runs_and_ends_by_itself(tmp_path):
    # Its ports are fixed: who runs the demo beside the tests is told so by it.
    out = fieldbus("demo", "--for", "5s", "--keep", tmp_path / "mine")
    assert "CAN frame sent by the gateway: can0  200  [8]" in out
    assert re.search(r"pump\.pressure\s+[\d.]+\s+bar\s+good", out)
    assert re.search(r"inverter\.InverterStatus\.MotorSpeed\s+-?[\d.]+\s+rpm\s+good", out)
    assert re.search(r"panel\.motor_speed\s+-?[\d.]+\s+rpm\s+good", out)
    assert "fieldbus check" not in out
    fieldbus("check", tmp_path / "mine" / "demo.yaml")


@pytest.mark.timeout(180)
def test_the_demo_works_from_an_installed_wheel(tmp_path):
    root = Path(__file__).parent.parent.parent
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, root], check=True, timeout=120
    )
    [wheel] = tmp_path.glob("fieldbus-*.whl")
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel], check=True
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    script = "import fieldbus, sys; sys.stdout.write(fieldbus.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(tmp_path) in done.stdout
    out = fieldbus("demo", "--for", "4s", env=env, cwd=tmp_path)
    assert "CAN frame sent by the gateway" in out
