"""The gateway as a process of its own, with mosquitto's clients looking at what it publishes."""

import json
import subprocess

import pytest
from conftest import free_port, program, wait_for_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

PLANT = """version: 1
gateway: {{name: gw}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}}}
  broker: {{type: mqtt, host: 127.0.0.1, port: {broker}}}
devices:
  press:
    link: plc
    scan: 100ms
    points:
      temperature: {{table: holding, address: 0, type: float32, unit: °C, min: 0, max: 200}}
      count: {{table: holding, address: 2, type: uint32}}
      setpoint: {{table: holding, address: 10, type: float32, access: readwrite, min: 0, max: 50}}
  remote:
    link: broker
    points:
      setpoint: {{topic: plant/setpoint, min: 0, max: 50}}
      wish: {{topic: plant/wish, access: write}}
  panel:
    link: hmi
    points:
      up: {{table: discrete, address: 0}}
routes:
  - {{from: "press.*", to: "broker:plant/{{gateway}}/{{device}}/{{point}}"}}
  - {{from: "press.*", to: "broker:gathered/{{device}}", when: sample, on_bad: send}}
  - {{from: remote.setpoint, to: press.setpoint}}
  - {{from: sys.broker.connected, to: panel.up}}
"""


@pytest.fixture
def plant(tmp_path, broker):
    path = tmp_path / "plant.yaml"
    path.write_text(PLANT.format(plc=free_port(), hmi=free_port(), broker=broker.port))
    return path


def hear(broker, topic, count=1):
    """Return what mosquitto_sub prints: (topic, payload) pairs."""
    tool = program("mosquitto_sub", "mosquitto-clients")
    command = [tool, "-p", str(broker.port), "-V", "5", "-v", "-t", topic, "-C", str(count), "-W", "30"]
    out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    return [tuple(line.split(" ", 1)) for line in out.splitlines()]


def say(broker, topic, text):
    tool = program("mosquitto_pub", "mosquitto-clients")
    subprocess.run([tool, "-p", str(broker.port), "-t", topic, "-m", text], check=True, timeout=10)


def test_mosquitto_sub_sees_the_samples_also_after_the_broker_was_away(plant, broker, fieldbus):
    process = fieldbus("run", str(plant), "--simulate")
    messages = dict(hear(broker, "plant/gw/press/+", 3))
    assert set(messages) == {f"plant/gw/press/{name}" for name in ("temperature", "count", "setpoint")}
    sample = json.loads(messages["plant/gw/press/temperature"])
    assert (sample["quality"], sample["unit"]) == ("good", "°C")
    [(_, gathered)] = hear(broker, "gathered/press")
    assert set(json.loads(gathered)["values"]) == {"temperature", "count", "setpoint"}

    broker.stop()
    broker.start()
    [(_, again)] = hear(broker, "gathered/press")
    assert json.loads(again)["time"] > json.loads(gathered)["time"]
    assert json.loads(hear(broker, "fieldbus/gw/status")[0][1])["status"] == "online"

    out = process.stop()
    assert process.popen.returncode == 0
    assert "Traceback" not in out
    assert out.count("broker: lost") == 1, out
    assert out.count("broker: back, connected to") == 1, out
    assert json.loads(hear(broker, "fieldbus/gw/status")[0][1])["status"] == "offline"


def test_what_is_published_for_the_plc_is_written_and_what_it_may_not_get_is_refused(plant, broker, fieldbus):
    process = fieldbus("run", str(plant), "--simulate")
    hear(broker, "plant/gw/press/setpoint")
    for text, expected in (("42.5", 42.5), ("60", 42.5), ("rubbish", 42.5), ('{"value": 7}', 7.0)):
        say(broker, "plant/setpoint", text)
        # The next two gathered messages were read after the write, if there was one; on a busy machine later ones.
        for _ in range(5):
            *_, (_, last) = hear(broker, "gathered/press", 4)
            if json.loads(last)["values"]["setpoint"] == expected:
                break
        assert json.loads(last)["values"]["setpoint"] == expected
    out = process.stop()
    assert "press.setpoint: value of remote.setpoint refused, 60 is outside 0 … 50" in out


def test_read_and_write_on_topics_leave_the_running_gateway_alone(plant, broker, fieldbus):
    process = fieldbus("run", str(plant), "--simulate")
    hear(broker, "plant/gw/press/setpoint")
    written = fieldbus("write", str(plant), "remote.wish=5", "--json")
    out, _ = written.popen.communicate(timeout=30)
    assert json.loads(out)[0]["outcome"] == "written"
    assert json.loads(hear(broker, "plant/wish")[0][1])["value"] == 5
    reading = fieldbus("read", str(plant), "remote.setpoint", "--json")
    say(broker, "plant/setpoint", "1")
    out, _ = reading.popen.communicate(timeout=30)
    assert json.loads(out)[0]["point"] == "remote.setpoint"
    assert json.loads(hear(broker, "fieldbus/gw/status")[0][1])["status"] == "online"
    assert "broker: lost" not in process.stop()


def test_a_gateway_ends_in_time_while_its_broker_is_frozen(plant, broker, fieldbus):
    process = fieldbus("run", str(plant), "--simulate")
    hear(broker, "plant/gw/press/setpoint")
    wait_for_port(broker.port)
    broker._process.popen.send_signal(19)  # SIGSTOP: the connection stays, nobody answers
    try:
        out = process.stop(10)
        assert process.popen.returncode == 0, out
    finally:
        broker._process.popen.send_signal(18)
