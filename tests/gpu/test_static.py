"""`make gpu-static` sees what it is there to see."""

import gpu_static
import pytest

LOADS = "\n".join(f"ld.global.cs.v4.b32 {{%r{4 * i},%r1,%r2,%r3}}, [%rd{i}];" for i in range(4))
STORE = "st.global.cs.v4.b32 [%rd9], {%r0,%r1,%r2,%r3};"


def loop(body):
    """A kernel with one loop, and another block in the middle of it, as NVVM lays them out."""
    return f"""
mov.u32 %r9, 0;
bra.uni $L__BB0_3;
$L__BB0_1:
ld.global.b32 %r8, [%rd8];
bra.uni $L__BB0_4;
$L__BB0_3:
{body}
@%p1 bra $L__BB0_3;
@%p2 bra $L__BB0_1;
$L__BB0_4:
ret;
"""


def judged(code, **changes):
    row = gpu_static.Row("forward_channels_first", "float32", "90", registers=100, shared=144)
    for name, value in changes.items():
        setattr(row, name, value)
    gpu_static.judge(row, code, scalars=False, cooperative=True)
    return row


def test_what_is_as_it_should_be():
    row = judged(loop(LOADS + "\n" + STORE))
    assert (row.problem, row.load, row.store, row.blocks) == ("", 16, 16, 2)


@pytest.mark.parametrize(
    ("body", "changes", "problem"),
    [
        (LOADS + "\nld.global.b32 %r7, [%rd7];", {}, "less than 16 bytes"),
        (LOADS + "\nst.global.cs.b32 [%rd9], %r0;", {}, "less than 16 bytes"),
        (LOADS + "\nst.global.cs.v2.b32 [%rd9], {%r0,%r1};", {}, "less than 16 bytes"),
        ("ld.global.cs.b32 %r7, [%rd7];", {}, "no hot loop"),
        (LOADS, {"spilled": 8}, "8 bytes spilled"),
        (LOADS, {"registers": 136}, "1 blocks fit, the plans count on 2"),
        (LOADS, {"shared": 4096}, "4096 bytes of shared memory"),
    ],
)
def test_what_is_not(body, changes, problem):
    assert problem in judged(loop(body), **changes).problem


def test_loops_are_found_by_where_jumps_lead():
    inner = gpu_static.innermost_loops([line.strip() for line in loop(LOADS).splitlines()])
    assert [gpu_static.widths(body, gpu_static.LOAD) for body in inner] == [[16] * 4]
