"""Put deliberate faults into modules, one at a time, and see whether the tests notice.

    tools/mutate fieldbus/routing/router.py fieldbus/modbus/writing.py --faults 100 --minutes 20

Rules:

* A fault is small: a comparison is turned, a bound is moved by one, a `continue` becomes a `break`, `and`
  becomes `or`, a `not` is left out, `min` becomes `max`, a flag is inverted, a sum becomes a difference.
* Constants at the top of a module stay as they are: they are tuned, not right or wrong. So do annotations,
  docstrings, log lines and the texts of errors.
* Only the tests that reach the faulty line run, the fastest first, until one fails. A fault that makes them
  run longer than `--timeout` counts as noticed.
* The same seed chooses the same faults. The command stops when its time is over and reports what it did not
  try.
* The checkout does not change: faults are put into a copy.

Design: coverage.py measures once which test reaches which line; the result is kept in ``.cache/mutate``. A
fault is an edit of the text at a place that `ast` names, so that all other lines stay as they are.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "mutate"
FOLDERS = {
    "routing": ("routing", "gateway", "exchange"),
    "modbus": ("modbus",),
    "canbus": ("canbus",),
    "mqtt": ("mqtt", "exchange"),
    "durable": ("durable", "exchange"),
    "store": ("exchange",),
    "gateway": ("gateway", "exchange", "cli"),
}
"""Folder of the package to the folders of tests that may reach it."""
_TURNED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_SPELLED = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in", ast.And: "and", ast.Or: "or", ast.Add: "+",
    ast.Sub: "-",
}  # fmt: skip
_PLUGIN = """
import json, os, time
import coverage, pytest
_cov = coverage.Coverage(data_file=None, include=json.loads(os.environ["MUTATE_INCLUDE"]))
_took = {}
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    _cov.switch_context(item.nodeid)
    began = time.perf_counter()
    yield
    _took[item.nodeid] = time.perf_counter() - began
    _cov.switch_context("")
def pytest_sessionstart(session):
    _cov.start()
def pytest_sessionfinish(session):
    _cov.stop()
    data = _cov.get_data()
    found = {}
    for file in data.measured_files():
        lines = {}
        for line, contexts in data.contexts_by_lineno(file).items():
            lines[line] = [context for context in contexts if context]
        found[file] = lines
    with open(os.environ["MUTATE_OUT"], "w") as out:
        json.dump({"lines": found, "took": _took}, out)
"""


@dataclass(frozen=True)
class Fault:
    """One edit of a module's text."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str
    text: str
    """The line as it is."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: `{self.before}` → `{self.after}` in: {self.text.strip()}"


def faults_of(file: str) -> list[Fault]:
    """Return every fault that can be put into a module."""
    source = (ROOT / file).read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:
        # `ast` counts bytes.
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def at(node: ast.AST) -> tuple[int, int]:
        return (
            place(node.lineno, node.col_offset),  # type: ignore[attr-defined]
            place(node.end_lineno, node.end_col_offset),  # type: ignore[attr-defined]
        )

    def between(left: ast.AST, right: ast.AST, operator: type) -> tuple[int, int] | None:
        begin, end = at(left)[1], at(right)[0]
        word = _SPELLED[operator]
        found = source.find(word, begin, end)
        return None if found < 0 else (found, found + len(word))

    def edits() -> Iterator[tuple[tuple[int, int] | None, str]]:
        for node in _inside(ast.parse(source)):
            if isinstance(node, ast.Compare):
                operands = [node.left, *node.comparators]
                for index, operator in enumerate(node.ops):
                    yield (
                        between(operands[index], operands[index + 1], type(operator)),
                        _TURNED[type(operator)],
                    )
            elif isinstance(node, ast.BoolOp):
                other = "or" if isinstance(node.op, ast.And) else "and"
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield between(left, right, type(node.op)), other
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
                begin = at(node)[0]
                yield (begin, at(node.operand)[0]), ""
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
                other = "-" if isinstance(node.op, ast.Add) else "+"
                if not any(isinstance(side, ast.JoinedStr) for side in (node.left, node.right)):
                    yield between(node.left, node.right, type(node.op)), other
            elif isinstance(node, ast.Continue):
                yield at(node), "break"
            elif isinstance(node, ast.Break):
                yield at(node), "continue"
            elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
                yield at(node), str(not node.value)
            elif isinstance(node, ast.Constant) and isinstance(node.value, int):
                yield at(node), str(node.value + 1)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                swap = {"min": "max", "max": "min", "any": "all", "all": "any"}.get(node.func.id)
                if swap:
                    yield at(node.func), swap

    found = []
    for span, after in edits():
        if span is not None:
            line = source.count("\n", 0, span[0]) + 1
            found.append(Fault(file, line, *span, source[slice(*span)], after, lines[line - 1].rstrip("\n")))
    return found


def _inside(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield what functions consist of, without annotations, decorators and docstrings."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for default in (*node.args.defaults, *(item for item in node.args.kw_defaults if item)):
                yield from walk(default)
            for statement in node.body:
                yield from walk(statement)
        elif isinstance(node, ast.ClassDef):
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield from walk(statement)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from walk(node.value)
        elif (
            (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or isinstance(node, ast.Raise)
            or (isinstance(node, ast.Call) and _is_log(node))
        ):
            return
        else:
            yield node
            for child in ast.iter_child_nodes(node):
                yield from walk(child)

    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from walk(statement)


def _is_log(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "_LOG"


def copy_to(folder: Path) -> None:
    """Copy what tests need."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)


def environment(copy: Path, **more: str) -> dict[str, str]:
    """Return what the tests of a copy run in."""
    return {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", **more}


def pytest_command(*arguments: str) -> list[str]:
    """Return the command that runs tests."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def reach(
    copy: Path, modules: list[str], tests: list[str]
) -> tuple[dict[str, dict[int, list[str]]], dict[str, float]]:
    """Return which tests reach which line, and how long each takes."""
    digest = hashlib.sha256()
    for file in sorted([*(ROOT / "fieldbus").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]):
        digest.update(file.read_bytes())
    names = hashlib.sha256(json.dumps([modules, tests]).encode())
    kept = CACHE / f"{names.hexdigest()[:12]}-{digest.hexdigest()[:12]}.json"
    if not kept.exists():
        print(f"measuring which tests reach {', '.join(modules)} …", flush=True)
        (copy / "mutate_plugin.py").write_text(_PLUGIN)
        out = copy / "reach.json"
        include = json.dumps([str(copy / module) for module in modules])
        command = pytest_command("-p", "mutate_plugin", "-m", "not vcan and not alone and not long", *tests)
        done = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, check=False,
            env=environment(copy, MUTATE_INCLUDE=include, MUTATE_OUT=str(out)),
        )  # fmt: skip
        if not out.exists():
            sys.exit(f"the tests did not run:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        found = json.loads(out.read_text())
        prefix = f"{copy}{os.sep}"
        found["lines"] = {file.removeprefix(prefix): lines for file, lines in found["lines"].items()}
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    found = json.loads(kept.read_text())
    lines = {
        file: {int(line): tests for line, tests in by_line.items()}
        for file, by_line in found["lines"].items()
    }
    return lines, found["took"]


def is_killed(copy: Path, fault: Fault, tests: list[str], timeout_s: float) -> str | None:
    """Return what noticed a fault; None if nothing did."""
    target = copy / fault.file
    source = target.read_text(encoding="utf-8")
    target.write_text(source[: fault.start] + fault.after + source[fault.end :], encoding="utf-8")
    try:
        done = subprocess.run(
            pytest_command("-x", "--timeout", str(int(timeout_s)), *tests),
            cwd=copy, env=environment(copy), capture_output=True, text=True, check=False,
            timeout=timeout_s + 10,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "it takes too long"
    finally:
        target.write_text(source, encoding="utf-8")
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else f"exit {done.returncode}"


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="tools/mutate", description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="fieldbus/…/….py")
    parser.add_argument("--faults", type=int, default=20, help="how many to try, over all modules (20)")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="end after so long, beside what the measuring takes (20)"
    )
    parser.add_argument("--seed", type=int, default=1, help="chooses the faults (1)")
    parser.add_argument(
        "--most-tests", type=int, default=40, help="run at most so many tests for a fault (40)"
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for the tests of one fault (60)")
    given = parser.parse_args()
    modules = [str(Path(name).resolve().relative_to(ROOT)) for name in given.modules]
    folders: dict[str, None] = {}
    for module in modules:
        for folder in FOLDERS.get(Path(module).parts[1], ()):
            folders[f"tests/{folder}"] = None
    chosen: list[Fault] = []
    dice = random.Random(given.seed)
    pools = [faults_of(module) for module in modules]
    for pool in pools:
        dice.shuffle(pool)
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        copy = Path(name)
        copy_to(copy)
        lines, took = reach(copy, modules, list(folders))
        while any(pools) and len(chosen) < given.faults:  # as many of each module
            for pool in pools:
                while pool:
                    fault = pool.pop()
                    if lines.get(fault.file, {}).get(fault.line):
                        chosen.append(fault)
                        break
        chosen = chosen[: given.faults]
        deadline_s = time.monotonic() + 60 * given.minutes
        survivors, killed = [], 0
        for number, fault in enumerate(chosen):
            if time.monotonic() > deadline_s:
                print(f"the minutes are over: {len(chosen) - number} faults were not tried")
                break
            tests = sorted(lines[fault.file][fault.line], key=lambda test: took.get(test, 0.0))[
                : given.most_tests
            ]
            found = is_killed(copy, fault, tests, given.timeout)
            if found is None:
                survivors.append(fault)
                print(f"SURVIVED {fault}", flush=True)
            else:
                killed += 1
                print(
                    f"killed   {fault.file}:{fault.line} `{fault.before}` → `{fault.after}` by {found}",
                    flush=True,
                )
    tried = killed + len(survivors)
    print(f"{killed} of {tried} faults were noticed")
    for fault in survivors:
        print(f"  survived: {fault}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
