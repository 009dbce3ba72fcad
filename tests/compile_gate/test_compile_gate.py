"""Tests of the kernels that ship, compiled for every GPU without one, and of the gate itself."""

import dataclasses
import importlib.util
import json
import os
import re
import warnings
from collections import Counter

import pytest
from fusedmdn.ops.launch import Options

from . import __main__ as command
from . import table
from .shipped import shipped
from .targets import NVIDIA, TARGETS
from .variants import SPECIMENS, Variant, exchange, pairs_of, product, sample
from .workers import ROOT, compile_all, installed_triton

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def committed():
    return table.read(table.PATH)


@pytest.fixture(scope="module")
def triton():
    return installed_triton()


@pytest.fixture(scope="module")
def sampled():
    """(variant, target, figures) of a part of all pairs."""
    chosen = sample(pairs_of(shipped()), 60)
    figures = compile_all(chosen)
    return [(variant, target, figures[variant.name, target]) for variant, target in chosen]


def test_the_table_is_of_the_kernels_that_ship(committed):
    assert committed["pairs"]
    assert table.stale(committed, shipped()) == []


def test_no_fault_in_the_table(committed):
    rows = [(v, t, committed["pairs"].get(table.key(v.name, t), {"error": "no row"})) for v, t in pairs_of(shipped())]
    assert faults(rows) == []


@needs_triton
def test_no_fault_in_a_sample(sampled, committed, triton):
    """With another Triton than the table's a few bytes of spills are told, not refused: staging was chosen for one."""
    found = faults(sampled)
    if triton != committed["triton"]:
        spills = [fault for fault in found if " spills " in fault]
        if spills:
            warnings.warn(f"Triton {triton}: {len(spills)} of {len(sampled)} pairs: {spills}", stacklevel=1)
        found = [fault for fault in found if fault not in spills]
    assert found == []


@needs_triton
def test_no_growth_in_a_sample(sampled, committed, triton):
    if triton != committed["triton"]:
        pytest.skip(f"growth is compared with Triton {committed['triton']} only, and this is {triton}")
    rows = committed["pairs"]
    found = {table.key(v.name, t): table.growth(figures, rows[table.key(v.name, t)]) for v, t, figures in sampled}
    assert {pair: more for pair, more in found.items() if more} == {}


def faults(rows):
    return [f"{table.key(v.name, t)}: {fault}" for v, t, figures in rows for fault in table.faults(v, t, figures)]


BAD_BARRIERS = {  # the rule that finds it, and a part of what it says
    "no barrier before release": ("R1", ".release."),
    "relaxed arrive": ("R4", "relaxed and not release"),
    "arrive in block scope": ("R4", "release at cta scope"),
    "volatile poll": ("R4", "ld.volatile.global"),
    "plain poll": ("R4", "without a loop that acquires"),  # Triton takes the load out of the loop
    "relaxed poll": ("R4", "a poll that is relaxed"),
    "poll in block scope": ("R4", "acquire at cta scope"),
}
GOOD_BARRIERS = ["good", "good, compare and swap"]
LARGE = product("large tile", CHUNKS=((0, 1, 1024),), DEPTH=1024, targets=("sm_80", "sm_86", "sm_90", "sm_120"))
IEEE = product("ieee", "fp32", ("sm_90",))
UNROLLED = product("unrolled", "fp32", ("sm_90",), CHUNKS=((0, 1, 128),), ROWS=64, COLUMNS=64, DEPTH=128)
CROWDED = dataclasses.replace(
    product("crowded", CHUNKS=((0, 1, 16),), ROWS=256, COLUMNS=512, DEPTH=16, targets=("gfx942",)),
    options=Options(warps=16),
)
SINE = Variant("sine", f"{SPECIMENS}:sine", {"X": "*fp32"}, {"BLOCK": 128}, targets=("sm_90", "gfx942"))


@pytest.fixture(scope="module")
def specimens():
    bad = [exchange(kind, ("sm_80", "sm_90")) for kind in BAD_BARRIERS]
    good = [exchange(kind) for kind in GOOD_BARRIERS]
    return compile_all(pairs_of([*bad, *good, product("bf16"), LARGE, IEEE, UNROLLED, CROWDED, SINE]))


@needs_triton
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kind", BAD_BARRIERS)
def test_a_bad_barrier_is_found(specimens, kind, target, triton):
    figures = specimens[f"exchange, {kind}", target]
    rule, part = BAD_BARRIERS[kind]
    if kind == "no barrier before release" and triton.startswith("3.9."):
        assert figures["lint"] == []  # this Triton puts one there by itself
        return
    assert len(figures["lint"]) == 1
    assert figures["lint"][0].startswith(f"{rule} line ")
    assert part in figures["lint"][0]
    assert figures["lint"] == table.faults(exchange(kind), target, figures)


@needs_triton
@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("kind", GOOD_BARRIERS)
def test_a_good_barrier_is_not(specimens, kind, target):
    figures = specimens[f"exchange, {kind}", target]
    assert figures["lint"] == []
    assert figures["barriers"] >= 4
    # sm_80 to sm_90 poll with a load, which is no atomic
    assert figures["atomics"] == (1 if kind == "good" else 2)


@needs_triton
@pytest.mark.parametrize("target", TARGETS)
def test_a_product_with_absent_bias_and_nested_tuples(specimens, target):
    figures = specimens["product, bf16", target]
    assert table.faults(product("bf16"), target, figures) == []
    assert figures["matrix"] == 100  # 2 x 8 tiles of 32 x 64, of 4 warps a quarter each, in 25 steps of the depth
    assert figures["registers"] > 40
    assert figures["shared"] >= 4096


@needs_triton
@pytest.mark.parametrize(("variant", "target"), [(UNROLLED, "sm_90"), (CROWDED, "gfx942")])
def test_spills_are_found(specimens, variant, target):
    figures = specimens[variant.name, target]
    assert figures["spills"] > 100
    assert f"spills {figures['spills']} bytes a thread" in table.faults(variant, target, figures)


@needs_triton
def test_the_stack_of_a_slow_path_is_no_spill(specimens, triton):
    figures = specimens["sine", "sm_90"]
    assert figures["stack"] == (0 if triton.startswith("3.9.") else 32)
    for target in SINE.targets:
        assert table.faults(SINE, target, specimens["sine", target]) == []


@needs_triton
def test_too_much_shared_memory_is_found(specimens):
    found = {target: table.faults(LARGE, target, specimens[LARGE.name, target]) for target in LARGE.targets}
    assert found["sm_90"] == []
    limits = {"sm_80": 166912, "sm_86": 101376, "sm_120": 101376}
    assert all(found[target] == [f"shared memory 196608 > {limit} bytes"] for target, limit in limits.items())


@needs_triton
def test_missing_matrix_instructions_are_found(specimens):
    figures = specimens[IEEE.name, "sm_90"]
    assert table.faults(IEEE, "sm_90", figures) == []
    assert table.faults(dataclasses.replace(IEEE, wants_mma=True), "sm_90", figures) == ["no matrix instructions"]


@needs_triton
def test_what_kills_a_worker_costs_one_pair(tmp_path, monkeypatch):
    (tmp_path / "aborts.py").write_text(
        "import os, sys\nprint('LLVM ERROR', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    (tmp_path / "exits.py").write_text("import os\nos._exit(3)\n")
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    deadly = [Variant(name, f"{name}:kernel", {}, targets=("sm_90",)) for name in ("aborts", "exits", "hangs")]
    absent = Variant("absent", f"{SPECIMENS}:kernel", {}, targets=("sm_90",))
    wrong = dataclasses.replace(SINE, name="wrong", constexprs={"SIZE": 128}, targets=("sm_90",))
    before, after = (dataclasses.replace(SINE, name=name, targets=("sm_90",)) for name in ("before", "after"))
    seen = []
    pairs = pairs_of([before, *deadly, absent, wrong, after])
    figures = compile_all(pairs, lambda variant, target, figures: seen.append(variant.name), timeout=10)
    assert list(figures) == [(variant.name, target) for variant, target in pairs]
    assert Counter(seen) == Counter(variant.name for variant, target in pairs)
    errors = {name: row["error"] for (name, target), row in figures.items() if "error" in row}
    assert list(errors) == ["aborts", "exits", "hangs", "absent", "wrong"]
    assert "SIGABRT" in errors["aborts"]
    assert "LLVM ERROR" in errors["aborts"]
    assert "exit status 3" in errors["exits"]
    assert errors["hangs"] == "no answer in 10 s"
    assert "has no attribute 'kernel'" in errors["absent"]
    assert "BLOCK, SIZE" in errors["wrong"]
    assert figures["before", "sm_90"] == figures["after", "sm_90"]
    assert table.faults(deadly[0], "sm_90", figures["aborts", "sm_90"])[0].startswith(
        "did not compile: the compiler died"
    )


@needs_triton
def test_alignment_is_of_the_named_pointers():
    from .compiler import source
    from .specimens import product as kernel

    variant = dataclasses.replace(product("unaligned"), unaligned=("B",))
    arguments = source(variant, kernel)
    assert list(arguments["attrs"]) == [(0,), (3,)]
    assert arguments["signature"]["bias"] == "constexpr"
    assert arguments["constexprs"][(2,)] is None


ROW = {"registers": 96, "spills": 0, "stack": 0, "shared": 4096, "matrix": 8, "barriers": 4, "lint": []}


@pytest.mark.parametrize("name", ["registers", "shared", "spills", "barriers"])
def test_growth_over_the_table_is_found(name):
    assert table.growth(ROW, ROW) == []
    assert table.growth(ROW | {name: ROW[name] + 1}, ROW) == [f"{name} {ROW[name] + 1} > {ROW[name]} in the table"]
    assert table.growth(ROW, ROW | {name: ROW[name] + 1}) == []


def row(variant):
    return ROW | {"digest": table.digests([variant])[variant.name]}


def test_a_stale_table_is_found():
    variant = dataclasses.replace(SINE, targets=("sm_80", "sm_90"))
    made = {"triton": table.PINNED, "pairs": {"sine sm_80": row(variant), "sine sm_90": row(variant)}}
    assert table.stale(made, [variant]) == []
    begin = "the table is stale, run `python -m tests.compile_gate --refresh`: "
    changed = dataclasses.replace(variant, options=Options(warps=8))
    assert table.stale(made, [changed]) == [
        f"{begin}kernel or variant has changed since the row was made: sine sm_80, sine sm_90"
    ]
    assert table.stale(made, [dataclasses.replace(variant, targets=("sm_80", "sm_86"))]) == [
        f"{begin}no row for sine sm_86",
        f"{begin}rows that do not ship: sine sm_90",
    ]
    assert table.stale(made | {"triton": "3.6.0"}, [variant]) == [
        f"{begin}it is of Triton 3.6.0, not of {table.PINNED}"
    ]
    assert table.stale({"triton": table.PINNED, "pairs": {}}, [dataclasses.replace(SINE, targets=NVIDIA)]) == [
        f"{begin}no row for sine sm_100, sine sm_120, sine sm_80 and 3 more"
    ]


LSTM, GRU, LOSS = (Variant(name, f"{name}:kernel", {}, targets=("sm_80", "sm_90")) for name in ("lstm", "gru", "loss"))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The modules of these three kernels, and what they import."""
    modules = {
        "lstm": "import math\nfrom .cell import gates as cell_gates\n\ndef kernel():\n    cell_gates()\n",
        "gru": "from .activations import tanh\n\n@jit(1)\ndef kernel():\n    return tanh\n\ndef other():\n    pass\n",
        "loss": "LIMIT = 1\n\ndef kernel():\n    return LIMIT\n",
        "cell": "from .activations import tanh\n\ndef gates():\n    tanh()\n\ndef unused():\n    pass\n",
        "activations": "from .cell import gates\n\ndef tanh():\n    gates()\n",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "names"),
    [
        ("activations", "    gates()", "    gates(), 1", {"lstm", "gru"}),
        ("cell", "    tanh()", "    tanh(1)", {"lstm", "gru"}),
        ("cell", "    pass", "    return 1", set()),
        ("lstm", "    cell_gates()", "    pass", {"lstm"}),
        ("gru", "jit(1)", "jit(2)", {"gru"}),
        ("gru", "    pass", "    return 1", set()),
        ("loss", "LIMIT = 1", "LIMIT = 2", {"loss"}),
    ],
)
def test_a_changed_definition_makes_the_rows_of_the_kernels_that_use_it_stale(tree, file, old, new, names):
    before = table.digests([LSTM, GRU, LOSS])
    assert before == table.digests([LOSS, GRU, LSTM])
    path = tree / f"{file}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    after = table.digests([LSTM, GRU, LOSS])
    assert {name for name in before if after[name] != before[name]} == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from . import activations\n", r"import the names of a module, .*from \. import activations"),
        ("from .activations import *\n", "import the names of a module"),
        ("LIMIT: int = 1\n", "neither function, constant nor import: LIMIT: int = 1"),
        ("A, B = 1, 2\n", "neither function, constant nor import"),
        ("LIMIT = 1\nLIMIT = 2\n", "LIMIT is defined twice"),
        ("if True:\n    LIMIT = 1\n", "neither function, constant nor import"),
        ("from .activations import cosh\n\ndef other():\n    cosh()\n", None),
        ("from .activations import cosh\n\nOTHER = cosh\n", None),
    ],
)
def test_what_would_not_be_seen_is_refused(tree, text, message):
    """At the top of a module; what a kernel has nothing to do with may be anything."""
    path = tree / "gru.py"
    path.write_text(text + "\n\ndef kernel():\n    pass\n")
    if message is None:
        table.digests([GRU])
        return
    with pytest.raises(ValueError, match=rf"gru\.py: {message}"):
        table.digests([GRU])


def test_what_is_imported_from_who_imports_it_is_followed(tree):
    (tree / "gru.py").write_text("from .lstm import cell_gates\n\ndef kernel():\n    cell_gates()\n")
    before = table.digests([GRU])
    (tree / "cell.py").write_text("def gates():\n    pass\n")
    assert table.digests([GRU]) != before


@pytest.mark.parametrize("kernel", ["loss:nothing", "gru:kernel"])
def test_a_definition_that_is_missing_is_named(tree, kernel):
    (tree / "activations.py").write_text("def sinh():\n    pass\n")
    with pytest.raises(ValueError, match="has no (nothing|tanh)"):
        table.digests([dataclasses.replace(GRU, kernel=kernel)])


def test_a_changed_variant_makes_its_own_rows_stale(tree):
    before = table.digests([LSTM, GRU])
    assert table.digests([dataclasses.replace(LSTM, targets=("sm_100",)), GRU]) == before
    for change in ({"signature": {"X": "*bf16"}}, {"constexprs": {"H": 400}}, {"options": Options(warps=8)}):
        after = table.digests([dataclasses.replace(LSTM, **change), GRU])
        assert after["lstm"] != before["lstm"]
        assert after["gru"] == before["gru"]


def test_kernels_import_each_other_relatively():
    """A digest covers no other import."""
    paths = list((ROOT / "kernels" / "triton").glob("*.py"))
    assert paths
    for path in paths:
        assert re.findall(r"^\s*(?:from|import) fusedmdn.*", path.read_text(), re.MULTILINE) == [], path


@pytest.fixture
def compiled(monkeypatch):
    """Names of the pairs that were compiled; nothing is, all get the same figures."""
    names = []

    def compile_all(pairs, progress):
        figures = {}
        for variant, target in pairs:
            if variant.name == "interrupted":
                raise KeyboardInterrupt
            names.append(table.key(variant.name, target))
            figures[variant.name, target] = {"error": "no"} if variant.name == "wrong" else ROW
            progress(variant, target, figures[variant.name, target])
        return figures

    monkeypatch.setattr(command, "compile_all", compile_all)
    monkeypatch.setattr(command, "installed_triton", lambda: table.PINNED)
    return names


def test_refresh_compiles_what_is_stale_or_missing_and_drops_what_does_not_ship(tree, compiled, capsys):
    path = tree / "table.json"
    old = ["lstm sm_80", "lstm sm_90", "gru sm_80", "gru sm_90"]

    def refresh(variants, *options):
        compiled.clear()
        assert command.main(["--refresh", *options], variants, path) == 0
        assert table.stale(table.read(path), variants) == []
        assert list(tree.glob("table.*")) == [path]
        return compiled

    assert refresh([LSTM, GRU]) == old
    kept = path.read_text()
    assert refresh([LSTM, GRU]) == []
    assert path.read_text() == kept
    (tree / "lstm.py").write_text("def kernel():\n    return 1\n")
    capsys.readouterr()
    less = dataclasses.replace(GRU, targets=("sm_90",))
    assert refresh([LSTM, less, LOSS]) == ["lstm sm_80", "lstm sm_90", "loss sm_80", "loss sm_90"]
    assert "table.json: 1 rows kept, 4 compiled, 1 dropped\n" in capsys.readouterr().out
    assert refresh([LSTM, GRU], "--all") == old
    path.write_text(path.read_text().replace(table.PINNED, "3.6.0"))
    assert refresh([LSTM, GRU]) == old


def test_refresh_writes_what_it_finished_before_an_interruption(tree, compiled):
    path = tree / "table.json"
    variants = [LSTM, LOSS, dataclasses.replace(GRU, name="interrupted", targets=("sm_90",))]
    with pytest.raises(KeyboardInterrupt):
        command.main(["--refresh"], variants, path)
    assert table.read(path)["pairs"] == {name: row(LSTM if "lstm" in name else LOSS) for name in compiled}
    assert len(compiled) == 4
    compiled.clear()
    assert command.main(["--refresh"], [LSTM, LOSS], path) == 0
    assert compiled == []


def test_what_does_not_compile_stays_stale(tree, compiled, capsys):
    path = tree / "table.json"
    wrong = dataclasses.replace(LSTM, name="wrong", targets=("sm_90",))
    table.write({"wrong sm_90": ROW | {"digest": "of before"}}, table.PINNED, path)
    assert command.main(["--refresh"], [wrong, LOSS], path) == 1
    assert "wrong sm_90: did not compile: no\n" in capsys.readouterr().out
    assert table.read(path)["pairs"]["wrong sm_90"]["digest"] == "of before"
    assert table.stale(table.read(path), [LOSS, wrong])[0].endswith("since the row was made: wrong sm_90")


def test_a_row_of_the_table_is_a_line(tmp_path):
    path = tmp_path / "table.json"
    table.write({"sine sm_90": ROW, "sine gfx942": ROW}, table.PINNED, path)
    lines = [line.strip().rstrip(",") for line in path.read_text().splitlines() if line.startswith('    "sine ')]
    assert [json.loads(f"{{{line}}}") for line in lines] == [{"sine gfx942": ROW}, {"sine sm_90": ROW}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_sample_has_every_variant_and_every_target():
    names = [f"v{i}" for i in range(50)]
    variants = [Variant(name, "m:k", {}, targets=NVIDIA) for name in names]
    variants += [Variant("last", "m:k", {}, targets=("sm_80", "gfx942"))]
    pairs = pairs_of(variants)
    chosen = sample(pairs, 60)
    assert chosen == sample(pairs, 60)
    assert len(chosen) == 60
    assert all(pair in pairs for pair in chosen)
    assert len({(variant.name, target) for variant, target in chosen}) == 60
    assert {variant.name for variant, _ in chosen} == {variant.name for variant in variants}
    used = Counter(target for _, target in chosen)
    assert set(used) == set(TARGETS)
    assert all(used[target] >= 9 for target in NVIDIA)
    assert len(sample(pairs[:7], 60)) == 7
    few = sample(pairs, 20)  # there is no room for all variants
    assert len(few) == 20
    assert len({variant.name for variant, _ in few}) >= 19
    assert {target for _, target in few} == set(TARGETS)
    assert any(variant.name in names[40:] for variant, _ in few)


def test_pairs_are_named_once():
    with pytest.raises(ValueError, match="sine sm_90: more than once"):
        pairs_of([SINE, SINE])
    with pytest.raises(ValueError, match="sine sm_91: no such target"):
        pairs_of([dataclasses.replace(SINE, targets=("sm_91",))])


@needs_triton
def test_the_command(tmp_path, capsys, triton):
    variants = [SINE, dataclasses.replace(SINE, name="cosine", targets=("sm_80",))]
    path = tmp_path / "table.json"
    assert command.main(["--variant", "cos"], variants, path) == 0
    said = capsys.readouterr()
    assert [line.split()[:2] for line in said.out.splitlines()[:2]] == [["variant", "target"], ["cosine", "sm_80"]]
    assert "[1/1] cosine sm_80" in said.err
    assert not path.exists()
    with pytest.raises(SystemExit):
        command.main(["--refresh", "--target", "sm_90"], variants, path)
    if triton != table.PINNED:
        with pytest.raises(SystemExit):
            command.main(["--refresh"], variants, path)
        assert not path.exists()
        return
    assert command.main(["--refresh"], variants, path) == 0
    assert command.main(["--check"], variants, path) == 0
    made = json.loads(path.read_text())
    made["pairs"]["sine sm_90"]["registers"] -= 1
    path.write_text(json.dumps(made))
    capsys.readouterr()
    assert command.main(["--check", "--target", "sm_90"], variants, path) == 1
    assert "sine sm_90: registers " in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no kernel"):
        command.main(["--refresh"], [*variants, Variant("absent", f"{SPECIMENS}:kernel", {})], path)
    assert table.read(path) == made
