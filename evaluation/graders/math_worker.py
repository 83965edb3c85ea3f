"""The process in which math-verify and sympy read what a model wrote.

`mathematics.py` starts it. One JSON request a line on standard input, one JSON answer a
line on standard output. What takes too much CPU time is ended by the kernel, C code too;
math-verify's own limits need signals in the main thread of the caller, and end no C code.
"""

import json
import resource
import signal
import sys
from typing import Any

MEMORY_BYTES = 4 << 30


def main() -> None:
    """Answer until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    import logging

    logging.disable(logging.CRITICAL)  # It says at each call that it has no time limit.
    from math_verify import parse, verify

    def read(text: str) -> list[Any]:
        return parse(text, parsing_timeout=None)

    def compare(answer: str, found: str) -> bool | None:
        gold = read(answer)
        return verify(gold, read(found), timeout_seconds=None) if gold else None

    read("$1$"), compare("$1$", "$1$")  # Everything is loaded before the first request.
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
        answer: dict[str, Any]
        try:
            if request["do"] == "canonical":
                answer = {"result": _canonical(read(request["text"]))}
            else:
                answer = {"result": compare(request["answer"], request["text"])}
        except Exception as error:  # noqa: BLE001 sympy raises anything on strange input.
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)  # noqa: T201


def _canonical(parsed: list[Any]) -> str | None:
    """One writing for equal answers, as far as expanding finds them equal."""
    import sympy

    value = parsed[0] if parsed else None
    if isinstance(value, sympy.Eq) and isinstance(value.lhs, sympy.Symbol):
        value = value.rhs
    if isinstance(value, sympy.Expr):
        value = sympy.expand(sympy.nsimplify(value.doit(), rational=True))
    return None if value is None else str(value)


if __name__ == "__main__":
    main()
