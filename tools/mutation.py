"""Put deliberate faults into modules, one at a time, and see whether the tests notice.

    tools/mutate fieldbus/routing/router.py fieldbus/modbus/writing.py --faults 100 --minutes 20

Rules:

* A fault is small: a comparison is turned, a bound is moved by one, a `continue` becomes a `break`, `and`
  becomes `or`, a `not` is left out, `min` becomes `max`, a flag is inverted, a sum becomes a difference.
* Constants at the top of a module stay as they are: they are tuned, not right or wrong. So do annotations,
  docstrings, log lines and the texts of errors.
* Only the tests that reach the faulty line or its function run until one fails: those of the line before the
  others, quick ones before slow ones, those of the module's own test file before those.
* A fault that makes a test take ten times as long as it takes otherwise, and `--timeout` at least, counts as
  noticed.
* The same seed chooses the same faults. The command stops when its time is over and reports what it did not
  try.
* The checkout does not change: faults are put into a copy.

Design: coverage.py measures once which test reaches which line; what the tests of a file reach is
kept in ``.cache/mutate`` and measured again when the file or the module has changed. In a generator it misses
the lines that run after an error was thrown into it, therefore the tests that reach the function count too. A
fault is an edit of the text at a place that `ast` names, so that all other lines stay as they are. Importing
and collecting cost far more than the few tests that a fault needs: one process of pytest collects once and
forks a child for each fault. In the child every function of the module gets the code that was compiled from
the edited text (and the edited default); the edited text is in the copy's file too, for tests that start
programs.
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
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "mutate"
PLUGINS = ROOT / "tools" / "pytest_plugins"
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
_QUICK_S = 0.5
_TURNED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_SPELLED = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in", ast.And: "and", ast.Or: "or", ast.Add: "+",
    ast.Sub: "-",
}  # fmt: skip


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

    def between(left: ast.AST, right: ast.AST, operator: type[ast.AST]) -> tuple[int, int] | None:
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
            number = source.count("\n", 0, span[0]) + 1
            text = lines[number - 1].rstrip("\n")
            found.append(Fault(file, number, *span, source[slice(*span)], after, text))
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
    path = os.pathsep.join([str(copy), str(PLUGINS)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **more}


def pytest_command(*arguments: str) -> list[str]:
    """Return the command that runs tests."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def reach(
    copy: Path, modules: list[str], folders: list[str]
) -> tuple[dict[str, dict[int, list[str]]], dict[str, float]]:
    """Return which tests reach which line of which module, and how long each test takes."""
    digests = {module: _digest(ROOT / module) for module in modules}
    kept = {file: CACHE / f"{_digest(ROOT / file)}.json" for file in _test_files(folders)}
    wanted = [file for file, cache in kept.items() if not _is_current(cache, digests)]
    if wanted:
        print(f"measuring which tests of {len(wanted)} files reach which lines …", flush=True)
        _measure(copy, wanted, kept)
    lines: dict[str, dict[int, list[str]]] = {module: {} for module in modules}
    took: dict[str, float] = {}
    for cache in kept.values():
        found = json.loads(cache.read_text())
        took |= found["took"]
        for module in modules:
            for line, tests in found["lines"].get(module, {}).items():
                lines[module].setdefault(int(line), []).extend(tests)
    return lines, took


def _digest(file: Path) -> str:
    return hashlib.sha256(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes()).hexdigest()[
        :16
    ]


def _test_files(folders: list[str]) -> list[str]:
    found = [file for folder in folders for file in (ROOT / folder).rglob("test_*.py")]
    return sorted({file.relative_to(ROOT).as_posix() for file in found})


def _is_current(cache: Path, digests: dict[str, str]) -> bool:
    if not cache.exists():
        return False
    known = json.loads(cache.read_text())["digests"]
    return all(known.get(module) == digest for module, digest in digests.items())


def _measure(copy: Path, files: list[str], kept: dict[str, Path]) -> None:
    """Run test files, several at a time, and keep for each what its tests reach."""
    count = min(2 * (os.cpu_count() or 1), len(files))
    running = []
    for number in range(count):
        out = copy / f"reach-{number}.json"
        command = pytest_command(
            "-p", "mutation_reach", "-m", "not vcan and not alone and not long", *files[number::count]
        )
        process = subprocess.Popen(
            command, cwd=copy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=environment(
                copy, PYTEST_XDIST_WORKER=f"gw{number}", MUTATE_OUT=str(out),
                MUTATE_FOLDER=str(copy / "fieldbus"),
            ),
        )  # fmt: skip
        running.append((process, out))
    every = {file.relative_to(ROOT).as_posix(): _digest(file) for file in (ROOT / "fieldbus").rglob("*.py")}
    CACHE.mkdir(parents=True, exist_ok=True)
    by_file: dict[str, dict[str, Any]] = {file: {"digests": every, "lines": {}, "took": {}} for file in files}
    for process, out in running:
        if process.wait() not in (0, 1, 5) or not out.exists():
            sys.exit(f"the tests did not run: pytest ended with {process.returncode}")
        found = json.loads(out.read_text())
        for module, lines in found["lines"].items():
            for line, tests in lines.items():
                for test in tests:
                    by_module = by_file[test.split("::")[0]]["lines"]
                    by_line = by_module.setdefault(os.path.relpath(module, copy), {})
                    by_line.setdefault(line, []).append(test)
        for test, seconds in found["took"].items():
            by_file[test.split("::")[0]]["took"][test] = seconds
    for file, entry in by_file.items():
        kept[file].write_text(json.dumps(entry))


def tests_of(fault: Fault, lines: dict[int, list[str]], took: dict[str, float]) -> list[str]:
    """Return the tests that may notice a fault, in the order in which they run."""
    of_line = set(lines.get(fault.line, ()))
    begin, end = _function_around(fault)
    every = of_line.union(*(lines.get(line, ()) for line in range(begin, end + 1)))
    own = f"test_{Path(fault.file).stem}.py"

    def rank(test: str) -> tuple[bool, bool, bool, float, str]:
        is_own = Path(test.split("::", maxsplit=1)[0]).name == own
        seconds = took.get(test, 0.0)
        return test not in of_line, seconds > _QUICK_S, not is_own, seconds, test

    return sorted(every, key=rank)


def _function_around(fault: Fault) -> tuple[int, int]:
    """Return the first and the last line of the innermost function that a fault is in."""
    found = fault.line, fault.line
    for node in ast.walk(ast.parse((ROOT / fault.file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            end = node.end_lineno or node.lineno
            if node.lineno <= fault.line <= end:
                found = node.lineno + 1, end  # the inner ones come later
    return found


def try_all(
    copy: Path, tasks: list[tuple[Fault, list[str]]], took: dict[str, float], timeout_s: float
) -> Generator[str | None, None, None]:
    """Yield what noticed each fault in turn; None where nothing did."""
    with tempfile.TemporaryFile("w+") as said:
        given, taken = os.pipe()
        limits = {test: max(timeout_s, 10 * seconds) for test, seconds in took.items()}
        asked = [
            {"file": str(copy / fault.file), "start": fault.start, "end": fault.end, "after": fault.after,
             "tests": tests, "limits_s": [limits.get(test, timeout_s) for test in tests],
             "whole_s": timeout_s + 3 * sum(took.get(test, 0.0) for test in tests)}
            for fault, tests in tasks
        ]  # fmt: skip
        (copy / "tasks.json").write_text(json.dumps({"tasks": asked}))
        files = sorted({test.split("::")[0] for _, tests in tasks for test in tests})
        process = subprocess.Popen(
            pytest_command("-p", "mutation_forks", *files),
            cwd=copy, stdout=said, stderr=said, pass_fds=[taken],
            env=environment(copy, MUTATE_FD=str(taken), MUTATE_TASKS=str(copy / "tasks.json")),
        )  # fmt: skip
        os.close(taken)
        answered = 0
        try:
            with os.fdopen(given) as answers:
                for line in answers:
                    answered += 1
                    yield json.loads(line)
        finally:
            process.terminate()
            process.wait()
        if answered < len(tasks):
            said.seek(0)
            sys.exit(f"the tests ended before all faults were tried:\n{said.read()[-3000:]}")


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
        "--most-tests", type=int, default=200, help="run at most so many tests for a fault (200)"
    )
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for one test, at least (10)")
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
                    if tests_of(fault, lines.get(fault.file, {}), took):
                        chosen.append(fault)
                        break
        chosen = chosen[: given.faults]
        deadline_s = time.monotonic() + 60 * given.minutes
        survivors, killed = [], 0
        tasks = [(fault, tests_of(fault, lines[fault.file], took)[: given.most_tests]) for fault in chosen]
        answers = try_all(copy, tasks, took, given.timeout)
        for (fault, _), found in zip(tasks, answers, strict=True):
            if found is None:
                survivors.append(fault)
                print(f"SURVIVED {fault}", flush=True)
            else:
                killed += 1
                print(
                    f"killed   {fault.file}:{fault.line} `{fault.before}` → `{fault.after}` by {found}",
                    flush=True,
                )
            if time.monotonic() > deadline_s and killed + len(survivors) < len(chosen):
                print(f"the minutes are over: {len(chosen) - killed - len(survivors)} faults were not tried")
                break
        answers.close()
    tried = killed + len(survivors)
    print(f"{killed} of {tried} faults were noticed")
    for fault in survivors:
        print(f"  survived: {fault}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
