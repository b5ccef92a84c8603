"""Signs of life and constants on their way to a machine, and what stops them."""

import asyncio
import itertools

import pytest
from support.virtual import World

from fieldbus.errors import ConfigError
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway

WALLBOX = """
version: 1
gateway: {name: wallbox, data_dir: wallbox-data}
links: {hmi: {type: modbus-server, host: 127.0.0.1, port: 1502}}
devices:
  box: {link: hmi, unit_id: 1, points: {
    life: {table: holding, address: 401, access: readwrite, initial: 0},
    count: {table: holding, address: 402, access: readwrite, initial: 0},
    mode: {table: holding, address: 403, access: readwrite, initial: 0}}}
"""
METER = """
version: 1
gateway: {name: meter, data_dir: meter-data}
links: {hmi: {type: modbus-server, host: 127.0.0.1, port: 1503}}
devices: {box: {link: hmi, unit_id: 1, points: {power: {table: holding, address: 0, access: readwrite, initial: 7}}}}
"""
BOSS = """
version: 1
gateway: {name: boss, data_dir: boss-data}
links:
  net: {type: modbus-tcp, host: 127.0.0.1, port: 1502, timeout: 500ms}
  other: {type: modbus-tcp, host: 127.0.0.1, port: 1503, timeout: 500ms}
  panel: {type: modbus-server, host: 127.0.0.1, port: 1504}
devices:
  wallbox: {link: net, unit_id: 1, scan: 60s, points: {
    life: {table: holding, address: 401, access: write},
    count: {table: holding, address: 402, access: write},
    mode: {table: holding, address: 403, access: write, fallback: {after: 3s, value: 9}}}}
  meter: {link: other, unit_id: 1, scan: 1s, points: {power: {table: holding, address: 0}}}
  hmi: {link: panel, unit_id: 1, points: {life: {table: holding, address: 0}}}
routes:
  - {from: {toggle: 1s, values: [0x00FF, 0xFF00], while: meter.power}, to: wallbox.life}
  - {from: {counter: 1s, max: 15, while: sys.other.connected}, to: wallbox.count}
  - {from: {constant: 3}, to: wallbox.mode}
  - {from: {toggle: 1s, values: [1, 2], while: meter.power}, to: hmi.life}
"""


def gateway(folder, name, text, world):
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return Gateway(load(file, clock=world.clock()[0]))


def test_a_sign_of_life_alternates_and_stops_with_what_it_stands_for(tmp_path):
    world = World()
    written = {"life": [], "count": [], "mode": []}

    async def main():
        wallbox, meter, boss = (
            gateway(tmp_path, name, text, world)
            for name, text in (("wallbox", WALLBOX), ("meter", METER), ("boss", BOSS))
        )
        emit = wallbox._emit

        def heard(batch):
            name = batch.group.points[0].name
            if name in written and batch.values[0] is not None:
                written[name].append((world.now_s, batch.values[0]))
            emit(batch)

        wallbox._emit = heard
        tasks = [asyncio.create_task(item.run()) for item in (wallbox, meter, boss)]
        await asyncio.sleep(30)
        for items in written.values():
            del items[:2]  # the initial values, and whatever came while links came up
        life = [value for _, value in written["life"]]
        assert len(life) > 24
        assert set(life) == {0x00FF, 0xFF00}
        assert all(one != other for one, other in itertools.pairwise(life))
        counted = [value for _, value in written["count"]]
        assert all((one + 1) % 16 == other for one, other in itertools.pairwise(counted))
        served = boss.plant.points["hmi.life"]
        assert boss.delivered[served].value in (1, 2)
        # what the sign stands for is gone
        world.network.refused.add(1503)
        world.network.cut(1503)
        await asyncio.sleep(2)
        stopped = len(written["life"])
        await asyncio.sleep(20)
        assert len(written["life"]) == stopped
        assert boss.delivered[served].is_bad
        assert counted  # that it is not connected is a good value: the counter goes on
        assert written["count"][-1][0] > world.now_s - 2
        # and back
        last = written["life"][-1][1]
        world.network.refused.clear()
        await asyncio.sleep(20)
        resumed = [value for _, value in written["life"][stopped:]]
        assert len(resumed) > 5
        assert resumed[0] != last
        # a constant is there as long as the gateway is: no safe value
        assert [value for _, value in written["mode"]].count(9) == 0
        for item in (wallbox, meter, boss):
            item.stop()
        await asyncio.gather(*tasks)

    world.run(main())


def test_a_reload_lets_a_sign_of_life_go_on(tmp_path):
    file = tmp_path / "boss.yaml"
    file.write_text(BOSS)
    before = load(file)
    file.write_text(BOSS.replace("constant: 3", "constant: 4"))
    after = load(file, previous=before)
    assert [item.generated.name for item in before.generators] == ["toggle", "counter", "constant", "toggle"]
    for name in ("toggle", "counter"):
        old = [item for item in before.generators if item.generated.name == name]
        assert [item for item in after.generators if item.generated.name == name] == old
    [constant] = [item for item in after.generators if item.generated.name == "constant"]
    assert constant not in before.generators


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{toggle: 1s, counter: 1s}", "has one of `constant`, `toggle` and `counter`"),
        ("{while: meter.power}", "has one of `constant`, `toggle` and `counter`"),
        ("{toggle: 1s, values: [1, 1]}", "a `toggle` between 1 and 1 does not alternate"),
        ("{toggle: 1s, values: [1, a]}", "both numbers or both text"),
        ("{toggle: 1s, values: [1]}", "routes[0].from.values"),
        ("{constant: 1, values: [1, 2]}", "`values` are those of a `toggle`"),
        ("{constant: 1, max: 5}", "`max` is that of a `counter`"),
        ("{constant: .nan}", "nan is not a value"),
        ("{toggle: 1}", "1 has no unit"),
        ("{toggle: 1ms}", "after 10ms or more"),
        ("{togle: 1s}", "unknown key 'togle'"),
        ("{toggle: 1s, while: meter.powr}", "there is no point 'meter.powr'"),
        ("7", "routes[0].from"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_at_its_line(tmp_path, source, words):
    file = tmp_path / "boss.yaml"
    routes = BOSS.index("routes:")
    file.write_text(BOSS[:routes] + f"routes:\n  - {{from: {source}, to: wallbox.life}}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    found = [str(problem) for problem in caught.value.problems]
    assert any(words in text and text.startswith(f"{file}:16:") for text in found), found


def test_a_table_of_routes_can_have_such_sources(tmp_path):
    file = tmp_path / "boss.yaml"
    routes = BOSS.index("routes:")
    file.write_text(BOSS[:routes] + "routes: routes.csv\n")
    (tmp_path / "routes.csv").write_text(
        'from,to,every\n"{toggle: 1s, values: [0x00FF, 0xFF00], while: meter.power}",wallbox.life,\n'
        '"{constant: 3}",wallbox.mode,5s\n'
    )
    plant = load(file)
    assert [edge.source.name for edge in plant.edges] == ["toggle", "constant"]
    (tmp_path / "routes.csv").write_text('from,to\n"{toggle: 1s, values: [}",wallbox.life\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value.problems[0]).startswith(f"{tmp_path / 'routes.csv'}:2:")
