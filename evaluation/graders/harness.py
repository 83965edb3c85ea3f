"""The program in which a stranger's code meets its tests; `sandbox.py` starts it.

Standard library only, beside `isolation.py` from its own folder. It reads the job, JSON,
from standard input, isolates itself and says how; runs the code, then the tests; and only
where all of that came to its end does it read the token from its pipe and send it back.
Whatever ends the process before, or prints what it likes, has no token to show.

Where the honesty of that ends: code and tests share one interpreter. A program that was
written against this very file can find the pipe or these functions in its own memory, and
forge a pass. The usual tricks cannot, and each has a test.
"""

from __future__ import annotations

import _thread
import ast
import builtins
import importlib
import importlib.util
import json
import operator
import os
import resource
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

_WATCHED = ("builtins", "math", "json", "os", "unittest", "unittest.case", "sys")
_OPERATORS: dict[str, Callable[[Any, Any], object]] = {
    "Eq": operator.eq,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
    "In": lambda left, right: left in right,
}
_UNWATCHED = {"_", "last_type", "last_value", "last_traceback", "last_exc"}


def main() -> None:
    """Run one job and end the process without a clean-up that could run more code."""
    job = json.loads(sys.stdin.buffer.read())
    token_pipe, result_pipe = job["pipes"]
    read, write, leave = os.read, os.write, os._exit  # The code may replace them.
    try:
        in_force = _isolate(job)
    except OSError as error:
        write(result_pipe, f"refused {error}\n".encode())
        leave(0)
    write(result_pipe, f"isolated {in_force}\n".encode())
    _limit(job)
    watched = {name: sys.modules[name] for name in (*_WATCHED, *job["imports"])
               if name in sys.modules}  # fmt: skip
    watched["harness"] = sys.modules["__main__"]
    if "unittest.case" in sys.modules:
        sys.modules["unittest.case"].TestCase._baseAssertEqual = _assert_equal
    before = _contents(watched)
    solution = types.ModuleType("solution")
    sys.modules["__main__"] = sys.modules["solution"] = solution
    failed = _in_thread(job["code"], "<code>", vars(solution), None)
    if failed is not None:
        failed = f"the code fails by itself: {failed}"
    for tests in job["tests"]:
        if failed is None:
            failed = _in_thread(tests, "<tests>", vars(solution), job["entry_point"])
    if failed is None:
        after = _contents(watched)
        changed = sorted(name for name in before if before[name] != after.get(name))
        if changed:
            failed = f"the code changed {', '.join(changed[:5])}"
    if failed is None:
        write(result_pipe, b"passed " + read(token_pipe, 100) + b"\n")
    else:
        write(result_pipe, f"failed {failed[:500]}\n".encode(errors="replace"))
    leave(0)


def _isolate(job: Mapping[str, Any]) -> str:
    """Shut this process in, as far as the job wants and the kernel lets.

    Returns:
        What is in force: "namespaces+seccomp", "namespaces", "seccomp" or "none".
    """
    wanted = job["isolation"]
    if wanted == "none":
        _import(job)
        return "none"
    spec = importlib.util.spec_from_file_location("isolation", job["isolation_file"])
    assert spec is not None
    assert spec.loader is not None
    isolation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(isolation)
    in_force = []
    if wanted != "seccomp" and isolation.enter_namespaces():
        isolation.enter_root()
        in_force.append("namespaces")
    _import(job)  # Before the filter: some look around as they load.
    if isolation.filter_calls(files=not in_force):
        in_force.append("seccomp")
    return "+".join(in_force) or "none"


def _import(job: Mapping[str, Any]) -> None:
    for name in job["imports"]:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # The tests say so themselves.


def _limit(job: Mapping[str, Any]) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + job["cpu_seconds"]
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, job["memory_bytes"]),
        (resource.RLIMIT_FSIZE, 1 << 24),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))


def _contents(modules: Mapping[str, types.ModuleType]) -> dict[str, int]:
    """What the code has no business to replace: names, and what each stands for."""
    found = {}
    for name, module in modules.items():
        contents = dict(vars(module))
        if name == "unittest.case":
            contents |= {f"TestCase.{k}": v for k, v in vars(module.TestCase).items()}
        for key, value in contents.items():
            if key not in _UNWATCHED and not key.startswith("__"):
                body = getattr(value, "__code__", value)
                found[f"{name}.{key}"] = id(body)
    return found


def _in_thread(
    source: str, name: str, namespace: dict[str, Any], entry_point: str | None
) -> str | None:
    """Why a piece of code failed; None where it ran to its end.

    In a thread of its own, code can set no signal handler, and has a deep stack.
    """
    failed: list[str | None] = ["it ended its thread"]
    ended = _thread.allocate_lock()
    ended.acquire()

    def run() -> None:
        try:
            _execute(source, name, namespace, entry_point)
            failed[0] = None
        except BaseException as error:  # noqa: BLE001 SystemExit is a failure as well.
            failed[0] = _sentence(error)
        finally:
            ended.release()

    _thread.stack_size(1 << 26)
    _thread.start_new_thread(run, ())
    ended.acquire()
    return failed[0]


def _execute(
    source: str, name: str, namespace: dict[str, Any], entry_point: str | None
) -> None:
    if name == "<code>":
        exec(compile(source, name, "exec"), namespace)  # noqa: S102 In the sandbox.
        return
    own = {
        key: value
        for key, value in namespace.items()
        if not hasattr(builtins, key) or key == entry_point
    }
    own |= {"__builtins__": builtins, "_em_inf_compared": _compared}
    tree = ast.fix_missing_locations(_Comparisons().visit(ast.parse(source, name)))
    exec(compile(tree, name, "exec"), own)  # noqa: S102
    if entry_point is not None and "check" in own and "check" not in namespace:
        own["check"](own[entry_point])
    _run_test_cases(own)


class _Comparisons(ast.NodeTransformer):
    """Writes `a == b` in tests as a call of `_compared`; so too <, <=, >, >= and `in`."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """One comparison; chains stay."""
        self.generic_visit(node)
        kind = type(node.ops[0]).__name__
        if len(node.ops) == 1 and kind in _OPERATORS:
            name = ast.Name("_em_inf_compared", ast.Load())
            parts = [ast.Constant(kind), node.left, node.comparators[0]]
            return ast.Call(name, parts, [])
        return node


def _compared(kind: str, left: object, right: object) -> object:
    """The comparison, or False where a class of the code would be its own judge."""
    if _judges_itself(left) != _judges_itself(right):
        return False
    return _OPERATORS[kind](left, right)


def _judges_itself(value: object, depth: int = 0) -> bool:
    """Whether a class made by the code compares here, in containers too."""
    if type(value) in (list, tuple, set, frozenset, dict) and depth < 4:
        items: Any = value.values() if isinstance(value, dict) else value
        return any(_judges_itself(item, depth + 1) for item in list(items)[:1000])
    for base in type.__getattribute__(type(value), "__mro__"):
        contents = type.__getattribute__(base, "__dict__")
        for name in ("__eq__", "__lt__", "__le__", "__gt__", "__ge__"):
            comparison = contents.get(name)
            if isinstance(comparison, types.FunctionType):
                module = sys.modules.get(comparison.__module__)
                if module is None or getattr(module, "__spec__", None) is None:
                    return True
    return False


def _assert_equal(case: Any, first: object, second: object, msg: object = None) -> None:
    """What `TestCase.assertEqual` does with two values of different types."""
    if not _compared("Eq", first, second):
        raise case.failureException(msg or f"{first!r} != {second!r}")


def _run_test_cases(namespace: Mapping[str, Any]) -> None:
    """Run the `unittest.TestCase` classes that the tests define.

    Raises:
        AssertionError: one failed, or not all of them ran.
    """
    if "unittest" not in sys.modules:
        return
    import unittest

    cases = [
        value
        for value in namespace.values()
        if isinstance(value, type)
        and issubclass(value, unittest.TestCase)
        and value.__module__ in ("solution", "builtins")
    ]
    loader = unittest.TestLoader()
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in cases)
    wanted = suite.countTestCases()
    result = unittest.TestResult()
    suite.run(result)
    problems = [*result.failures, *result.errors]
    if problems:
        raise AssertionError(problems[0][1].strip().splitlines()[-1])
    if result.testsRun != wanted:
        raise AssertionError(f"{result.testsRun} of {wanted} tests ran")


def _sentence(error: BaseException) -> str:
    """One line: where in the tests or code, and what."""
    line, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file in ("<code>", "<tests>"):
            line = f"line {trace.tb_lineno} of the {file[1:-1]}: "
        trace = trace.tb_next
    text = type(error).__name__
    arguments = BaseException.__getattribute__(error, "args")
    if arguments and type(arguments[0]) is str:
        text += f": {arguments[0].splitlines()[0] if arguments[0] else ''}"
    return line + text


if __name__ == "__main__":
    main()
