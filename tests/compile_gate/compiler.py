"""Compiles variants without a GPU and measures the machine code. `python -m tests.compile_gate.compiler` is one worker.

A worker reads pairs of a variant and a target, one a line, and answers each with a line of JSON. It is a process of its
own because the compiler can abort its process: see workers.py.
"""

import ast
import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict

from fusedmdn.ops.launch import Options, compiler_options

from .lint import lint
from .targets import TARGETS
from .variants import Variant

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)")
NVIDIA_COUNTS = {
    "matrix": r"[A-Z0-9]*MMA(\.|$)",  # HMMA, HGMMA, UTCHMMA; not HFMA2.MMA
    "barriers": r"BAR\.(SYNC|RED|ARV)",
    "atomics": r"(ATOMG?|REDG?)(\.|$)",
}
AMD_COUNTS = {"matrix": r"v_s?mfma", "barriers": r"s_barrier", "atomics": r"(global|flat|buffer)_atomic"}


def compile_pair(variant: Variant, target: str) -> dict:
    """The figures of one pair, or {"error": why there are none}."""
    try:
        return measure(variant, target)
    except Exception as error:
        while type(error.__cause__) is type(error):  # Triton wraps an error in a helper into one about its call
            error = error.__cause__
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[-600:]}"}


def measure(variant: Variant, target: str) -> dict:
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    module, _, function = variant.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), function)
    backend, arch, warp_size, _ = TARGETS[target]
    options = compiler_options(variant.options)
    # The spills are in ptxas's log only. Triton prints it, but not when it finds the kernel in its cache.
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True
    with contextlib.redirect_stdout(io.StringIO()) as log:
        compiled = compile(ASTSource(kernel, **source(variant, kernel)), GPUTarget(backend, arch, warp_size), options)
    if backend == "hip":
        return amd(compiled.asm["amdgcn"], compiled.metadata.shared)
    figures = nvidia(log.getvalue(), disassembly(compiled.asm["cubin"]), compiled.metadata.shared)
    return figures | {"lint": lint(compiled.asm["ptx"], variant.options.cooperative)}


def source(variant: Variant, kernel) -> dict:
    """The arguments of ASTSource: a type for every argument, the constants by position, what is known of pointers."""
    defaults = {p.name: p.default for p in kernel.params if p.has_default and p.name not in variant.signature}
    constants = defaults | variant.constexprs
    given = [*variant.signature, *constants]
    wrong = set(given) ^ set(kernel.arg_names) | {name for name in given if given.count(name) > 1}
    if wrong:
        raise TypeError(f"{variant.kernel}: missing, unknown or given twice: {', '.join(sorted(wrong))}")
    position = kernel.arg_names.index
    return {
        "signature": {name: variant.signature.get(name, "constexpr") for name in kernel.arg_names},
        "constexprs": {(position(name),): value for name, value in constants.items()},
        "attrs": {
            (position(name),): [["tt.divisibility", 16]]
            for name, kind in variant.signature.items()
            if kind.startswith("*") and name not in variant.unaligned
        },
    }


def disassembly(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        # without data-flow analysis, which takes longer than all the rest
        command = [knobs.nvidia.nvdisasm.path, "-ndf", "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def nvidia(log: str, sass: str, shared: int) -> dict:
    """Figures of a cubin. A stack alone is no spill: the slow path of sin and cos has one of 32 bytes."""
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.findall(r"Used (\d+) registers", log)
    if not frames or not registers:
        raise RuntimeError(f"ptxas has not said what the kernel uses: {log!r}")
    code = []
    for line in sass.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            code.append((label[1], None, None))
        elif found := INSTRUCTION.search(line):
            jump = re.search(r"\((\.L_\w+)\)", found[2]) if found[1].startswith("BRA") else None
            code.append((None, found[1], jump and jump[1]))
    return {
        "registers": max(map(int, registers)),
        "spills": sum(int(stores) + int(loads) for _, stores, loads in frames),
        "stack": max(int(stack) for stack, _, _ in frames),
        "shared": shared,
        **counts(code, NVIDIA_COUNTS, r"LDG(?!.*STRONG)|LDGSTS"),
    }


def amd(assembly: str, shared: int) -> dict:
    """Figures of AMD's assembly; spills are counted in registers there, and given here in bytes."""

    def number(key: str) -> int:
        return int(re.search(rf"^\s*(?:- )?\.{key}:\s+(\d+)", assembly, re.MULTILINE)[1])

    code = []
    for line in assembly.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            code.append((label[1], None, None))
        elif found := re.match(r"\s+([a-z]\w+)(?:\s+(\.LBB\w+))?", line):
            code.append((None, found[1], found[2]))
    return {
        "registers": number("vgpr_count"),
        "spills": 4 * (number("vgpr_spill_count") + number("sgpr_spill_count")),
        "stack": number("private_segment_fixed_size"),
        "shared": max(shared, number("group_segment_fixed_size")),
        **counts(code, AMD_COUNTS, r"(global|buffer|flat)_load"),
        "lint": [],
    }


def counts(code: list[tuple], kinds: dict[str, str], load: str) -> dict[str, int]:
    """How many instructions of each kind there are, and how many loads from global memory are in a loop.

    code lists (label, opcode, label jumped to), each None where it is not that; a loop is what lies between a label and
    a jump back to it.
    """
    opcodes = [opcode or "" for _, opcode, _ in code]
    labels = {label: i for i, (label, _, _) in enumerate(code) if label}
    looped = set()
    for i, (_, _, jump) in enumerate(code):
        looped.update(range(labels.get(jump, i), i))
    found = {name: sum(re.match(pattern, opcode) is not None for opcode in opcodes) for name, pattern in kinds.items()}
    return found | {"loop_loads": sum(re.match(load, opcodes[i]) is not None for i in looped)}


def serve() -> None:
    """Answer the pairs on stdin; first with Triton's version. Whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import triton

    print(json.dumps({"triton": triton.__version__}), file=answers)
    for line in sys.stdin:
        fields, options, target = ast.literal_eval(line)
        variant = Variant(**fields, options=Options(*options))
        print(json.dumps(compile_pair(variant, target)), file=answers)


def request(variant: Variant, target: str) -> str:
    """The line that asks a worker for one pair; not JSON, which has no tuples."""
    fields = asdict(variant)
    options = fields.pop("options")
    return f"{(fields, tuple(options), target)!r}\n"


if __name__ == "__main__":
    serve()
