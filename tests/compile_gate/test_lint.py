"""The lint on PTX written by hand: each rule with and without what it asks for, on straight and on looped paths."""

import pytest

from .lint import lint

KERNEL = """
.version 8.7
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u64 .ptr .global .align 1 kernel_param_1
)
{
    .reg .pred %p<4>;
    ld.param.b64 %rd1, [kernel_param_0];
    ld.param.b64 %rd2, [kernel_param_1];
    add.s64 %rd3, %rd2, 128;
    setp.eq.b32 %p1, %r1, 0;
"""
STORE = "st.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2, %r3, %r4 };"
LOAD = "ld.global.v4.b32 { %r5, %r6, %r7, %r8 }, [ %rd1 + 0 ];"
BARRIER = "bar.sync 0;"
ARRIVE = "@%p1 red.global.gpu.release.add.u32 [ %rd3 + 0 ], %r9;"
POLL = """$POLL: // Parent Loop
{ // begin inline asm
    @%p1 ld.global.gpu.acquire.b32 %r10, [ %rd2 + 128 ];
}
    st.shared.b32 [ %r11 ], %r10;
    bar.sync 0;
    ld.shared.b32 %r12, [global_smem];
    setp.lt.s32 %p2, %r12, %r13;
    @%p2 bra $POLL;"""
ACQUIRE = "@%p1 ld.acquire.gpu.global.b32 %r10, [ %rd2 + 0 ];"
AGAIN = "@%p3 bra $TOP;"


def rules(*body, cooperative=False):
    found = lint(KERNEL + "\n".join(body) + "\nret;\n}\n", cooperative)
    return [finding.split()[0] for finding in found]


def test_a_finding_names_rule_line_and_instruction():
    (found,) = lint(KERNEL + STORE + "\n" + ARRIVE + "\nret;\n}\n")
    assert found.startswith("R1 line 14: a release, and no barrier")
    assert found.endswith(": @%p1 red.global.gpu.release.add.u32 [ %rd3 + 0 ], %r9")


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        ([], [STORE, BARRIER, ARRIVE]),
        (["R1"], [BARRIER, STORE, ARRIVE]),
        (["R1"], [STORE, "bar.warp.sync -1;", ARRIVE]),
        (["R1"], [STORE, "bar.sync 1, 64;", ARRIVE]),  # for some warps only
        (["R1"], [STORE, ARRIVE.replace("gpu.release", "sys.acq_rel")]),
        (["R1"], ["red.global.gpu.relaxed.add.f32 [ %rd1 + 0 ], %r1;", ARRIVE]),
        ([], [STORE, BARRIER, ARRIVE, STORE]),
        ([], ["$TOP:", BARRIER, ARRIVE, STORE, AGAIN]),
        (["R1"], ["$TOP:", ARRIVE, STORE, AGAIN]),  # by the way back only
        ([], ["$TOP:", ARRIVE, STORE, BARRIER, AGAIN]),
        (["R1"], [STORE, "@%p3 bra $SKIP;", BARRIER, "$SKIP:", ARRIVE]),  # a barrier on one of two paths
        ([], ["@%p3 bra $SKIP;", STORE, BARRIER, "$SKIP:", ARRIVE]),
        ([], [STORE, "bra.uni $END;", "$DEAD:", ARRIVE, "$END:"]),  # never reached
        (["R1"], [STORE, "{ mov.b32 %r1, 0; " + ARRIVE + " }"]),  # several in a line
    ],
)
def test_r1(expected, body):
    assert rules(*body) == expected


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        ([], [ACQUIRE, BARRIER, LOAD]),
        (["R2"], [ACQUIRE, LOAD]),
        (["R2"], [ACQUIRE, "cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, 0x10;"]),
        ([], [LOAD, ACQUIRE]),
        ([], [ACQUIRE, "ld.shared.b32 %r1, [global_smem];", "ld.param.b64 %rd4, [kernel_param_0];"]),
        (["R2"], ["$TOP:", LOAD, ACQUIRE, AGAIN]),  # by the way back only
        ([], ["$TOP:", LOAD, ACQUIRE, BARRIER, AGAIN]),
        (["R2"], ["atom.global.acquire.gpu.cas.b32 %r1, [ %rd2 + 0 ], %r2, %r2;", LOAD]),
    ],
)
def test_r2(expected, body):
    assert rules(*body) == expected


def test_r3():
    store = "st.shared::cta.b32 [ %r1 ], %r2;"
    load = "ld.shared::cluster.b32 %r3, [ %r4 ];"
    meet = ["barrier.cluster.arrive.aligned;", "barrier.cluster.wait.aligned;"]
    assert rules(store, *meet, load) == []
    assert rules(store, load) == ["R3"]
    assert rules(store, BARRIER, load) == ["R3"]
    assert rules("$TOP:", load, store, AGAIN) == ["R3"]
    assert rules("$TOP:", load, store, *meet, AGAIN) == []


@pytest.mark.parametrize(
    ("expected", "arrive", "poll"),
    [
        ([], ARRIVE, POLL),
        ([], ARRIVE.replace("gpu", "sys"), POLL.replace("gpu", "sys")),
        (["R4"], ARRIVE.replace("gpu", "cta"), POLL),
        (["R4"], ARRIVE.replace("release", "relaxed"), POLL),
        (["R4"], ARRIVE.replace("red.global.gpu.release", "red.global"), POLL),  # relaxed is the default
        (["R4"], ARRIVE.replace("release", "acquire").replace("red", "atom").replace("[", "%r14, ["), POLL),
        (["R4"], ARRIVE, POLL.replace("gpu", "cta")),
        (["R4"], ARRIVE, POLL.replace("gpu.acquire", "gpu.relaxed")),
        (["R4"], ARRIVE, POLL.replace("ld.global.gpu.acquire", "ld.volatile.global")),
        (["R4"], ARRIVE, POLL.replace("ld.global.gpu.acquire", "ld.global")),
        (["R4"], ARRIVE.replace("rd3", "rd1"), POLL.replace("gpu.acquire", "gpu.relaxed")),
        ([], ARRIVE.replace("rd3", "rd1").replace("release", "relaxed"), POLL),  # a sum elsewhere
    ],
)
def test_r4(expected, arrive, poll):
    assert rules(BARRIER, arrive, poll, BARRIER, LOAD) == expected


def test_r4_asks_of_a_cooperative_kernel_that_it_synchronizes():
    assert rules(BARRIER, ARRIVE, POLL, BARRIER, LOAD, cooperative=True) == []
    assert rules(LOAD, cooperative=True) == ["R4"]
    assert rules(BARRIER, ARRIVE, cooperative=True) == ["R4"]
    assert rules(POLL, BARRIER, cooperative=True) == ["R4"]


def test_a_loop_that_works_is_no_poll():
    search = "$TOP: ld.global.b32 %r1, [ %rd4 ]; setp.lt.s32 %p3, %r1, %r2; add.s64 %rd4, %rd4, 4;"
    assert rules(search, AGAIN) == []
    assert rules("$TOP:", LOAD, STORE, "setp.lt.s32 %p3, %r5, %r2;", AGAIN) == []
    assert rules("$TOP:", LOAD, "setp.lt.s32 %p3, %r1, %r2;", AGAIN) == []  # the load decides nothing


def test_functions_are_apart():
    body = f"{STORE}\nret;\n}}\n.func other()\n{{\n{ARRIVE}\nret;\n}}\n"
    assert lint(KERNEL + body) == []


def test_a_branch_to_nowhere_is_an_error():
    with pytest.raises(ValueError, match=r"line 13: a branch to nowhere: bra \$AWAY"):
        rules("bra $AWAY;")
