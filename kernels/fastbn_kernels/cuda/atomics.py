"""Instructions with which blocks tell each other things in global memory.

What a block writes for others goes to the second-level cache, past the first, which is not coherent. A spin on a plain
load would be taken out of its loop by the compiler; these loads have side effects.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastbn_kernels.cuda.build.numba_cuda import SIMULATED, intrinsic, stand_ins, types

WORD, LONG, DOUBLE, VOID = ir.IntType(32), ir.IntType(64), ir.DoubleType(), ir.VoidType()


def assembly(text: str, constraints: str, result: Any, operand: Any, returned: Any) -> Any:
    """Make the intrinsic of one instruction on an element of an array, with a value if there is an operand."""

    def code(builder: Any, args: Any) -> Any:
        where = builder.ptrtoint(builder.gep(args[0], [args[1]]), LONG)
        given = [LONG] if operand is None else [LONG, operand]
        asm = ir.InlineAsm(ir.FunctionType(result, given), text, constraints + ",~{memory}", side_effect=True)
        return builder.call(asm, [where, *args[2:]])

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        done = code(builder, args)
        return context.get_dummy_value() if result == VOID else done

    if operand is None:

        def reading(typingctx: Any, array: Any, at: Any) -> Any:
            return returned(array, types.int64), generate

        return intrinsic(reading)

    def writing(typingctx: Any, array: Any, at: Any, value: Any) -> Any:
        return returned(array, types.int64, types.float64), generate

    return intrinsic(writing)


if SIMULATED:
    globals().update(stand_ins("gpu_atomics"))
else:
    # arrive adds one to a word and returns what it was; look returns a word; clear sets it to zero.
    arrive = assembly("atom.add.acq_rel.gpu.global.u32 $0, [$1], 1;", "=r,l", WORD, None, types.uint32)
    look = assembly("ld.acquire.gpu.global.u32 $0, [$1];", "=r,l", WORD, None, types.uint32)
    clear = assembly("st.relaxed.gpu.global.u32 [$0], 0;", "l", VOID, None, types.void)
    # publish writes a number for other blocks; receive reads one of theirs.
    publish = assembly("st.relaxed.gpu.global.f64 [$0], $1;", "l,d", VOID, DOUBLE, types.void)
    receive = assembly("ld.relaxed.gpu.global.f64 $0, [$1];", "=d,l", DOUBLE, None, types.float64)

    @intrinsic
    def pause(typingctx: Any) -> Any:
        """Let others go on."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.call(ir.InlineAsm(ir.FunctionType(VOID, []), "nanosleep.u32 20;", "", side_effect=True), [])
            return context.get_dummy_value()

        return types.void(), generate
