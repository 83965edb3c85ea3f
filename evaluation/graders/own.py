"""A user's own function as a grader."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from em_inf.evaluation.graders.errors import GraderError
from em_inf.evaluation.records import Problem, Verdict

_GRADES = ("right", "wrong", "not_extracted", "not_graded")


class Own:
    """A function `f(text, problem)` that returns a bool, a grade or a `Verdict`.

    `problem` is a `em_inf.evaluation.records.Problem`. The function runs in this
    process, in several threads at once, without a time limit: it is the user's own code.
    What it raises makes the answer `not_graded`, with the error as the reason. A function
    `extract(text, problem) -> str | None` in the same file finds what votes are counted
    on; without one that is the text, stripped.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[str, Problem], Any],
        extract: Callable[[str, Problem], Any] | None,
    ) -> None:
        self.name = name
        self._function = function
        self._extract = extract

    def extract(self, text: str, problem: Problem) -> str | None:
        """What the function `extract` of the file says; the stripped text without one.

        Raises:
            GraderError: it returns neither a text nor None.
        """
        if self._extract is None:
            return text.strip() or None
        found = self._extract(text, problem)
        if found is None or isinstance(found, str):
            return found
        raise GraderError(
            f"{self.name}: extract returned {found!r}; allowed: a text, or None"
        )

    def grade(self, text: str, problem: Problem) -> Verdict:
        """What the function says.

        Raises:
            GraderError: it returns something else than a verdict.
        """
        try:
            result = self._function(text, problem)
            found = self.extract(text, problem)
        except GraderError:
            raise
        except Exception as error:  # noqa: BLE001 Their code: whatever it raises.
            return Verdict("not_graded", None, f"{type(error).__name__}: {error}")
        if isinstance(result, Verdict):
            return result
        if isinstance(result, bool):
            return Verdict("right" if result else "wrong", found)
        if result in _GRADES:
            return Verdict(result, found)
        raise GraderError(
            f"{self.name} returned {result!r} for problem {problem.id}; allowed: True, "
            f"False, a Verdict, or one of {', '.join(_GRADES)}"
        )


def load(name: str) -> Own:
    """The grader `path/to/file.py:function`.

    Raises:
        GraderError: no such file or function, or the file cannot be imported.
    """
    file, _, function_name = name.rpartition(":")
    path = Path(file)
    if not file or not function_name.isidentifier():
        raise GraderError(
            f"grader: {name!r} names no function; allowed: FILE.py:FUNCTION"
        )
    if not path.is_file():
        raise GraderError(f"grader: the file {file} does not exist")
    spec = importlib.util.spec_from_file_location(f"em_inf_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise GraderError(
            f"grader: {file} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise GraderError(f"grader: {file} has no function {function_name!r}")
    extract = getattr(module, "extract", None)
    return Own(name, function, extract if callable(extract) else None)
