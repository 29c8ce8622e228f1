"""How the blocks of a team wait for each other and see what the others wrote.

A team's barrier is two words: how many have arrived, and how many times all have. The last to arrive sets the first
back before it raises the second, so the words need no care between launches, whatever the next team's size. Arriving
is a release and leaving an acquire at the scope of the device; a block's other threads are tied in by the barriers of
the block around it (PTX ISA, "Memory Consistency Model": causality is transitive over both). What a block wrote for
the others is written and read in the second-level cache, past the first, which is not coherent.

A spin on a plain load would be taken out of its loop by the compiler; these loads have side effects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastbn_kernels.cuda.toolkit import SIMULATED, cuda, device, i32

# Words between the barriers of two teams: a line of the second-level cache, so that they do not wait for each other.
APART = 32

if SIMULATED or TYPE_CHECKING:
    from simulated import gpu as simulator

    def arrive(words: Any, at: int) -> int:
        """Add one to a word and return what it was."""
        words[at] += 1
        return int(words[at]) - 1

    def look(words: Any, at: int) -> int:
        """Return a word."""
        return int(words[at])

    def clear(words: Any, at: int) -> None:
        """Set a word to zero."""
        words[at] = 0

    def pause() -> None:
        """Let others go on."""
        simulator.spin()

    def publish(slots: Any, at: int, value: float) -> None:
        """Write a number for other blocks."""
        assert 0 <= at < slots.size
        slots[at] = value

    def receive(slots: Any, at: int) -> Any:
        """Read a number of another block."""
        assert 0 <= at < slots.size
        return slots[at]

else:
    from llvmlite import ir

    from fastbn_kernels.cuda.toolkit import intrinsic, types

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

    arrive = assembly("atom.add.acq_rel.gpu.global.u32 $0, [$1], 1;", "=r,l", WORD, None, types.uint32)
    look = assembly("ld.acquire.gpu.global.u32 $0, [$1];", "=r,l", WORD, None, types.uint32)
    clear = assembly("st.relaxed.gpu.global.u32 [$0], 0;", "l", VOID, None, types.void)
    publish = assembly("st.relaxed.gpu.global.f64 [$0], $1;", "l,d", VOID, DOUBLE, types.void)
    receive = assembly("ld.relaxed.gpu.global.f64 $0, [$1];", "=d,l", DOUBLE, None, types.float64)

    @intrinsic
    def pause(typingctx: Any) -> Any:
        """Let others go on."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.call(ir.InlineAsm(ir.FunctionType(VOID, []), "nanosleep.u32 20;", "", side_effect=True), [])
            return context.get_dummy_value()

        return types.void(), generate


@device
def team_barrier(words: Any, team: int, blocks: int) -> None:
    """Wait until all blocks of this team are here; everything that they wrote before can then be read."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        here = i32(team * APART)
        passed = i32(here + 1)
        before = look(words, passed)
        if arrive(words, here) == blocks - 1:
            clear(words, here)
            arrive(words, passed)
        else:
            while look(words, passed) == before:
                pause()
    cuda.syncthreads()
