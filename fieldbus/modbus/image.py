"""The registers that we serve: one unit's points as a master sees them.

Rules:

* Only addresses that a point has exist; touching any other is exception 02. (`BlockRules` fill the
  others, for clients that read one long block.)
* A read that touches a point whose source is bad, or which never had a value, is answered with
  exception 0B, unless the point's `on_bad` or the `BlockRules` say otherwise.
* A master writes a point whole or not at all: half a float, or a range that ends inside a string, is
  exception 02, and so is a point whose `access` does not say that it may be written. A value that the
  point cannot take (NaN, out of range) is 04: V1.1b3 reserves 03 for the structure of the request.
* A write is one act: everything is checked before the first register changes, and all registers of a
  point arrive as one value.
* Flags are part of their word: what becomes of the word becomes of them. A master that writes the word
  writes all its flags, and is told of as having done so.
* The registers of a point whose power of ten stands in another point are made with that point's present
  value, and a master's write is read with it. What the point is remains its engineering value: when the
  factor changes, the registers are made anew from it. While the factor has no value, or where the value
  does not fit with it, the point is bad; a write by a master is then refused (04).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fieldbus.errors import ConversionError
from fieldbus.modbus import pdu
from fieldbus.modbus.converters import power_of_ten
from fieldbus.modbus.formats.composite import splitter
from fieldbus.modbus.register_types import Table, wire_arrangement
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.table_image import BAD, GOOD, BlockRules, TableImage
from fieldbus.model import Kind, Point, Quality, Sample, Value

Written = tuple[RegisterPoint, Value]


class UnitImage:
    """The served points of one unit id."""

    def __init__(self, points: Iterable[RegisterPoint], rules: BlockRules | None = None) -> None:
        by_table: dict[Table, list[RegisterPoint]] = {}
        self._served: dict[Point, RegisterPoint] = {}
        self._is_bad: dict[RegisterPoint, bool] = {}
        self._had_value: set[RegisterPoint] = set()
        self._nan: dict[RegisterPoint, bytes] = {}
        self._encode: dict[tuple[RegisterPoint, int | None], Callable[[Value], bytes]] = {}
        """By point and, of those with a factor, its present exponent."""
        self._split: dict[RegisterPoint, Callable[[Value], list[bytes]]] = {}
        """Of points of several parts."""
        self._quick: dict[Point, tuple[Callable[[Value], bytes], bytearray, slice]] = {}
        """Of points of `_quick_places` that are good: encoder, registers of the table, and place in them. The
        next good sample needs nothing else."""
        self._flags: dict[RegisterPoint, list[RegisterPoint]] = {}
        self._scaled_by: dict[RegisterPoint, list[RegisterPoint]] = {}
        """Of each factor: the points that it scales."""
        self._wanted: dict[RegisterPoint, Value] = {}
        """Engineering values of points with a factor that have one."""
        for point in points:
            self._served[point.point] = point
            if point.word is not None:
                self._flags.setdefault(point.word, []).append(point)
                continue
            by_table.setdefault(point.table, []).append(point)
            self._is_bad[point] = True
            if point.factor is not None:
                self._scaled_by.setdefault(point.factor, []).append(point)
            if point.on_bad.action == "nan" and has_nan(point):
                self._nan[point] = nan_bytes(point)
        self._rules = rules = rules or BlockRules()
        self._tables = {table: TableImage(members, rules) for table, members in by_table.items()}
        self._quick_places = {point: self._slice_of(point) for point in self._is_bad if self._is_quick(point)}
        for point in self._is_bad:
            self._put_no_value(point)
        for point in self._is_bad:
            if point.initial is not None:
                try:
                    self._store(point, point.initial)
                except ConversionError:
                    continue  # the configuration is refused for it

    def update(self, point: Point, sample: Sample) -> None:
        """Take a routed sample.

        Raises:
            ConversionError: the value cannot be expressed; the point is bad from now on.
        """
        quick = self._quick.get(point)
        if quick is not None:
            value, quality, _, _ = sample
            if value is not None and not isinstance(value, str) and quality is not Quality.BAD:
                encode, data, place = quick
                if point.floor <= value <= point.ceiling:
                    try:
                        data[place] = encode(value)
                    except ConversionError:
                        self._spoil(self._served[point])
                        raise
                    return
        served = self._served[point]
        if served.word is not None:
            raise ConversionError(f"{point.address} is written with {served.word.point.address}")
        if sample.quality is Quality.BAD or sample.value is None:
            self._spoil(served)
            return
        try:
            if (refusal := point.refusal(sample.value)) is not None:
                raise ConversionError(refusal)
            self._store(served, sample.value)
        except ConversionError:
            self._spoil(served)
            raise

    def answer(self, request_pdu: bytes) -> tuple[bytes, list[Written]]:
        """Return the response PDU to a request PDU, and the points that the request wrote."""
        request = pdu.parse_request(request_pdu)
        function_code = request_pdu[0]
        written: list[Written] = []
        if isinstance(request, int):
            return pdu.exception_response(function_code, request), written
        if isinstance(request, pdu.ReadRequest):
            response = self._read(request)
        elif isinstance(request, pdu.WriteRequest):
            response = self._write(request, written) or request_pdu[:5]
        elif isinstance(request, pdu.MaskWriteRequest):
            response = self._mask_write(request, written) or request_pdu
        else:
            response = self._read_write(request, written)
        if isinstance(response, int):
            return pdu.exception_response(function_code, response), written
        return response, written

    def _read(self, request: pdu.ReadRequest) -> bytes | int:
        table = self._tables.get(request.table)
        if table is None or not table.contains(request.address, request.count):
            return pdu.ILLEGAL_DATA_ADDRESS
        if table.is_refused(request.address, request.count):
            return pdu.GATEWAY_TARGET_FAILED_TO_RESPOND
        data = table.read(request.address, request.count)
        return bytes((request.function_code, len(data))) + data

    def _write(self, request: pdu.WriteRequest, written: list[Written]) -> int | None:
        """Do a write; return None, or the exception code."""
        touched = self._writable(request.table, request.address, request.count)
        if touched is None:
            return pdu.ILLEGAL_DATA_ADDRESS
        decoded: list[Written] = []
        flags: list[Written] = []
        for point in touched:
            offset = point.address - request.address
            value: Value | None = None
            if not request.table.is_bits:
                data = request.data[2 * offset : 2 * (offset + point.count)]
                value, flaw = point.decode(data, self._exponent_in(point, request))
                flags += [(flag, bool(flag.decode(data)[0])) for flag in self._flags.get(point, ())]
            else:
                value, flaw = bool(request.data[offset >> 3] >> (offset & 7) & 1), None
            if flaw is not None or value is None or point.point.refusal(value):
                return pdu.SERVER_DEVICE_FAILURE
            decoded.append((point, value))
        for point, value in decoded:
            # The very bytes, not our own form of the value: masters verify a write by reading it.
            offset = point.address - request.address
            if request.table.is_bits:
                self._put_bytes(point, bytes((request.data[offset >> 3] >> (offset & 7) & 1,)))
            else:
                self._put_bytes(point, request.data[2 * offset : 2 * (offset + point.count)])
            self._had_value.add(point)
            self._mark(point, is_bad=False)
            if point.factor is not None:
                self._wanted[point] = value
        for point in touched:
            for scaled in self._scaled_by.get(point, ()):
                if scaled not in touched:
                    self._scale(scaled)
        written.extend(decoded)
        written.extend(flags)
        return None

    def _mask_write(self, request: pdu.MaskWriteRequest, written: list[Written]) -> int | None:
        if self._writable(Table.HOLDING, request.address, 1) is None:
            return pdu.ILLEGAL_DATA_ADDRESS
        table = self._tables[Table.HOLDING]
        if self._has_bad(table, request.address):
            return pdu.GATEWAY_TARGET_FAILED_TO_RESPOND  # it would keep bits that nobody knows
        old = int.from_bytes(table.read(request.address, 1), "big")
        new = old & request.and_mask | request.or_mask & ~request.and_mask & 0xFFFF
        whole = pdu.WriteRequest(22, Table.HOLDING, request.address, 1, new.to_bytes(2, "big"))
        return self._write(whole, written)

    def _read_write(self, request: pdu.ReadWriteRequest, written: list[Written]) -> bytes | int:
        table = self._tables.get(Table.HOLDING)
        if table is None or not table.contains(request.read.address, request.read.count):
            return pdu.ILLEGAL_DATA_ADDRESS
        # What the write gives a value may be bad now; all else must be good before anything is done.
        overwritten = range(request.write.address, request.write.address + request.write.count)
        read = range(request.read.address, request.read.address + request.read.count)
        others = [address for address in read if address not in overwritten]
        needs_all = len(others) == len(read) and table.is_refused(read.start, len(read))
        for address in others:
            if self._has_bad(table, address) and (needs_all or not self._rules.bad_points_read):
                writable = self._writable(Table.HOLDING, request.write.address, request.write.count)
                return pdu.ILLEGAL_DATA_ADDRESS if writable is None else pdu.GATEWAY_TARGET_FAILED_TO_RESPOND
        return self._write(request.write, written) or self._read(request.read)

    def _writable(self, name: Table, address: int, count: int) -> list[RegisterPoint] | None:
        """Return the points in a range if a master may write exactly that range, else None."""
        table = self._tables.get(name)
        if table is None or not table.contains(address, count):
            return None
        touched: dict[RegisterPoint, None] = {}
        for index in range(address - table.start, address - table.start + count):
            if not (0 <= index < len(table.owners) and table.owners[index]):
                return None
            for point in table.owners[index]:
                touched[point] = None
        for point in touched:
            is_whole = address <= point.address and point.end <= address + count
            if not is_whole or not point.is_open_to_masters:
                return None
        return list(touched)

    def _store(self, served: RegisterPoint, value: Value) -> None:
        if served.factor is not None:
            self._wanted[served] = value
            if self._exponent(served) is None:
                self._show_bad(served)  # until the factor comes
                return
        self._put(served, value)
        self._had_value.add(served)
        self._mark(served, is_bad=False)
        place = self._quick_places.get(served)
        if place is not None:
            self._quick[served.point] = self._encode[served, None], self._tables[served.table].data, place
        for scaled in self._scaled_by.get(served, ()):
            self._scale(scaled)

    def _is_quick(self, served: RegisterPoint) -> bool:
        """Return whether a good number changes the registers of a good point and nothing else."""
        has_registers = not (served.parts or served.table.is_bits) and served.low_bit is None
        is_number = served.point.kind is not Kind.STRING
        return has_registers and is_number and served.factor is None and served not in self._scaled_by

    def _slice_of(self, served: RegisterPoint) -> slice:
        start = self._tables[served.table].start
        return slice(2 * (served.address - start), 2 * (served.end - start))

    def _spoil(self, served: RegisterPoint) -> None:
        """Forget the value of a point."""
        self._wanted.pop(served, None)
        self._show_bad(served)

    def _show_bad(self, served: RegisterPoint) -> None:
        """Let masters see, as the point's `on_bad` wants it, that there is no value."""
        action = served.on_bad.action
        is_shown = action == "hold" and served in self._had_value
        if action == "nan" and served in self._nan:
            self._put_bytes(served, self._nan[served])
            is_shown = True
        elif action == "value" and served.on_bad.value is not None:
            is_shown = self._can_put(served, served.on_bad.value)
        if not is_shown:
            self._put_no_value(served)
        self._mark(served, is_bad=not is_shown)
        for scaled in self._scaled_by.get(served, ()):
            self._scale(scaled)

    def _scale(self, served: RegisterPoint) -> None:
        """Make the registers of a point anew, because its factor changed."""
        value = self._wanted.get(served)
        if value is not None and self._can_put(served, value):
            self._had_value.add(served)
            self._mark(served, is_bad=False)
        elif value is not None or not self._is_bad[served]:
            self._show_bad(served)  # what is shown instead of a value is scaled as well

    def _can_put(self, served: RegisterPoint, value: Value) -> bool:
        try:
            self._put(served, value)
        except ConversionError:
            return False
        return True

    def _exponent(self, served: RegisterPoint) -> int | None:
        """Return the present power of ten of a point; None if it has no factor, or that has no value."""
        factor = served.factor
        if factor is None or self._is_bad.get(factor, True):
            return None
        table = self._tables[factor.table]
        return power_of_ten(factor.decode(table.read(factor.address, factor.count))[0])

    def _exponent_in(self, served: RegisterPoint, request: pdu.WriteRequest) -> int | None:
        """Return the power of ten of a point once `request` is done."""
        factor = served.factor
        if factor is None:
            return None
        offset = factor.address - request.address
        if offset >= 0 and offset + factor.count <= request.count:
            return power_of_ten(factor.decode(request.data[2 * offset : 2 * (offset + factor.count)])[0])
        return self._exponent(served)

    def _put(self, served: RegisterPoint, value: Value) -> None:
        table = self._tables[served.table]
        first = served.address - table.start
        if table.is_bits:
            table.data[first] = served.encode_bit(value)
            return
        if served.parts:
            split = self._split.get(served)
            if split is None:
                split = self._split[served] = splitter(served)
            for piece, registers in zip(served.pieces, split(value), strict=True):
                self._put_field(piece, int.from_bytes(registers, "big"))
            return
        key = served, self._exponent(served)
        encode = self._encode.get(key)
        if encode is None:
            encode = self._encode[key] = served.encoder(key[1])
        data = encode(value)
        if served.low_bit is not None:
            self._put_field(served, int.from_bytes(data, "big"))
        else:
            table.data[2 * first : 2 * first + len(data)] = data

    def _put_field(self, served: RegisterPoint, bits: int) -> None:
        """Set the bits of a point; others live in the same registers, and keep theirs."""
        table = self._tables[served.table]
        place = self._slice_of(served)
        old = int.from_bytes(table.data[place], "big")
        table.data[place] = (old & ~served.bit_mask | bits).to_bytes(served.count * 2, "big")

    def _put_bytes(self, served: RegisterPoint, data: bytes) -> None:
        table = self._tables[served.table]
        first = (served.address - table.start) * (1 if table.is_bits else 2)
        table.data[first : first + len(data)] = data

    def _mark(self, served: RegisterPoint, *, is_bad: bool) -> None:
        if self._is_bad[served] == is_bad:
            return
        self._is_bad[served] = is_bad
        if is_bad:
            self._quick.pop(served.point, None)
        table = self._tables[served.table]
        for index in table.indexes(served):
            bad = [self._is_bad[owner] for owner in table.owners[index]]
            is_bad = all(bad) if self._rules.bad_points_read else any(bad)
            table.state[index] = BAD if is_bad else GOOD

    def _has_bad(self, table: TableImage, address: int) -> bool:
        """Return whether an address is, or is also, that of a bad point."""
        index = address - table.start
        is_inside = 0 <= index < len(table.owners)
        return is_inside and any(self._is_bad[owner] for owner in table.owners[index])

    def _put_no_value(self, served: RegisterPoint) -> None:
        """Put into the registers of a bad point what it reads as beside good ones."""
        if not self._rules.bad_points_read:
            return
        for piece in served.parts:
            self._put_no_value(piece.place)
        if served.parts:
            return
        if served.table.is_bits:
            self._put_bytes(served, b"\0")
        elif served.low_bit is not None:
            self._put_field(served, 0)
        elif has_nan(served):
            self._put_bytes(served, nan_bytes(served))
        else:
            self._put_bytes(served, self._rules.no_value.to_bytes(2, "big") * served.count)


def has_nan(served: RegisterPoint) -> bool:
    """Return whether there are registers that say "no value": NaN of a float, or an `invalid` raw value."""
    return served.low_bit is None and (served.type.is_float or bool(served.invalid))


def nan_bytes(served: RegisterPoint) -> bytes:
    """Return the registers that say "no value": NaN of a float, else the first `invalid` raw value.

    Raises:
        ConversionError: the type has no such value.
    """
    if not has_nan(served):
        raise ConversionError(f"{served.type} has no NaN: give the point an `invalid` raw value")
    if not served.invalid:
        return served.nan()
    raw = min(served.invalid).to_bytes(served.count * 2, "big")
    return wire_arrangement(served.order)(raw)
