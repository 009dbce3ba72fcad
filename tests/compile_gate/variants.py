"""What is compiled: a kernel with its types and constants, as it is launched, and the list of those that ship."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from fusedmdn.ops.launch import Options

from .targets import NVIDIA, TARGETS

FOUR_WARPS = Options(warps=4)


@dataclass(frozen=True)
class Variant:
    """One specialization of a kernel.

    kernel is "module:function", so that a list of variants can be made without Triton. Every argument of the function
    is in signature (name -> Triton type: "*bf16", "i32") or in constexprs (name -> value; None for an absent pointer)
    unless it has a default. Pointers are 16-byte aligned but for those in unaligned; integers may have any value.
    """

    name: str
    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, object] = field(default_factory=dict)
    options: Options = FOUR_WARPS
    targets: tuple[str, ...] = tuple(TARGETS)
    wants_mma: bool = False
    unaligned: tuple[str, ...] = ()


SPECIMENS = "tests.compile_gate.specimens"


def exchange(kind: str, targets: tuple[str, ...] = NVIDIA) -> Variant:
    """The specimen with a grid barrier; kind says what is wrong with it."""
    return Variant(
        name=f"exchange, {kind}",
        kernel=f"{SPECIMENS}:exchange",
        signature={"X": "*fp32", "H": "*fp32", "counter": "*i32", "steps": "i32", "programs": "i32"},
        constexprs={"BLOCK": 1024, "KIND": kind},
        options=Options(warps=4, cooperative=True),
        targets=targets,
    )


def product(name: str, dtype: str = "bf16", targets: tuple[str, ...] = tuple(TARGETS), **changes: object) -> Variant:
    """The specimen with matrix products; changes are to its constants."""
    constexprs = {
        "bias": None,
        "CHUNKS": ((0, 8, 32), (256, 8, 16), (384, 1, 16)),
        "ROWS": 32,
        "COLUMNS": 64,
        "DEPTH": 400,
        "PRECISION": "ieee",
        **changes,
    }
    return Variant(
        name=f"product, {name}",
        kernel=f"{SPECIMENS}:product",
        signature={"A": f"*{dtype}", "B": f"*{dtype}", "C": f"*{dtype}"},
        constexprs=constexprs,
        targets=targets,
        wants_mma=(dtype, constexprs["PRECISION"]) != ("fp32", "ieee"),
    )


def pairs_of(variants: Iterable[Variant]) -> list[tuple[Variant, str]]:
    pairs = [(variant, target) for variant in variants for target in variant.targets]
    for (name, target), times in Counter((variant.name, target) for variant, target in pairs).items():
        if times > 1 or target not in TARGETS:
            raise ValueError(f"{name} {target}: " + ("more than once" if times > 1 else "no such target"))
    return pairs


def sample(pairs: list[tuple[Variant, str]], most: int) -> list[tuple[Variant, str]]:
    """A spread that is always the same and has every target: each variant on the target least used so far, then more.

    Of too many variants, it has as many as there is room for, at even distances in the list.
    """
    left = {variant.name: [pair for pair in pairs if pair[0].name == variant.name] for variant, _ in pairs}
    used = Counter({target: 0 for _, target in pairs})
    chosen = []

    def choose(candidates: list[tuple[Variant, str]]) -> None:
        pair = min(candidates, key=lambda pair: used[pair[1]])
        left[pair[0].name].remove(pair)
        used[pair[1]] += 1
        chosen.append(pair)

    names = list(left)
    room = min(len(names), most - len(used))
    for i in range(room):
        choose(left[names[i * len(names) // room]])
    for target in list(used):
        if not used[target]:
            choose([pair for pair in pairs if pair[1] == target])
    while len(chosen) < min(most, len(pairs)):
        # the variants with the fewest pairs so far
        name = min((name for name in names if left[name]), key=lambda name: sum(v.name == name for v, _ in chosen))
        choose(left[name])
    return chosen
