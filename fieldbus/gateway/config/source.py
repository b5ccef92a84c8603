"""YAML as plain data, with the line and column of everything in it.

Rules:

* YAML 1.2: ``no`` is a word, ``012`` is twelve, ``0o14`` and ``0xC`` are numbers too.
* ``<<`` merges, as in YAML 1.1: keys of the mappings that it names, where the mapping has none of its own.
* The files of others are hostile until read: at most 16 MiB, 64 levels, a million nodes however
  aliases are used, 400 digits; tags, duplicate keys, keys that are not text or numbers, and aliases inside of
  what they stand for are problems.

Design: ruamel.yaml composes the node tree, which has the marks; plain data and a table from path to
mark are made from it here, because its own round-trip types would leak into everything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fieldbus.errors import Problem
from fieldbus.text import well_formed

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 64
MAX_NODES = 1_000_000
MAX_DIGITS = 400

Path_ = tuple[str | int, ...]
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BEYOND_UNICODE = re.compile(r"\\U(?!000[0-9a-fA-F]|0010)[0-9a-fA-F]{8}")
_MERGE = "<<"
_SCALAR_TAGS = {"str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
_CONSTANTS: Mapping[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


class Mark(NamedTuple):
    """Where something stands; 1-based."""

    line: int
    column: int


@dataclass(slots=True)
class Source:
    """What a file says."""

    file: str
    """As it is shown."""
    data: Any = None
    marks: dict[Path_, Mark] = field(default_factory=dict)
    """Path to the place of its key (in a mapping) or item (in a list)."""
    values: dict[Path_, Mark] = field(default_factory=dict)
    """Path to the place of its value."""
    problems: list[Problem] = field(default_factory=list)

    def problem(
        self, path: Sequence[str | int], message: str, hint: str | None = None, *,
        at_key: bool = False, is_warning: bool = False,
    ) -> Problem:  # fmt: skip
        """Return a problem at a path, or at the nearest thing above it that exists."""
        whole = tuple(path)
        place = whole
        while True:
            mark = (self.marks if at_key else self.values).get(place) or self.marks.get(place)
            if mark is not None or not place:
                break
            place, at_key = place[:-1], True
        line, column = mark or Mark(1, 1)
        return Problem(self.file, line, column, shown_path(whole), message, hint, is_warning)


def shown_path(path: Sequence[str | int]) -> str:
    """Return a path as people read it: ``devices.press.points.speed``, ``routes[2].from``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def read_bytes(path: Path, shown: str) -> bytes | Problem:
    """Return what is in a file, or why it cannot be had."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            return Problem(shown, 0, 0, "", f"the file has {size} bytes, more than {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        return Problem(shown, 0, 0, "", f"cannot be read: {reason[:1].lower()}{reason[1:]}")


def read_text(path: Path, shown: str) -> str | Problem:
    """Return the text of a file, or why it cannot be had."""
    data = read_bytes(path, shown)
    if isinstance(data, Problem):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return Problem(shown, line, 0, "", "not UTF-8 text", "save it as UTF-8")


def read_yaml(path: Path, shown: str) -> Source:
    """Read a YAML file; what is wrong with it is in `problems`."""
    text = read_text(path, shown)
    if isinstance(text, Problem):
        return Source(shown, problems=[text])
    return parse_yaml(text, shown)


def parse_yaml(text: str, shown: str) -> Source:
    """Read YAML text; what is wrong with it is in `problems`."""
    source = Source(shown)
    try:
        yaml = YAML(typ="rt", pure=True)
        yaml.Composer = _Composer
        nodes = list(yaml.compose_all(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        parts = [error.context, error.problem]
        message = ", ".join(str(part) for part in parts if part) or "not YAML"
        source.problems.append(Problem(shown, line, column, "", f"not YAML: {message}"))
        return source
    except OverflowError:  # of chr(): what else a file can hold overflows nothing
        found = _BEYOND_UNICODE.search(text)
        before = text[: found.start()] if found else ""
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        what = found[0] if found else "an escape"
        source.problems.append(Problem(shown, line, column, "", f"not YAML: {what} is no Unicode character"))
        return source
    except (YAMLError, RecursionError, ValueError) as error:
        message = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        source.problems.append(Problem(shown, 0, 0, "", f"not YAML: {message.splitlines()[0]}"))
        return source
    if len(nodes) != 1:
        what = "the file is empty" if not nodes else "the file has more than one document"
        source.problems.append(Problem(shown, 1, 1, "", what))
        return source
    reader = _Reader(source)
    source.data = reader.plain(nodes[0], (), 0)
    return source


class _Composer(Composer):
    """Makes nodes, and stops where they are nested too deeply, before all the rest is read."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node and what is in it."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.parser.peek_event().start_mark
            raise ComposerError(None, None, f"nested too deeply, more than {MAX_DEPTH} levels", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Reader:
    """Turns nodes into plain data and marks."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._count = 0
        self._is_over = False
        self._open: set[int] = set()
        """Nodes inside of which we are."""

    def plain(self, node: Node | None, path: Path_, depth: int) -> Any:
        if node is None:
            return None
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH:
            if not self._is_over:
                what = "nested too deeply" if depth > MAX_DEPTH else "aliases make it too large"
                self._say(node, path, what)
            self._is_over = True
            return None
        if id(node) in self._open:
            self._say(node, path, "an alias stands inside of what it names")
            return None
        self._source.values[path] = _mark(node)
        if path and path not in self._source.marks:
            self._source.marks[path] = _mark(node)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self._say(node, path, f"the tag {node.tag} is not allowed")
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self.plain(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
            return self._mapping(cast("MappingNode", node), path, depth)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode, path: Path_, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                merged.append(value_node)
                continue
            key = self._scalar(key_node, path) if isinstance(key_node, ScalarNode) else None
            if key is None or isinstance(key, float):
                self._say(key_node, path, "a key is a word or a whole number")
                continue
            if key in found:
                first = self._source.marks[*path, key].line
                self._say(key_node, (*path, key), f"'{key}' stands in line {first} already")
                continue
            self._source.marks[*path, key] = _mark(key_node)
            found[key] = self.plain(value_node, (*path, key), depth + 1)
        for value_node in merged:
            self._merge(value_node, found, path, depth)
        return found

    def _merge(self, node: Node, found: dict[Any, Any], path: Path_, depth: int) -> None:
        """Take over what a mapping has and lacks, of one mapping or several; of two the first one wins."""
        self._count += 1
        if isinstance(node, SequenceNode) and depth <= MAX_DEPTH:
            for item in node.value:
                self._merge(item, found, path, depth + 1)
            return
        if not isinstance(node, MappingNode) or id(node) in self._open:
            self._say(node, path, "`<<` names a mapping, or a list of mappings, that is written elsewhere")
            return
        self._open.add(id(node))
        more: list[Node] = []
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                more.append(value_node)
                continue
            key = self._scalar(key_node, path) if isinstance(key_node, ScalarNode) else None
            if key is None or isinstance(key, float) or key in found:
                continue  # what is wrong with it is said where it stands
            self._source.marks[*path, key] = _mark(key_node)
            found[key] = self.plain(value_node, (*path, key), depth + 1)
        for item in more:
            self._merge(item, found, path, depth + 1)
        self._open.discard(id(node))

    def _scalar(self, node: ScalarNode, path: Path_) -> Any:
        text = str(node.value)
        if not text.isascii() and well_formed(text) != text:
            self._say(node, path, "half a character (a surrogate, D800 to DFFF) is no text")
            return well_formed(text)
        if node.style in ("'", '"', "|", ">") or node.tag == "tag:yaml.org,2002:str":
            return text
        if str(node.tag).removeprefix("tag:yaml.org,2002:") not in _SCALAR_TAGS:
            self._say(node, path, f"the tag {node.tag} is not allowed")
            return None
        return plain_scalar(text)

    def _say(self, node: Node, path: Path_, message: str) -> None:
        line, column = _mark(node)
        self._source.problems.append(Problem(self._source.file, line, column, shown_path(path), message))


def _is_merge(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == _MERGE and node.style is None


def _mark(node: Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


def plain_scalar(text: str) -> Any:
    """Return what an unquoted YAML 1.2 scalar means (core schema)."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) >= MAX_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _OCTAL.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
