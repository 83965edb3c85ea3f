"""The compiler half: what Triton asks of one, none of which the interpreter uses."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NoReturn

from triton.backends.compiler import BaseBackend, GPUTarget, Language


class InterpreterCompiler(BaseBackend):
    """Serves the target "cpu" and cannot compile."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "em-inf-interpreter"

    def parse_options(self, options: dict[str, Any]) -> NoReturn:
        raise NotImplementedError("set TRITON_INTERPRET=1: this backend cannot compile")

    def add_stages(
        self, stages: dict[str, Any], options: object, language: Language
    ) -> NoReturn:
        raise NotImplementedError("set TRITON_INTERPRET=1: this backend cannot compile")

    def load_dialects(self, context: Any) -> None:
        pass

    def get_module_map(self) -> dict[str, ModuleType]:
        return {}
