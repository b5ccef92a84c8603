"""What clients read at addresses without a point, and of blocks in which a source is bad."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.modbus import pdu
from fieldbus.modbus.image import UnitImage
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.points import build_points
from fieldbus.modbus.register_types import Table
from fieldbus.modbus.server_settings import ServedDeviceSettings
from fieldbus.modbus.table_image import BlockRules
from fieldbus.model import Quality, Sample

FILLED, BESIDE = BlockRules(fill=0), BlockRules(bad_points_read=True)


class Panel:
    """Served points by name, and the image that clients see."""

    def __init__(self, rules: BlockRules, **points: dict[str, object]) -> None:
        settings = {name: PointSettings.model_validate(item) for name, item in points.items()}
        made = build_points("d", settings, is_served=True, fault=lambda *told: pytest.fail(str(told)))
        self.points = {item.point.name: item for item in made}
        self.image = UnitImage(made, rules)

    def give(self, **values: object) -> None:
        for name, value in values.items():
            quality = Quality.BAD if value is None else Quality.GOOD
            reason = "timeout" if value is None else None
            self.image.update(self.points[name].point, Sample(value, quality, reason, 0))

    def read(self, address: int, count: int, table: Table = Table.HOLDING) -> str:
        """Return the data of the response in hex, or its exception."""
        response, _ = self.image.answer(pdu.read_request(table, address, count))
        return f"exception {response[1]:02X}" if response[0] & 0x80 else response[2:].hex()

    def ask(self, request: str) -> str:
        return self.image.answer(bytes.fromhex(request))[0].hex(" ")


def holding(address: int, **more: object) -> dict[str, object]:
    return {"table": "holding", "address": address, **more}


def three(rules: BlockRules) -> Panel:
    panel = Panel(rules, **{name: holding(address, access="readwrite", initial=value)
                            for name, address, value in (("a", 1, 11), ("b", 4, 22), ("c", 9, 33))})  # fmt: skip
    return panel


# --- fill


def test_a_block_over_points_and_gaps_reads_the_filler_between():
    assert three(FILLED).read(1, 10) == "000b000000000016000000000000000000210000"
    assert three(BlockRules(fill=0x8000)).read(1, 4) == "000b" + 2 * "8000" + "0016"
    assert three(BlockRules()).read(1, 10) == "exception 02"


@pytest.mark.parametrize("address", [0, 1, 5, 9, 10, 20, 65530])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_every_address_of_a_filled_table_can_be_read(address, count):
    values = {1: 11, 4: 22, 9: 33}
    wanted = struct.pack(f">{count}H", *(values.get(place, 7) for place in range(address, address + count)))
    assert three(BlockRules(fill=7)).read(address, count) == wanted.hex()


def test_a_filled_table_ends_where_addresses_end():
    assert three(FILLED).ask("03 ff ff 00 02") == "83 02"


def test_a_table_without_points_is_not_filled():
    panel = three(FILLED)
    assert [
        panel.read(0, 1, table) for table in Table if table.is_numbered and table is not Table.HOLDING
    ] == 3 * ["exception 02"]


@pytest.mark.parametrize(
    "request_hex",
    ["06 00 00 00 05", "06 00 02 00 05", "06 00 14 00 05", "06 ff ff 00 05", "10 00 01 00 02 04 00 01 00 02",
     "16 00 02 ff ff 00 00", "17 00 01 00 01 00 02 00 01 02 00 05"],
)  # fmt: skip
def test_writes_to_filled_addresses_are_refused(request_hex):
    panel = three(FILLED)
    assert panel.ask(request_hex).split()[1] == "02"
    assert panel.read(1, 4) == "000b000000000016"


def test_coils_are_filled_with_one_state():
    panel = Panel(
        BlockRules(fill=1), lamp={"table": "coil", "address": 3, "access": "readwrite", "initial": False}
    )
    assert panel.read(0, 8, Table.COIL) == "f7"
    assert panel.read(2000, 3, Table.COIL) == "07"


def test_a_bad_point_costs_a_filled_block_as_before():
    panel = Panel(FILLED, a=holding(0), b=holding(4))
    panel.give(a=1)
    assert (panel.read(0, 3), panel.read(0, 5), panel.read(20, 3)) == (
        "000100000000",
        "exception 0B",
        6 * "00",
    )


# --- bad points beside good ones


def mixed(rules: BlockRules = BESIDE) -> Panel:
    return Panel(
        rules,
        speed=holding(0),
        level=holding(1, type="float32"),
        flow=holding(3, type="int16", invalid=[0x8000, 0x7FFF]),
        run=holding(4, bit=0),
        fault=holding(4, bit=1),
        text=holding(5, type="string", length=2),
        kept=holding(7, on_bad="hold"),
    )


GOOD = {"speed": 1, "level": 2.5, "flow": -3, "run": True, "fault": True, "text": "ok", "kept": 9}


def test_bad_points_read_as_no_value_beside_good_ones():
    panel = mixed()
    panel.give(**GOOD)
    assert panel.read(0, 8) == "000140200000fffd00036f6b00000009"
    panel.give(**(dict.fromkeys(GOOD) | {"speed": 1}))
    # NaN; the first invalid value; no bit; FFFF; held.
    assert panel.read(0, 8) == "00017fc000007fff0000ffffffff0009"


def test_by_default_one_bad_point_makes_the_block_0b():
    panel = mixed(BlockRules())
    panel.give(**(GOOD | {"speed": None}))
    assert (panel.read(0, 8), panel.read(1, 6)) == ("exception 0B", "40200000fffd00036f6b0000")


def test_what_touches_bad_points_only_is_0b():
    panel = mixed()
    assert panel.read(0, 7) == "exception 0B"
    panel.give(**(GOOD | {"level": None, "flow": None}))
    assert (panel.read(1, 2), panel.read(1, 3), panel.read(1, 4)) == (
        "exception 0B",
        "exception 0B",
        "7fc000007fff0003",
    )


def test_one_bad_bit_leaves_the_others_of_its_register():
    panel = mixed()
    panel.give(run=True, fault=True)
    panel.give(fault=None)
    assert panel.read(4, 1) == "0001"
    panel.give(run=None)
    assert panel.read(4, 1) == "exception 0B"


def test_the_filler_stands_for_a_bad_point_too():
    panel = Panel(BlockRules(fill=0, bad_points_read=True), a=holding(0), b=holding(1))
    panel.give(a=5)
    assert panel.read(0, 4) == "0005000000000000"


def test_a_mask_write_keeps_no_bit_that_nobody_knows():
    panel = Panel(
        BESIDE, a=holding(0, bit=0, access="readwrite", initial=True), b=holding(0, bit=1, access="readwrite")
    )
    assert panel.ask("16 00 00 ff fe 00 01") == "96 0b"


def test_a_read_write_reads_bad_points_beside_what_it_wrote():
    panel = Panel(BESIDE, a=holding(0, access="readwrite"), b=holding(1), c=holding(2))
    assert panel.ask("17 00 01 00 02 00 00 00 01 02 00 05") == "97 0b"
    assert panel.read(0, 1) == "exception 0B"  # nothing was written
    assert panel.ask("17 00 00 00 02 00 00 00 01 02 00 05") == "17 04 00 05 ff ff"


@given(seed=st.integers(0, 2**32), fill=st.none() | st.integers(0, 0xFFFF), beside=st.booleans())
def test_a_read_is_a_value_a_filler_or_an_exception(seed, fill, beside):
    dice = random.Random(seed)
    addresses = sorted(dice.sample(range(40), dice.randint(1, 12)))
    panel = Panel(
        BlockRules(fill=fill, bad_points_read=beside), **{f"p{place}": holding(place) for place in addresses}
    )
    values = {place: dice.choice([None, dice.randrange(0x10000)]) for place in addresses}
    panel.give(**{f"p{place}": value for place, value in values.items()})
    for _ in range(20):
        first = dice.randrange(45)
        places = range(first, first + dice.randint(1, 20))
        own = [values[place] for place in places if place in values]
        if fill is None and len(own) < len(places):
            wanted = "exception 02"
        elif None in own and (not beside or all(value is None for value in own)):
            wanted = "exception 0B"
        else:
            no_value = 0xFFFF if fill is None else fill
            registers = [
                no_value if values.get(place, fill) is None else values.get(place, fill) for place in places
            ]
            wanted = struct.pack(f">{len(registers)}H", *registers).hex()
        assert panel.read(first, len(places)) == wanted


def test_fill_and_gaps_exclude_each_other():
    with pytest.raises(ValueError, match="`fill: 0` covers the gaps too"):
        ServedDeviceSettings(link="hmi", gaps="zero", fill=0)
    assert ServedDeviceSettings(link="hmi", fill=3, bad_block="point").blocks() == BlockRules(False, 3, True)
