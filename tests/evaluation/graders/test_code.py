import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from em_inf.evaluation.graders import GraderError, about, grader
from em_inf.evaluation.graders.code import Code, code_in
from em_inf.evaluation.records import Verdict
from tests.evaluation.graders.problems import problem

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"


@pytest.fixture(params=["auto", "seccomp"])
def code(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Code]:
    """The grader behind each line of defence that this machine has."""
    monkeypatch.setenv("EM_INF_SANDBOX", request.param)
    try:
        yield Code()
    except GraderError as error:
        pytest.skip(f"{error}")


def grade(code: Code, program: str, tests: object = TESTS, **more: object) -> Verdict:
    more.setdefault("cpu_seconds", 1)
    return code.grade(f"```python\n{program}\n```", problem(tests, **more))


def test_program_that_passes_its_tests_is_right(code: Code) -> None:
    assert grade(code, "def add(a, b):\n    return a + b").grade == "right"


def test_program_that_fails_a_test_is_wrong_and_the_line_is_named(code: Code) -> None:
    verdict = grade(code, "def add(a, b):\n    return 3")
    assert verdict.grade == "wrong"
    assert verdict.reason == "line 2 of the tests: AssertionError"


def test_program_without_the_function_is_wrong(code: Code) -> None:
    assert "NameError" in grade(code, "def sum2(a, b):\n    return a + b").reason


def test_check_function_is_given_the_entry_point(code: Code) -> None:
    tests = "def check(candidate):\n    assert candidate(1, 2) == 3"
    for body, expected in (("a + b", "right"), ("a - b", "wrong")):
        program = f"def add(a, b):\n    return {body}"
        assert grade(code, program, tests, entry_point="add").grade == expected


def test_test_cases_of_unittest_are_run(code: Code) -> None:
    tests = (
        "import unittest\n"
        "class T(unittest.TestCase):\n"
        "    def test_it(self):\n"
        "        self.assertEqual(add(1, 2), 3)"
    )
    for body, expected in (("a + b", "right"), ("a - b", "wrong")):
        assert grade(code, f"def add(a, b):\n    return {body}", tests).grade == expected


def test_setup_goes_before_the_program_and_numpy_works(code: Code) -> None:
    verdict = grade(
        code,
        "def add(a, b):\n    return float(np.array([a, b]).sum())",
        setup="import numpy as np",
        cpu_seconds=10,
    )
    assert verdict.grade == "right"


# What a model could write, on purpose or not, to pass without an answer.
CHEATS = {
    "leaves": "import sys\ndef add(a, b):\n    sys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "leaves as it loads": "raise SystemExit(0)",
    "prints what a marker may be": (
        "print('passed')\nprint('OK')\nimport os\nos.write(1, b'passed\\n')\nos._exit(0)"
    ),
    "writes on every descriptor": (
        "import os\n"
        "for fd in range(64):\n"
        "    try:\n        os.write(fd, b'passed ' + b'0' * 64 + b'\\n')\n"
        "    except OSError:\n        pass\n"
        "os._exit(0)"
    ),
    "always equal": (
        "class Yes:\n    def __eq__(self, other):\n        return True\n"
        "def add(a, b):\n    return Yes()"
    ),
    "always equal, an int": (
        "class Yes(int):\n    def __eq__(self, other):\n        return True\n"
        "def add(a, b):\n    return Yes()"
    ),
    "always equal, in a list": (
        "class Yes:\n    def __eq__(self, other):\n        return True\n"
        "class No(list):\n    def __eq__(self, other):\n        return True\n"
        "def add(a, b):\n    return No([Yes()])"
    ),
    "changes AssertionError": (
        "import builtins\nbuiltins.AssertionError = None\ndef add(a, b):\n    return 7"
    ),
    "changes the writer": (
        "import json, os\nos.write = lambda *a: None\njson.dumps = lambda *a: '{}'\n"
        "def add(a, b):\n    return 7"
    ),
    "stops the tests": ("import _thread\ndef add(a, b):\n    _thread.exit()"),
    "changes its caller": (
        "import sys\n"
        "def add(a, b):\n"
        "    sys._getframe(1).f_globals['add'] = lambda a, b: a + b\n"
        "    return 7"
    ),
    "silences the assertion": (
        "import sys\n"
        "def add(a, b):\n"
        "    sys._getframe(1).f_globals['__builtins__'].AssertionError = KeyError\n"
        "    return 7"
    ),
}


@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS)
def test_program_that_cheats_is_wrong(code: Code, program: str) -> None:
    assert grade(code, program).grade == "wrong"


ALWAYS = (
    "class Yes:\n"
    "    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: True\n"
    "    __sub__ = __rsub__ = lambda self, other: self\n"
    "    __abs__ = lambda self: self\n"
    "    __hash__ = None\n"
    "def add(a, b):\n    return Yes()"
)


@pytest.mark.parametrize(
    "tests",
    [
        "assert abs(add(1, 2) - 3) < 1e-9",
        "assert add(1, 2) in [3]",
        "assert add(1, 2) >= 3",
        "assert [add(1, 2)] == [3]",
        "import unittest\nclass T(unittest.TestCase):\n"
        "    def test_it(self):\n        self.assertEqual(add(1, 2), 3)",
    ],
)
def test_object_that_says_yes_to_every_comparison_is_wrong(tests: str) -> None:
    assert grade(Code(), ALWAYS, tests).grade == "wrong"


def test_class_of_the_program_may_be_compared_with_itself(code: Code) -> None:
    program = (
        "from dataclasses import dataclass\n"
        "@dataclass(order=True)\nclass Point:\n    x: int\n"
        "def add(a, b):\n    return Point(a + b)"
    )
    tests = "assert add(1, 2) == Point(3)\nassert [add(1, 2)] < [Point(4)]"
    assert grade(code, program, tests).grade == "right"


def test_fractions_may_be_compared_with_numbers(code: Code) -> None:
    program = "from fractions import Fraction\ndef add(a, b):\n    return Fraction(a + b)"
    assert grade(code, program, "assert add(1, 2) == 3.0").grade == "right"


def test_replaced_builtin_that_the_tests_use_is_found(code: Code) -> None:
    program = "import builtins\nbuiltins.abs = lambda x: 0\ndef add(a, b):\n    return 7"
    verdict = grade(code, program, "assert abs(add(1, 2) - 3) < 1e-9")
    assert verdict.grade == "wrong"
    assert verdict.reason == "the code changed builtins.abs"


def test_name_that_hides_a_builtin_is_not_seen_by_the_tests(code: Code) -> None:
    program = "def abs(x):\n    return 0\ndef add(a, b):\n    return 7"
    assert grade(code, program, "assert abs(add(1, 2) - 3) < 1e-9").grade == "wrong"


def test_changed_test_case_is_found(code: Code) -> None:
    tests = (
        "import unittest\n"
        "class T(unittest.TestCase):\n"
        "    def test_it(self):\n"
        "        self.assertEqual(add(1, 2), 3)"
    )
    program = (
        "import unittest\n"
        "unittest.TestCase.assertEqual = lambda *a: None\n"
        "def add(a, b):\n    return 7"
    )
    assert "TestCase.assertEqual" in grade(code, program, tests).reason


def test_changed_comparison_of_numpy_is_found(code: Code) -> None:
    program = (
        "import numpy as np\nnp.allclose = lambda *a: True\ndef add(a, b):\n    return 7"
    )
    tests = "import numpy as np\nassert np.allclose(add(1, 2), 3)"
    assert "numpy.allclose" in grade(code, program, tests, cpu_seconds=10).reason


# What a program could do to the machine. Each is stopped, and the grader goes on.
ATTACKS = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "all the memory": "x = bytearray(1 << 40)",
    "memory, little by little": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    f()\nf()"
    ),
    "deep nesting": "eval('(' * 100_000 + ')' * 100_000)",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    "a new program": "import os\nos.execv('/bin/sh', ['sh', '-c', 'true'])",
    "a subprocess": "import subprocess\nsubprocess.run(['true'], check=True)",
    "the network": "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
    "kills its parent": "import os, signal\nos.kill(os.getppid() or -1, signal.SIGKILL)",
    "kills everyone": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "leaves its session": "import os\nos.setsid()",
    "traces": (
        "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) != 0:\n"
        "    raise PermissionError"
    ),
    "limits of another": (
        "import os, resource\n"
        "resource.prlimit(os.getppid() or 1, resource.RLIMIT_CPU, (0, 0))"
    ),
    "raises its own limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (999, 999))"
    ),
    "namespace of its own": (
        "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) != 0:\n    raise OSError"
    ),
}


@pytest.mark.parametrize("program", ATTACKS.values(), ids=ATTACKS)
def test_program_that_attacks_is_stopped_and_wrong(code: Code, program: str) -> None:
    good = "\ndef add(a, b):\n    return a + b"
    verdict = grade(code, program + good, memory_mb=512)
    assert verdict.grade == "wrong", verdict


def test_environment_is_empty(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "1")
    program = "import os\ndef add(a, b):\n    return sorted(os.environ)"
    tests = "assert not any('SECRET' in name or 'HOME' in name for name in add(1, 2))"
    assert grade(code, program, tests).grade == "right"


def test_no_file_of_the_parent_is_open(code: Code, tmp_path: Path) -> None:
    (tmp_path / "tests.txt").write_text("the tests")
    with (tmp_path / "tests.txt").open() as file:
        os.set_inheritable(file.fileno(), True)
        program = f"import os\ndef add(a, b):\n    return os.pread({file.fileno()}, 9, 0)"
        verdict = grade(code, program, "assert add(1, 2) != b'the tests'")
    assert verdict.grade != "right"
    assert "OSError" in verdict.reason


def test_nothing_is_written_outside(code: Code, tmp_path: Path) -> None:
    target = tmp_path / "written"
    program = f"open({str(target)!r}, 'w').write('x')\ndef add(a, b):\n    return a + b"
    assert grade(code, program).grade == "wrong"
    assert not target.exists()


def test_files_of_the_machine_are_not_there(tmp_path: Path) -> None:
    code = Code()
    if "namespaces" not in code.isolation:
        pytest.skip("this kernel refuses namespaces; seccomp hides no files")
    hidden = tmp_path / "answers"
    hidden.write_text("42")
    program = (
        "import os\n"
        "def add(a, b):\n"
        f"    paths = {str(hidden)!r}, '/proc', '/etc/passwd'\n"
        "    return [os.path.exists(path) for path in paths]"
    )
    assert grade(code, program, "assert add(1, 2) == [False] * 3").grade == "right"


@pytest.mark.parametrize(
    "program",
    ["while True:\n    pass", "while True:\n    print('x' * 9999)", "10**10**10"],
)
def test_endless_program_is_ended_by_its_cpu_time_and_leaves_nothing(
    program: str,
) -> None:
    mark = f"em-inf-{os.getpid()}"[:15]
    named = f"import ctypes\nctypes.CDLL(None).prctl(15, b'{mark}', 0, 0, 0)\n"
    verdict = grade(Code(), named + program)
    assert verdict.grade == "wrong"
    assert "CPU time limit" in verdict.reason
    names = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.append(comm.read_text().strip())
        except OSError:
            continue  # It has just ended.
    assert mark not in names


def test_sleeping_program_is_not_graded(code: Code) -> None:
    verdict = grade(code, "import time\ntime.sleep(1000)", wall_seconds=1)
    assert verdict.grade == "not_graded"
    assert verdict.reason == "the wall-clock limit was reached"


def test_isolation_in_force_is_told(code: Code) -> None:
    assert code.isolation in ("namespaces+seccomp", "namespaces", "seccomp")
    assert about(code) == {"sandbox of the grader code": code.isolation}


def test_without_isolation_nothing_runs_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EM_INF_SANDBOX", "none")
    code = grader("code")
    assert isinstance(code, Code)
    assert code.isolation == "none"
    assert grade(code, "def add(a, b):\n    return a + b").grade == "right"


def test_machine_that_isolates_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from em_inf.evaluation.graders import sandbox

    real = sandbox.run
    monkeypatch.delenv("EM_INF_SANDBOX", raising=False)
    monkeypatch.setattr(sandbox, "run", lambda job, level: real(job, "none"))
    with pytest.raises(GraderError, match=r"isolates none of them.*EM_INF_SANDBOX=none"):
        grader("code")


def test_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EM_INF_SANDBOX", "off")
    with pytest.raises(
        GraderError, match="EM_INF_SANDBOX: 'off' is not allowed; allowed"
    ):
        grader("code")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```python\ndef f(): pass\n```\nand\n```\nf()\n```", "def f(): pass"),
        ("```python\nx = 1\n```", "x = 1"),
        ("```python\ndef f(): pass", "def f(): pass"),
        ("```bash\npip install x\n```", None),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("I would define def as a word.", None),
        ("<think>```python\ndef f(): pass\n```</think>No.", None),
        ("", None),
    ],
)
def test_program_is_found_in_a_text(text: str, found: str | None) -> None:
    assert code_in(text) == found


def test_text_without_a_program_is_not_extracted(code: Code) -> None:
    assert code.grade("I cannot.", problem(TESTS)) == Verdict("not_extracted")


def test_same_program_with_other_comments_is_the_same_vote(code: Code) -> None:
    texts = [
        "```python\ndef f(a):  # one\n    return (a)\n```",
        "def f(a):\n\n  return a",
    ]
    assert len({code.extract(text, problem(TESTS)) for text in texts}) == 1


@pytest.mark.parametrize(
    ("answer", "more", "message"),
    [
        ([], {}, r"answer of problem p1: .* allowed: a text"),
        (3, {}, "answer of problem p1: 3 is not allowed"),
        ("assert (", {}, "its tests are no Python"),
        (TESTS, {"cpu_seconds": 0}, r"cpu_seconds of problem p1: 0 .* from 1 to 3600"),
        (TESTS, {"memory_mb": "2 GB"}, "memory_mb of problem p1"),
    ],
)
def test_problem_without_usable_tests_is_refused(
    code: Code, answer: object, more: dict[str, object], message: str
) -> None:
    with pytest.raises(GraderError, match=message):
        grade(code, "def f(): pass", answer, **more)
