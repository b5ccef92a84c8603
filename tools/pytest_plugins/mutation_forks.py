"""Pytest plugin of tools/mutation.py: collect once, then run the tests of each fault in a forked child.

Reads the tasks from the file ``MUTATE_TASKS``; writes one line of JSON for each to the descriptor
``MUTATE_FD``: the test that failed, another sentence, or null if nothing noticed the fault.
"""

import ast
import contextlib
import gc
import json
import os
import select
import signal
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from hypothesis import Phase, settings


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Have hypothesis look for a failing example, and not for the smallest one: that can take minutes."""
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutation", settings.default, phases=phases, database=None)
    settings.load_profile("mutation")


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Try every fault; nothing else runs."""
    given = json.loads(Path(os.environ["MUTATE_TASKS"]).read_text(encoding="utf-8"))
    items = {item.nodeid: item for item in session.items}
    with os.fdopen(int(os.environ["MUTATE_FD"]), "w") as answers:
        for task in given["tasks"]:
            tests = []
            for test, limit_s in zip(task["tests"], task["limits_s"], strict=True):
                if test in items:
                    items[test].add_marker(pytest.mark.timeout(limit_s), append=False)
                    tests.append(items[test])
            answers.write(json.dumps(_try_one(session, task, tests, task["whole_s"])) + "\n")
            answers.flush()
    return True


def _try_one(
    session: pytest.Session, task: dict[str, Any], tests: list[pytest.Item], timeout_s: float
) -> str | None:
    target = Path(task["file"])
    source = target.read_text(encoding="utf-8")
    faulty = source[: task["start"]] + task["after"] + source[task["end"] :]
    target.write_text(faulty, encoding="utf-8")
    given, taken = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(given)
        try:
            _swap(target, source, faulty, task["start"])
            failed = _run(session, tests)
            os.write(taken, json.dumps(failed).encode())
        except BaseException as error:  # whatever it is, the fault was noticed
            os.write(taken, json.dumps(f"{type(error).__name__} outside the tests").encode())
        os._exit(0)
    os.close(taken)
    try:
        return _answer(given, timeout_s)
    finally:
        os.close(given)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        target.write_text(source, encoding="utf-8")


def _answer(given: int, timeout_s: float) -> str | None:
    ready, _, _ = select.select([given], [], [], timeout_s)
    if not ready:
        return "it takes too long"
    said = os.read(given, 65536)
    answer: str | None = json.loads(said) if said else "the process died"
    return answer


def _run(session: pytest.Session, tests: list[pytest.Item]) -> str | None:
    for index, item in enumerate(tests):
        following = tests[index + 1] if index + 1 < len(tests) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return item.nodeid
    return None


def _swap(target: Path, source: str, faulty: str, start: int) -> None:
    """Give every function that was made from a file the code of the faulty text."""
    codes = dict(_codes(compile(faulty, str(target), "exec")))
    functions = [
        found
        for found in gc.get_objects()
        if isinstance(found, FunctionType) and found.__code__.co_filename == str(target)
    ]
    default = _faulty_default(source, faulty, start)
    for function in functions:
        key = (function.__code__.co_qualname, function.__code__.co_firstlineno)
        if key in codes:
            function.__code__ = codes[key]
        if default and default[0] == function.__code__.co_firstlineno:
            _set_default(function, *default[1:])


def _codes(code: CodeType) -> list[tuple[tuple[str, int], CodeType]]:
    found = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found.append(((constant.co_qualname, constant.co_firstlineno), constant))
            found += _codes(constant)
    return found


def _faulty_default(source: str, faulty: str, start: int) -> tuple[int, str, int, ast.expr] | None:
    """Return (first line of the function, kind, index, expression) if the fault is in a default."""
    line, column = source.count("\n", 0, start) + 1, start - (source.rfind("\n", 0, start) + 1)
    before = len(source[start - column : start].encode())
    for node in ast.walk(ast.parse(faulty)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        for kind, defaults in (("positional", node.args.defaults), ("keyword", node.args.kw_defaults)):
            for index, default in enumerate(defaults):
                if (
                    default is not None
                    and (default.lineno, default.col_offset) <= (line, before)
                    and (line, before) < (default.end_lineno or 0, default.end_col_offset or 0)
                ):
                    return first, kind, index, default
    return None


def _set_default(function: FunctionType, kind: str, index: int, expression: ast.expr) -> None:
    value = eval(compile(ast.Expression(expression), "<default>", "eval"), function.__globals__)
    if kind == "positional":
        defaults = list(function.__defaults__ or ())
        defaults[index] = value
        function.__defaults__ = tuple(defaults)
    else:
        first = function.__code__.co_argcount
        name = function.__code__.co_varnames[first + index]
        function.__kwdefaults__ = {**(function.__kwdefaults__ or {}), name: value}
