"""What a response changed: the hot path of polling.

Rules:

* A payload equal to the last one costs one comparison of bytes, whatever the number of points.
* A payload that differs is unpacked with precompiled `struct`s; only fields that differ are
  converted.
* Points may share registers (sixteen flags in a status word, two readings of one register).
* A point whose power of ten stands in another register changes when either of the two changes. Both
  are in the block: a value is never scaled by the factor of another moment. The same goes for a point of
  several parts.

Design: a `struct` cannot describe overlapping fields, so the distinct fields (offset, code) of a
block are laid out in as many layers as overlap demands; nearly always that is one. Points refer to
fields by index, and converting is per point.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from operator import itemgetter, ne
from typing import Any

from fieldbus.modbus.converters import Convert, Decoded
from fieldbus.modbus.formats.composite import joined_decoder
from fieldbus.modbus.planner import Block
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.model import NO_FLAWS, Batch, Flaw, Group, Value

Unpack = Callable[[bytes], tuple[object, ...]]


class BlockReader:
    """Turns the payloads of one block into batches; remembers the last one."""

    __slots__ = (
        "_convert",
        "_flaws",
        "_is_plain",
        "_joined",
        "_payload",
        "_readers",
        "_scaled",
        "_tokens",
        "_unpack",
        "_values",
        "group",
    )

    def __init__(self, block: Block, group: Group) -> None:
        """Lay out the fields of a block.

        Raises:
            ValueError: a point's factor is not in the block.
        """
        self.group = group
        fields: dict[tuple[int, str], int] = {}
        readers: list[list[int]] = []
        self._convert: list[Convert | None] = []
        for index, member in enumerate(block.points):
            if member.parts:
                self._convert.append(None)
                continue
            beside = member.factor or member.presence
            is_direct = block.table.is_bits or beside is not None
            self._convert.append(None if is_direct else member.decoder())
            place = fields.setdefault(_field(block, member), len(fields))
            if place == len(readers):
                readers.append([])
            if beside is None:
                readers[place].append(index)
        self._readers = readers
        self._scaled: list[tuple[int, int, int, Callable[[object, object], Decoded]]] = []
        """Of each point beside whose field another counts: its index, its field, that one, the converter."""
        for index, member in enumerate(block.points):
            beside = member.factor or member.presence
            if beside is not None:
                own = fields[_field(block, member)]
                place = fields.setdefault(_field(block, beside), len(fields))
                if place == len(readers):
                    readers.append([])
                convert = member.present_decoder() if member.factor is None else member.scaled_decoder()
                self._scaled.append((index, own, place, convert))
        self._joined: list[tuple[int, Callable[[Sequence[object]], Any], Callable[[Any], Decoded]]] = []
        """Of each point of several parts: its index, what takes their fields, and the converter."""
        for index, member in enumerate(block.points):
            if member.parts:
                places = [fields.setdefault(_field(block, piece), len(fields)) for piece in member.pieces]
                readers.extend([] for _ in range(len(readers), len(fields)))
                self._joined.append((index, itemgetter(*places), joined_decoder(member)))
        self._is_plain = readers == [[index] for index in range(len(self._convert))] and not any(
            self._convert
        )
        """Whether what is unpacked is the values, one by one."""
        if block.table.is_bits:
            self._unpack: Unpack = _bit_unpacker([offset for offset, _ in fields])
        else:
            self._unpack = _register_unpacker(list(fields), block.count * block.width // 8)
        self.forget()

    def forget(self) -> None:
        """Take the next payload as all new: what the group last said was not from a payload."""
        self._payload: bytes | None = None
        self._tokens: Sequence[object] = ()
        self._values: Sequence[Value | None] = ()
        self._flaws: Mapping[int, Flaw] = NO_FLAWS

    def read(self, payload: bytes, time_ns: int, at_s: float) -> Batch:
        """Return the batch that a payload amounts to.

        Args:
            payload: the data bytes of the response, exactly as many as the block asked for.
            time_ns: when it was received, wall clock.
            at_s: the same on the monotonic clock.
        """
        if payload == self._payload:
            return Batch(self.group, time_ns, at_s, self._values, self._flaws, ())
        tokens = self._unpack(payload)
        if self._is_plain and self._payload is not None:
            changed = list(compress(self.group.everything, map(ne, tokens, self._tokens)))
            self._payload, self._tokens, self._values = payload, tokens, tokens  # type: ignore[assignment]
            return Batch(self.group, time_ns, at_s, self._values, NO_FLAWS, changed)
        changed = self._convert_changed(tokens)
        self._payload = payload
        return Batch(self.group, time_ns, at_s, self._values, self._flaws, changed)

    def _convert_changed(self, tokens: Sequence[object]) -> list[int]:
        """Convert the fields that differ into new values and flaws; return the points that changed."""
        was_read = self._payload is not None
        fields: Iterable[int] = range(len(tokens))
        values: list[Value | None] = [None] * len(self._convert)
        if was_read:
            values = list(self._values)
            fields = compress(fields, map(ne, tokens, self._tokens))
        flaws = dict(self._flaws)
        changed: list[int] = []
        for field in fields:
            token = tokens[field]
            for index in self._readers[field]:
                convert = self._convert[index]
                value: Value | None = token  # type: ignore[assignment] # if there is nothing to convert
                flaw: Flaw | None = None
                if convert is not None:
                    value, flaw = convert(token)
                if was_read and value == values[index] and flaw == flaws.get(index):
                    continue  # another bit of the same register changed
                values[index] = value
                if flaw is not None:
                    flaws[index] = flaw
                else:
                    flaws.pop(index, None)
                changed.append(index)
        before = self._tokens
        for index, own, factor, convert_scaled in self._scaled:
            if was_read and tokens[own] == before[own] and tokens[factor] == before[factor]:
                continue
            value, flaw = convert_scaled(tokens[own], tokens[factor])
            if was_read and value == values[index] and flaw == flaws.get(index):
                continue
            values[index] = value
            if flaw is not None:
                flaws[index] = flaw
            else:
                flaws.pop(index, None)
            changed.append(index)
        for index, take, convert_joined in self._joined:
            own_tokens = take(tokens)
            if was_read and own_tokens == take(before):
                continue
            value, flaw = convert_joined(own_tokens)
            if was_read and value == values[index] and flaw == flaws.get(index):
                continue
            values[index] = value
            if flaw is not None:
                flaws[index] = flaw
            else:
                flaws.pop(index, None)
            changed.append(index)
        self._tokens, self._values, self._flaws = tokens, values, flaws
        return changed


def _field(block: Block, member: RegisterPoint) -> tuple[int, str]:
    """Return where a point lies in the payload (byte, or bit), and its code."""
    is_inside = block.address <= member.address and member.end <= block.address + block.count
    if member.table is not block.table or not is_inside:
        raise ValueError(f"{member.point.address} is outside the block {block.name}")
    if block.table.is_bits:
        return member.address - block.address, "bit"
    return (member.address - block.address) * block.width // 8, member.struct_code


def _bit_unpacker(offsets: Sequence[int]) -> Unpack:
    places = [(offset >> 3, 1 << (offset & 7)) for offset in offsets]
    return lambda payload: tuple([payload[byte] & mask != 0 for byte, mask in places])


def _register_unpacker(fields: Sequence[tuple[int, str]], size: int) -> Unpack:
    layers: list[list[int]] = []
    ends: list[int] = []
    for index in sorted(range(len(fields)), key=lambda index: fields[index][0]):
        offset, code = fields[index]
        layer = next((place for place, end in enumerate(ends) if end <= offset), len(ends))
        if layer == len(ends):
            layers.append([])
            ends.append(0)
        layers[layer].append(index)
        ends[layer] = offset + struct.calcsize(">" + code)
    structs = []
    for members in layers:
        code, position = ">", 0
        for index in members:
            offset, item = fields[index]
            code += f"{offset - position}x{item}" if offset > position else item
            position = offset + struct.calcsize(">" + item)
        structs.append(struct.Struct(code + f"{size - position}x"))
    order = [index for members in layers for index in members]
    if len(structs) == 1 and order == sorted(order):
        return structs[0].unpack
    rank = {index: place for place, index in enumerate(order)}
    places = [rank[index] for index in range(len(fields))]

    def unpack(payload: bytes) -> tuple[object, ...]:
        flat: list[object] = []
        for layer in structs:
            flat.extend(layer.unpack(payload))
        return tuple([flat[place] for place in places])

    return unpack
