"""The local door of a running gateway: programs on this machine see its values through it.

Layout: a TCP port on loopback, chosen by the system; port and a random token stand in
``<data_dir>/gateway.json``, which only the gateway's user can read. A client sends the token and a
newline; it gets JSON lines::

    {"gateway": "press-line", "points": [{"point": "press.temperature", "value": 72.5, …}, …]}

the first with all points, then every `PERIOD_S` those that were acquired since. A client that sends a JSON
object behind the token, on the same line, asks for something, and gets one line:

=======================================================  ===================================================
``{"do": "write", "point": …, "value": …, …}``           an answer, ``{"point", "value", "outcome", …}``
``{"do": "write", "values": {POINT: …, …}, …}``          ``{"answers": […]}``, one for each point; points of
                                                         one group are written together or not at all
``{"do": "reload"}``                                     ``{"ok": …, "text": …, "problems": […]}``
``{"do": "health"}``                                     what `health` describes
``{"do": "read", "points": […], "timeout_s": …}``        ``{"ok", "points": [{"point", "value", …}, …]}``
=======================================================  ===================================================

To write there are also ``mode`` (write, arm, execute) and ``expires_s``, after which it is not done any more.

Rules:

* Who can read the token is the actor ``local``; what it may write, `access` says. A client that does not know
  the token, or does not read, is dropped.
* The file is looked after once a second: if it, or the whole data folder, was deleted or replaced, it is made
  anew, and that is logged.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from fieldbus.durable.files import make_folder, read_own, replace_own
from fieldbus.errors import ConfigError, LinkDownError, os_reason
from fieldbus.gateway import door_reads
from fieldbus.gateway.commands.access import LOCAL
from fieldbus.gateway.commands.command import DEFAULT_EXPIRY_S, LONGEST_EXPIRY_S, MODES, Command
from fieldbus.gateway.commands.desk import LONGEST_ADDRESS
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.sole_use import SoleUse
from fieldbus.model import Batch, Group, Point, Quality, Reason, Sample
from fieldbus.sample_json import sample_object

PERIOD_S = 0.25
MAX_CLIENTS = 16
FILE_NAME = "gateway.json"
LOOK_S = 1.0
_MAX_REQUEST = 1024 * 1024
_MAX_LINE = 64 * 1024 * 1024
_LOG = logging.getLogger("fieldbus")

Told = dict[Group | Point, Batch | Sample | None]
"""What a watcher has been shown last."""


class ControlServer:
    """Serves the values of a gateway to local programs."""

    def __init__(
        self,
        gateway: Gateway,
        reload: Callable[[], Awaitable[str]] | None = None,
        locks: SoleUse | None = None,
    ) -> None:
        """Take what is served.

        Args:
            gateway: whose values.
            reload: loads the configuration anew; it may raise `ConfigError`.
            locks: by which others recognise that the gateway runs; looked after together with the door.
        """
        self._locks = locks
        self._gateway = gateway
        self._reload = reload
        self._token = secrets.token_urlsafe(24)
        self._config = str(gateway.plant.file.resolve())
        self._file = gateway.plant.data_dir / FILE_NAME
        self._clients = 0
        self._port = 0
        self._stat: os.stat_result | None = None
        """The file that we wrote."""
        self._trouble: str | None = None
        """Why it could not be written last."""

    async def run(self) -> None:
        """Serve until cancelled. A folder that cannot be written costs this door, not the gateway."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_MAX_REQUEST)
        self._port = server.sockets[0].getsockname()[1]
        self._open()
        try:
            async with server:
                while True:
                    await asyncio.sleep(LOOK_S)
                    self._look_after()
        finally:
            self._forget()

    def _open(self) -> None:
        """Write where the door is."""
        place = {"port": self._port, "token": self._token, "pid": os.getpid(), "config": self._config}
        try:
            make_folder(self._file.parent)
            replace_own(self._file, json.dumps(place).encode())
            self._stat = self._file.stat()
        except OSError as error:
            reason = os_reason(error)
            if reason != self._trouble:
                _LOG.warning("data_dir: cannot write %s (%s); `fieldbus watch` will not find this gateway",
                             self._file, reason)  # fmt: skip
            self._trouble = reason
        else:
            self._trouble = None

    def _look_after(self) -> None:
        """Make anew what somebody deleted."""
        for text in self._locks.refresh() if self._locks is not None else ():
            _LOG.warning("%s", text)
        try:
            is_ours = self._stat is not None and os.path.samestat(self._file.stat(), self._stat)
        except OSError:
            is_ours = False
        if not is_ours:
            if self._trouble is None:
                _LOG.warning("data_dir: %s was deleted or replaced; the gateway writes it again", self._file)
            self._open()

    def _forget(self) -> None:
        try:
            if json.loads(read_own(self._file)).get("token") == self._token:
                self._file.unlink()
        except (OSError, ValueError):
            return  # another gateway's by now, or gone

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5.0):
                said = (await reader.readline()).strip()
            token, _, request = said.partition(b" ")
            if self._clients >= MAX_CLIENTS or not hmac.compare_digest(token, self._token.encode()):
                return
            self._clients += 1
            try:
                if request:
                    answer = await self._answer(json.loads(request))
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
                else:
                    await self._stream(writer)
            finally:
                self._clients -= 1
        except (OSError, TimeoutError, ValueError, RuntimeError):
            return  # it has gone; uvloop has an error of its own for that
        except asyncio.CancelledError:
            return  # we end: a task that is cancelled here would be reported by asyncio as an error
        finally:
            writer.close()

    async def _answer(self, request: Any) -> dict[str, Any]:
        """Do what a client asks for."""
        what = request.get("do") if isinstance(request, dict) else None
        if what == "write":
            return await self._write(request)
        if what == "read":
            return await door_reads.answer(self._gateway, request)
        if what == "health":
            return self._gateway.health()
        if what == "reload" and self._reload is not None:
            try:
                return {"ok": True, "text": await self._reload(), "problems": []}
            except ConfigError as error:
                return {
                    "ok": False,
                    "text": "nothing was changed",
                    "problems": [str(problem) for problem in error.problems],
                }
        return {"ok": False, "text": f"unknown request {str(what)[:40]!r}", "problems": []}

    async def _write(self, request: Mapping[str, Any]) -> dict[str, Any]:
        mode, expires_s = request.get("mode", "write"), request.get("expires_s", DEFAULT_EXPIRY_S)
        is_number = isinstance(expires_s, int | float) and not isinstance(expires_s, bool)
        if mode not in MODES or not is_number or not 0 < expires_s <= LONGEST_EXPIRY_S:
            text = f"`mode` is {', '.join(MODES)}; `expires_s` at most {LONGEST_EXPIRY_S:.0f}"
            return {"ok": False, "text": text, "problems": []}
        values = request.get("values")
        if not isinstance(values, dict):
            command = self._command(request.get("point"), request.get("value"), mode, expires_s)
            return (await self._gateway.desk.execute(command)).object()
        plant = self._gateway.plant
        groups: dict[Hashable, list[str]] = {}
        for name in values:
            point = plant.points.get(name)
            groups.setdefault(name if point is None else plant.written_with(point), []).append(name)
        answers: dict[str, dict[str, Any]] = {}
        for names in groups.values():
            commands = [self._command(name, values[name], mode, expires_s) for name in names]
            if len(commands) == 1:
                found = [await self._gateway.desk.execute(commands[0])]
            else:
                found = await self._gateway.execute_together(commands)
            answers |= {name: answer.object() for name, answer in zip(names, found, strict=True)}
        return {"answers": [answers[name] for name in values]}

    def _command(self, point: object, value: object, mode: str, expires_s: float) -> Command:
        """Return a command of somebody on this machine."""
        if not isinstance(value, bool | int | float | str) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            value = str(value)
        now_ns = self._gateway.clock.wall_ns()
        return Command(
            "local",
            "this machine",
            LOCAL,
            str(point)[:LONGEST_ADDRESS],
            value,
            given_ns=now_ns,
            expires_ns=now_ns + round(expires_s * 1e9),
            mode=mode,
        )

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        told: Told = {}
        while True:
            points = snapshot(self._gateway, told)
            line = json.dumps({"gateway": self._gateway.plant.name, "points": points})
            writer.write(line.encode() + b"\n")
            async with asyncio.timeout(10.0):
                await writer.drain()
            await asyncio.sleep(PERIOD_S)


def snapshot(gateway: Gateway, told: Told) -> list[dict[str, Any]]:
    """Return the points that were acquired or written since `told`, and note them there.

    A point that is only written (a served register, a signal that we send) shows what it was given
    last.
    """
    gateway.refresh()
    points: list[dict[str, Any]] = []
    latest = gateway.router.latest
    acquired: set[Point] = set()
    for group in gateway.plant.groups:
        acquired.update(group.points)
        batch = latest.get(group)
        if group in told and told[group] is batch:
            continue
        told[group] = batch
        shown = batch or group.without_value(Reason.WAITING, 0, 0.0)
        points.extend(
            sample_object(point, shown.sample(index), names_point=True)
            for index, point in enumerate(group.points)
        )
    for edge in gateway.plant.edges:
        target = edge.target.point
        if target is None or target in acquired:
            continue
        sample = gateway.delivered.get(target)
        if target in told and told[target] is sample:
            continue
        told[target] = sample
        shown_sample = sample or Sample(None, Quality.BAD, Reason.WAITING, 0)
        points.append(sample_object(target, shown_sample, names_point=True))
    return points


async def ask(data_dir: Path, request: Mapping[str, Any], timeout_s: float = 30.0) -> dict[str, Any] | None:
    """Ask the gateway that runs with a data folder for something; None if none runs.

    Raises:
        LinkDownError: it does not answer.
    """
    try:
        place = json.loads(read_own(data_dir / FILE_NAME))
        reader, writer = await asyncio.open_connection("127.0.0.1", place["port"], limit=_MAX_LINE)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        writer.write(place["token"].encode() + b" " + json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(timeout_s):
            line = await reader.readline()
        answer: dict[str, Any] = json.loads(line)
    except (OSError, TimeoutError, ValueError):
        raise LinkDownError(f"the gateway that runs with {data_dir} does not answer") from None
    finally:
        writer.close()
    return answer


def running_pid(data_dir: Path) -> int | None:
    """Return the process id of the gateway that runs with a data folder, if there is one."""
    place = _running(data_dir)
    return None if place is None else int(place["pid"])


def running_config(data_dir: Path) -> str | None:
    """Return the configuration of the gateway that runs with a data folder, if there is one."""
    place = _running(data_dir)
    return None if place is None else str(place.get("config"))


def _running(data_dir: Path) -> dict[str, Any] | None:
    try:
        place: dict[str, Any] = json.loads(read_own(data_dir / FILE_NAME))
        with socket.create_connection(("127.0.0.1", place["port"]), timeout=1.0) as door:
            door.sendall(place["token"].encode() + b"\n")
            return place if door.recv(1) and place["pid"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def stream(data_dir: Path, config: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the lines of the gateway that runs a configuration with a data folder.

    Raises:
        LinkDownError: there is none, or it runs another one, or it has ended.
    """
    file = data_dir / FILE_NAME
    try:
        place = json.loads(read_own(file))
        other = place.get("config", config)
        if other != config:
            raise LinkDownError(f"the gateway that runs with the data folder {data_dir} runs {other}")
        reader, writer = await asyncio.open_connection("127.0.0.1", place["port"], limit=_MAX_LINE)
    except FileNotFoundError:
        raise LinkDownError(f"no gateway is running with the data folder {data_dir}") from None
    except (OSError, ValueError, KeyError) as error:
        raise LinkDownError(f"the gateway that wrote {file} is not there any more ({error})") from error
    try:
        writer.write(place["token"].encode() + b"\n")
        while line := await reader.readline():
            yield json.loads(line)
    except OSError:
        pass
    finally:
        writer.close()
    raise LinkDownError("the gateway has ended")
