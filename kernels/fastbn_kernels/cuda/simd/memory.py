"""Loads and stores of `ops`, to and from global and shared memory, as intrinsics.

LLVM's IR has no name for a cache hint: those are inline assembly.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastbn_kernels.cuda.build.numba_cuda import intrinsic, types
from fastbn_kernels.cuda.simd.words import LONG, RAW, WORD, WORDS, address, const, count_of, encode, unpack, vector_of

ANY = types.int64


def loader(hint: str) -> Any:
    """Make the intrinsic that loads with a cache hint."""

    def load(typingctx: Any, x: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            count, bits = count_of(x), x.dtype.bitwidth
            where = address(builder, *args)
            zero = const(0)
            if count > 1:
                kind = ir.FunctionType(ir.LiteralStructType([WORD] * 4), [LONG])
                text = f"ld.global{hint}.v4.b32 {{$0,$1,$2,$3}}, [$4];"
                code = ir.InlineAsm(kind, text, "=r,=r,=r,=r,l", side_effect=True)
                words = unpack(builder, builder.call(code, [where]), 4)
            elif bits == 16:
                # A 16-bit register widened in the same block: inline assembly has no constraint for half a word.
                text = f"{{ .reg .b16 h; ld.global{hint}.b16 h, [$1]; cvt.u32.u16 $0, h; }}"
                code = ir.InlineAsm(ir.FunctionType(WORD, [LONG]), text, "=r,l", side_effect=True)
                words = [builder.call(code, [where]), zero, zero, zero]
            elif bits == 32:
                code = ir.InlineAsm(
                    ir.FunctionType(WORD, [LONG]), f"ld.global{hint}.b32 $0, [$1];", "=r,l", side_effect=True
                )
                words = [builder.call(code, [where]), zero, zero, zero]
            else:
                kind = ir.FunctionType(ir.LiteralStructType([WORD] * 2), [LONG])
                text = f"ld.global{hint}.v2.b32 {{$0,$1}}, [$2];"
                code = ir.InlineAsm(kind, text, "=r,=r,l", side_effect=True)
                words = [*unpack(builder, builder.call(code, [where]), 2), zero, zero]
            return context.make_tuple(builder, signature.return_type, words)

        return RAW(x, ANY), generate

    return intrinsic(load)


# What is kept in shared memory is read once: of the caches' contents it goes first (.cs, "streaming"). What will be
# read again stays in the second-level cache.
load_once = loader(".cs")
load = loader(".L1::no_allocate")


@intrinsic
def store(typingctx: Any, y: Any, at: Any, values: Any) -> Any:
    """Round a vector to y's dtype and store it; nobody here reads it again."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = count_of(y)
        words = encode(builder, y.dtype, unpack(builder, args[2], count))
        _store_words(builder, address(builder, args[0], args[1]), words, y.dtype.bitwidth * count)
        return context.get_dummy_value()

    return types.void(y, ANY, vector_of(y)), generate


def _store_words(builder: Any, where: Any, words: list[Any], bits: int) -> None:
    void = ir.VoidType()
    if bits == 16:
        text = "{ .reg .b16 h; cvt.u16.u32 h, $1; st.global.cs.b16 [$0], h; }"
        code = ir.InlineAsm(ir.FunctionType(void, [LONG, WORD]), text, "l,r,~{memory}", side_effect=True)
        builder.call(code, [where, words[0]])
        return
    n = bits // 32
    group = ",".join(f"${i + 1}" for i in range(n))
    text = f"st.global.cs.b32 [$0], {group};" if n == 1 else f"st.global.cs.v{n}.b32 [$0], {{{group}}};"
    constraints = "l," + "r," * n + "~{memory}"
    code = ir.InlineAsm(ir.FunctionType(void, [LONG] + [WORD] * n), text, constraints, side_effect=True)
    builder.call(code, [where, *words])


@intrinsic
def store_part(typingctx: Any, y: Any, at: Any, values: Any, lo: Any, hi: Any) -> Any:
    """Store the values from lo up to hi of a vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, index, vector, low, high = args
        for i, value in enumerate(unpack(builder, vector, count_of(y))):
            here = const(i)
            inside = builder.and_(builder.icmp_signed("<=", low, here), builder.icmp_signed("<", here, high))
            with builder.if_then(inside):
                words = encode(builder, y.dtype, [value])
                at = builder.add(index, const(i, LONG))
                _store_words(builder, address(builder, pointer, at), words, y.dtype.bitwidth)
        return context.get_dummy_value()

    return types.void(y, ANY, vector_of(y), types.int32, types.int32), generate


@intrinsic
def load_part(typingctx: Any, x: Any, at: Any, hi: Any) -> Any:
    """Load the first `hi` values of a vector, where those behind do not belong to anybody; the rest are zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, bits = count_of(x), x.dtype.bitwidth
        kind = ir.IntType(bits)
        base = builder.bitcast(args[0], kind.as_pointer())
        filled = ir.VectorType(kind, count)(ir.Undefined)
        for i in range(count):
            with builder.if_else(builder.icmp_signed("<", const(i), args[2])) as (inside, outside):
                with inside:
                    value = builder.load(builder.gep(base, [builder.add(args[1], const(i, LONG))]))
                    loaded_in = builder.block
                with outside:
                    skipped_in = builder.block
            either = builder.phi(kind)
            either.add_incoming(value, loaded_in)
            either.add_incoming(const(0, kind), skipped_in)
            filled = builder.insert_element(filled, either, const(i))
        if count == 1:
            wide = builder.zext(builder.extract_element(filled, const(0)), ir.IntType(128))
            whole = builder.bitcast(wide, WORDS)
        else:
            whole = builder.bitcast(filled, WORDS)
        words = [builder.extract_element(whole, const(i)) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, words)

    return RAW(x, ANY, types.int32), generate


def _slot_address(context: Any, builder: Any, array: Any, value: Any, slot: Any) -> Any:
    """Return the shared address of a slot of 16 bytes."""
    data = context.make_array(array)(context, builder, value=value).data
    words = builder.bitcast(data, WORDS.as_pointer())
    return builder.addrspacecast(builder.gep(words, [slot]), ir.PointerType(WORDS, 3))


@intrinsic
def smem_store(typingctx: Any, smem: Any, slot: Any, raw: Any) -> Any:
    """Put what was loaded into a slot of shared memory."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = WORDS(ir.Undefined)
        for i, word in enumerate(unpack(builder, args[2], 4)):
            whole = builder.insert_element(whole, word, const(i))
        builder.store(whole, _slot_address(context, builder, smem, args[0], args[1]), align=16)
        return context.get_dummy_value()

    return types.void(smem, types.int32, RAW), generate


@intrinsic
def smem_load(typingctx: Any, smem: Any, slot: Any) -> Any:
    """Return what was put into a slot of shared memory."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.load(_slot_address(context, builder, smem, *args), align=16)
        words = [builder.extract_element(whole, const(i)) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, words)

    return RAW(smem, types.int32), generate
