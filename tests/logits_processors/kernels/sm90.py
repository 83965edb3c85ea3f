"""Compiles the GPU's kernels for sm_90, without a GPU, and counts what comes out.

    python -m tests.logits_processors.kernels.sm90 VOCAB_SIZE

prints JSON: for each kernel its spilled bytes, its instructions, those of each loop
together with the special-function operations in it, and how many products are fused with
another lane's sum, which leaves lanes with different bits.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from em_inf.logits_processors.kernels import (
    gpu,
    gpu_collect,
    gpu_descend,
    gpu_layout,
)
from tests.logits_processors.kernels import gpu_exact

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {
    "rows_ptr": "*i64",
    "where_ptr": "*i32",
    "counts_ptr": "*i32",
    "finished_ptr": "*i32",
    "bias1": "fp32",
    "bias2": "fp32",
}
# A row's logits are aligned, as vLLM's are; nothing is said of the other arguments.
ALIGNED = {"logits_ptr", "row_stride"}


def compiled(kernel: Any, warps: int, constants: dict[str, int]) -> dict[str, Any]:
    """One kernel's figures."""
    names = [parameter.name for parameter in kernel.params]
    signature = {
        name: "constexpr"
        if name in constants
        else TYPES.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in names
    }
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in ALIGNED & {*names}}
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={name: constants[name] for name in names if name in constants},
        attrs=aligned,
    )
    options = {"num_warps": warps, "enable_fp_fusion": True}
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        code, usage = (
            subprocess.run(
                [TOOL, flag, file.name], capture_output=True, text=True, check=True
            ).stdout
            for flag in ("-sass", "-res-usage")
        )
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", code, re.MULTILINE)
    instructions = {int(at, 16): text for at, text in lines if "NOP" not in text}
    loops = []
    for end, text in instructions.items():
        target = re.search(r"\bBRA.*0x([0-9a-f]+)", text)
        if target and int(target.group(1), 16) < end:
            begin = int(target.group(1), 16)
            body = [t for at, t in instructions.items() if begin <= at <= end]
            special = sum("MUFU" in t for t in body)
            loops.append({"instructions": len(body), "special": special})
    shuffled = re.findall(r"shfl\.sync\.bfly\.b32\s+(%\w+)", binary.asm["ptx"])
    added = re.findall(r"fma\.rn\.f32\s+%\w+, [^,]+, [^,]+, (%\w+);", binary.asm["ptx"])
    stack = re.search(r"STACK:(\d+)", usage)
    spills = sum("LDL" in t or "STL" in t for t in instructions.values())
    return {
        "warps": warps,
        "stack_bytes": int(stack.group(1)) if stack else None,
        "spills": spills,
        "instructions": len(instructions),
        "loops": loops,
        "fused_shuffles": len(set(shuffled) & set(added)),
    }


def main() -> None:
    """Compile them all."""
    vocab_size = int(sys.argv[1])
    found = {}
    for name, kernel, warps, slice_size in (
        (
            "statistics",
            gpu_collect.statistics_kernel,
            gpu_layout.WARPS["statistics"],
            gpu_layout.SLICE,
        ),
        (
            "collect",
            gpu_collect.collect_kernel,
            gpu_layout.WARPS["collect"],
            gpu_layout.SLICE,
        ),
        (
            "descend",
            gpu_descend.descend_kernel,
            gpu_layout.WARPS["descend"],
            gpu_layout.SLICE,
        ),
        ("map", gpu.map_kernel, gpu_layout.WARPS["map"], gpu_layout.SLICE),
        ("exact step", gpu_exact._step_kernel, 4, gpu_exact._SLICE),
        ("exact report", gpu_exact._report_kernel, 4, gpu_exact._SLICE),
    ):
        slices = triton.cdiv(vocab_size, slice_size.value)
        padded = triton.next_power_of_2(slices)
        constants = {"V": vocab_size, "SLICES": slices, "PADDED": padded}
        found[name] = compiled(kernel, warps, constants)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
