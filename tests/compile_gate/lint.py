"""Checks in PTX that a barrier between blocks orders what it is there to order. Values in a test cannot show that.

R1  A release at gpu or sys scope comes from one thread: a barrier of the block must lie between every store to global
    memory and it, or it releases the stores of its own warp only.
R2  After one thread's acquire, a barrier of the block must come before a plain load from global memory.
R3  A load from another block's shared memory needs barrier.cluster after the last store to shared memory.
R4  A loop that polls must acquire, and what else changes the polled counter must release, at gpu or sys scope:
    block scope orders nothing between blocks, relaxed nothing at all. A cooperative kernel has such a loop and such a
    release.

R1 to R3 follow the flow of control: for every instruction, what may have happened on any path that leads to it.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

STORED, ACQUIRED, SHARED = 1, 2, 4  # what may have happened since the last barrier
ELSEWHERE = {"shared", "shared::cta", "shared::cluster", "local", "param", "const"}
ACCESSES = {"ld", "ldu", "st", "atom", "red"}


class Instruction(NamedTuple):
    """A line of PTX, its opcode split at the dots."""

    line: int
    text: str
    predicate: str
    opcode: tuple[str, ...]
    operands: str

    @property
    def access(self) -> str:
        """Ld, st, atom or red if it is one and may be to global memory, else nothing."""
        return self.opcode[0] if self.opcode[0] in ACCESSES and not ELSEWHERE & set(self.opcode) else ""

    @property
    def order(self) -> str:
        named = [o for o in self.opcode if o in ("acquire", "release", "acq_rel", "relaxed", "volatile")]
        return named[0] if named else "relaxed" if self.opcode[0] in ("atom", "red") else "weak"

    @property
    def scope(self) -> str:
        return next((o for o in self.opcode if o in ("cta", "cluster", "gpu", "sys")), "gpu")

    @property
    def wide(self) -> bool:
        return self.scope in ("gpu", "sys")

    @property
    def acquires(self) -> bool:
        return bool(self.access) and self.order in ("acquire", "acq_rel")

    @property
    def releases(self) -> bool:
        return bool(self.access) and self.order in ("release", "acq_rel")

    @property
    def loads(self) -> bool:
        return self.access in ("ld", "ldu") or (self.opcode[:2] == ("cp", "async") and "global" in self.opcode)

    @property
    def stores(self) -> bool:
        return self.access in ("st", "atom", "red") or self.opcode[:4] == ("cp", "async", "bulk", "global")

    @property
    def address(self) -> str:
        return (re.search(r"\[([^\]]*)\]", self.operands) or [""])[0]

    @property
    def written(self) -> list[str]:
        """Registers that it writes: those of the first operand, but for what has no result."""
        if self.opcode[0] in ("st", "red", "bra", "bar", "cp", "ret"):
            return []
        return registers(re.match(r"\s*(\{[^}]*\}|[^,]*)", self.operands)[0])

    @property
    def read(self) -> list[str]:
        first = 0 if not self.written else re.match(r"\s*(\{[^}]*\}|[^,]*)", self.operands).end()
        return registers(self.operands[first:])


class Function(NamedTuple):
    """Its instructions, and the position of each label among them."""

    code: list[Instruction]
    labels: dict[str, int]

    def jump(self, i: int) -> int | None:
        """Where a branch goes."""
        return self.labels.get(self.code[i].operands.strip()) if self.code[i].opcode[0] == "bra" else None

    def after(self, i: int) -> list[int]:
        """What may run next."""
        instruction = self.code[i]
        onward = [i + 1] if i + 1 < len(self.code) else []
        if instruction.opcode[0] == "brx":
            return sorted(self.labels.values())
        if instruction.opcode[0] == "bra":
            target = self.jump(i)
            if target is None:
                raise ValueError(f"line {instruction.line}: a branch to nowhere: {instruction.text}")
            return [target, *(onward if instruction.predicate else [])]
        ends = instruction.opcode[0] in ("ret", "exit", "trap") and not instruction.predicate
        return [] if ends else onward


def registers(text: str) -> list[str]:
    return re.findall(r"%\w+", text)


def lint(ptx: str, cooperative: bool = False) -> list[str]:
    """Findings, each with its rule, the line and the instruction."""
    findings: set[tuple[int, str, str, str]] = set()
    synchronized = False
    for function in parse(ptx):
        findings |= {(i.line, rule, why, i.text) for rule, why, i in (*ordering(function), *scopes(function))}
        polls = [i for i in polled(function) if function.code[i].acquires]
        synchronized |= bool(polls) and any(i.releases for i in function.code)
    if cooperative and not synchronized and not findings:  # else these say why
        findings.add((0, "R4", "a cooperative kernel without a loop that acquires, or without a release", "none"))
    return [f"{rule} line {line}: {why}: {text}" for line, rule, why, text in sorted(findings)]


def parse(ptx: str) -> list[Function]:
    functions: list[Function] = []
    for number, line in enumerate(ptx.splitlines(), 1):
        line = line.split("//")[0].strip()
        if re.match(r"(\.visible\s+|\.weak\s+|\.extern\s+)*\.(entry|func)\b", line):
            functions.append(Function([], {}))
        elif functions:
            if label := re.match(r"([\w$]+):", line):
                functions[-1].labels[label[1]] = len(functions[-1].code)
                line = line[label.end() :]
            # inline assembly may have several in a line, and braces of its own
            for text in line.split(";"):
                text = text.strip().removeprefix("{").strip()
                if found := re.match(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?$", text):
                    opcode = tuple(found[2].split("."))
                    functions[-1].code.append(Instruction(number, text, found[1] or "", opcode, found[3] or ""))
    # labels of debug sections point behind the code
    return [f._replace(labels={k: v for k, v in f.labels.items() if v < len(f.code)}) for f in functions if f.code]


def ordering(function: Function) -> Iterator[tuple[str, str, Instruction]]:
    """R1, R2 and R3, by what may have happened before each instruction: a fixpoint over all paths."""
    before: dict[int, int] = {0: 0}
    waiting = [0]
    while waiting:
        i = waiting.pop()
        state = happened(function.code[i], before[i])
        for following in function.after(i):
            joined = before.get(following, 0) | state
            if following not in before or joined != before[following]:
                before[following] = joined
                waiting.append(following)
    for i, state in before.items():
        instruction = function.code[i]
        if instruction.releases and instruction.wide and state & STORED:
            yield "R1", "a release, and no barrier since a store to global memory", instruction
        if instruction.loads and instruction.order == "weak" and state & ACQUIRED:
            yield "R2", "a load from global memory, and no barrier since an acquire", instruction
        if instruction.opcode[0] == "ld" and "shared::cluster" in instruction.opcode and state & SHARED:
            yield "R3", "a load from another block, and no barrier.cluster since a store to shared memory", instruction


def happened(instruction: Instruction, state: int) -> int:
    """The state after an instruction."""
    opcode = instruction.opcode
    if opcode[:3] == ("barrier", "cluster", "wait"):
        return 0
    # `bar.sync 1, 64` is for some warps only
    if (
        opcode[0] in ("bar", "barrier")
        and "sync" in opcode
        and "warp" not in opcode
        and "," not in instruction.operands
    ):
        return state & SHARED
    if instruction.stores and not instruction.acquires and not instruction.releases:
        state |= STORED
    if instruction.acquires:
        state |= ACQUIRED
    if opcode[0] == "st" and ELSEWHERE & set(opcode) & {"shared", "shared::cta", "shared::cluster"}:
        state |= SHARED
    return state


def scopes(function: Function) -> Iterator[tuple[str, str, Instruction]]:
    """R4."""
    pointers = roots(function)

    def counters(i: int) -> set[str]:
        return {root for register in registers(function.code[i].address) for root in pointers(register)}

    polls = polled(function)
    polled_counters = {counter for i in polls for counter in counters(i)}
    for i, instruction in enumerate(function.code):
        if not instruction.access:
            continue
        if (instruction.acquires or instruction.releases) and not instruction.wide:
            yield "R4", f"{instruction.order} at {instruction.scope} scope orders nothing between blocks", instruction
        elif i in polls and not instruction.acquires:
            yield "R4", f"a poll that is {instruction.order} acquires nothing", instruction
        elif instruction.access in ("atom", "red") and i not in polls and polled_counters & counters(i):
            *_, expected, desired = "", *[operand.strip() for operand in instruction.operands.split(",")]
            unchanged = "cas" in instruction.opcode and expected == desired
            if not instruction.releases and not unchanged:
                yield "R4", f"a polled counter is changed, {instruction.order} and not release", instruction


def polled(function: Function) -> set[int]:
    """Loads and atomics that a loop repeats until they give what it waits for.

    A loop is what lies between a label and a branch back to it; one that stores to global memory does more than wait.
    A plain load counts only at an address that the loop does not change, for it may be walking along an array.
    """
    found = set()
    for end in range(len(function.code)):
        start = function.jump(end)
        if start is None or start > end:
            continue
        body = range(start, end + 1)
        code = [function.code[i] for i in body]
        if any(i.stores and i.access != "atom" for i in code):
            continue
        changed = {register for i in code for register in i.written}
        for i in body:
            instruction = function.code[i]
            fixed = not changed.intersection(registers(instruction.address))
            again = instruction.access in ("ld", "atom") and (fixed or instruction.order != "weak")
            if again and decides(instruction, code):
                found.add(i)
    return found


def decides(load: Instruction, loop: list[Instruction]) -> bool:
    """Whether a branch of the loop depends on the value; it may pass through shared memory to reach all threads."""
    tainted = set(load.written)
    size = 0
    while size != len(tainted):
        size = len(tainted)
        for i in loop:
            shared = any(part.startswith("shared") for part in i.opcode)
            sources = ["shared memory"] if shared and i.opcode[0] == "ld" else i.read
            if tainted.intersection(sources):
                tainted.update(["shared memory"] if shared and i.opcode[0] == "st" else i.written)
    return any(i.opcode[0] == "bra" and tainted.intersection(registers(i.predicate)) for i in loop)


def roots(function: Function):
    """A function that gives the pointers from which an address is computed: parameters, or what was loaded."""
    definitions: dict[str, list[Instruction]] = {}
    for instruction in function.code:
        for register in instruction.written:
            definitions.setdefault(register, []).append(instruction)

    def of(register: str) -> set[str]:
        seen, leaves, waiting = set(), set(), [register]
        while waiting:
            current = waiting.pop()
            if current in seen:
                continue
            seen.add(current)
            for definition in definitions.get(current, ()):
                if definition.opcode[0] != "ld":
                    waiting.extend(definition.read)
                elif definition.opcode[-1] in ("b64", "u64"):
                    leaves.add(definition.address)
        return leaves

    return of
