"""Reading x86-64 assembly: whether a loop is made of whole vectors, and of no more instructions than those demand."""

import re
from collections import Counter
from dataclasses import dataclass

from llvmlite import binding
from numba import config, types

from fastbn_kernels.cpu.simd.types import LANES, STORED, lanes32

LABEL = re.compile(r"([.\w$]+):")
INSTRUCTION = re.compile(r"\s+([a-z]\w*)\s*(.*)")
REGISTER = re.compile(r"%([xyz])mm\d+")
BYTES = {"x": 16, "y": 32, "z": 64}

PACKED = re.compile(r"v?(fn?m(?:add|sub)(?=\d)|mul|add|sub)(?:\d{3})?(ps|pd)")
REFUSED = re.compile(
    r"v?(?:fn?m(?:add|sub)\d{3}|add|sub|mul|div|sqrt|mov|cvt\w+)s[sd][lq]?|v?cvtt?s[sd]\w+"  # scalar
    r"|v?p(?:extr|insr)[bwdq]|v?(?:extract|insert)ps|movnti\w?"  # lanes taken apart
    r"|vp?maskmov\w+|call\w?"  # what is left of a run has masks; nothing is called
)
MASKED = re.compile(r"\(.*\{z\}|\) \{%k\d\}$")  # a load of the first lanes and zeros, a store of them
PAST_CACHE = re.compile(r"v?movnt(?:ps|pd|dq)")
WIDENED = re.compile(r"v?cvtps2pd|vcvtph2pd")  # the latter of AVX512-FP16, of what is summed as it was loaded
# What turns stored elements into those of the arithmetic, once a register of the latter. Nothing does for float32 and
# float64; int32 are the bits of float32 that is computed in float64.
DECODING = {
    types.float32: None,
    types.int32: WIDENED,
    types.float64: None,
    types.int16: re.compile(r"vcvtph2psx?"),  # the latter of AVX512-FP16
    types.uint16: re.compile(r"vpmovzxwd"),
}


def innermost_loops(assembly):
    """The loops that hold no other, as lists of (operation, operands): from a label to a jump back to it."""
    instructions, labels = [], {}
    for line in assembly.splitlines():
        line = line.partition("#")[0]
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := INSTRUCTION.match(line):
            instructions.append((instruction[1], instruction[2].strip()))
    spans = {
        (labels[operands], end)
        for end, (operation, operands) in enumerate(instructions, 1)
        if operation.startswith("j") and labels.get(operands, end) < end
    }
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [instructions[start:end] for start, end in sorted(inner)]


def bytes_of(operands):
    """The bytes of the last vector register that an instruction names: what it writes, if that is one."""
    return BYTES[REGISTER.findall(operands)[-1]]


def is_single(data):
    """Whether values of a dtype are computed in float32."""
    return STORED[data][2] is lanes32


@dataclass(frozen=True)
class Loop:
    """What one turn of a loop does, in operations on vectors of 16 lanes."""

    fma: int = 0
    mul: int = 0
    add: int = 0  # and subtractions
    centred: int = 0  # (x - mean) * unit: a multiply-add in float32, an addition in float64, where the unit is 1
    more: int = 0  # vectors added up: u and u * d to short sums in float32, else the latter multiplied, to long sums
    chains: int = 0  # begun beside another in float32: one product is not fused, one addition more brings both together
    short: int = 0  # sums of those that are added to long ones, in float32
    wide: int = 0  # additions to long sums, which are float64 for all data
    loads: int = 0  # of data
    past_cache: int = 0  # vectors streamed
    single: "Loop | None" = None  # beside these, in float32 whatever the data


def complaints(loop, wanted, data):
    """What keeps a loop from being the wanted one on data of a Numba dtype; empty if it is. Unrolling is allowed."""
    single = is_single(data)
    found, widths = Counter(), set()
    past_cache = stack = 0
    problems = []
    for operation, operands in loop:
        if packed := PACKED.fullmatch(operation):
            kind = "fma" if packed[1].startswith("f") else packed[1].replace("sub", "add")
            found["wide" if kind == "add" and single and packed[2] == "pd" else f"{kind} {packed[2]}"] += 1
            widths.add(bytes_of(operands))
        elif REFUSED.fullmatch(operation) or MASKED.search(operands):
            problems.append(f"{operation} {operands}")
        elif PAST_CACHE.fullmatch(operation):
            past_cache += bytes_of(operands)
        if WIDENED.fullmatch(operation):
            found["widened"] += 1
        elif DECODING[data] and DECODING[data].fullmatch(operation):
            found["decoded"] += 1
        stack += "(%rsp" in operands and bool(REGISTER.search(operands))
    if len(widths) != 1:
        return [*problems, f"vectors of {sorted(widths)} bytes"]
    width = widths.pop()
    if width < widest():
        problems.append(f"vectors of {width} bytes, where {widest()} are to be had")
    expected = demanded(wanted, data, width)
    # AVX-512 has 32 registers. 16 of 32 bytes hold the sums and numbers of 16 lanes of float64 but for a few, if
    # products are added up in place; otherwise they do not.
    if stack > expected.total() * (0 if width == 64 else 1 / 4 if has("fma") else 1):
        problems.append(f"{stack} vectors go through the stack")
    turns = max(1, min(found[kind] // expected[kind] for kind in expected))
    for kind in sorted(found | expected):
        if found[kind] != turns * expected[kind]:
            problems.append(f"{kind}: {found[kind]}, expected {turns} x {expected[kind]}")
    if past_cache != turns * wanted.past_cache * LANES * data.bitwidth // 8:
        problems.append(f"{past_cache} bytes go past the cache, expected {turns} x {wanted.past_cache} vectors")
    return problems


def demanded(wanted, data, width):
    """How many instructions of a kind one turn takes with registers of so many bytes."""
    single = is_single(data)
    each, each_wide = LANES * (4 if single else 8) // width, LANES * 8 // width
    expected = counted(wanted, single, each)
    if single:
        for kind in ("wide", "widened"):
            expected[kind] += (wanted.wide + wanted.short) * each_wide
    else:
        expected["add pd"] += (wanted.wide + 2 * wanted.more) * each_wide
    if DECODING[data]:
        expected["widened" if DECODING[data] is WIDENED else "decoded"] += wanted.loads * each
    if wanted.single:
        expected += counted(wanted.single, True, LANES * 4 // width)
    return +expected


def counted(wanted, single, each):
    """How many instructions the operations of one kind of float are; without FMA, products and sums by themselves."""
    fma, mul, add = wanted.fma, wanted.mul, wanted.add
    if single:
        fma, mul = fma + wanted.centred + wanted.more - wanted.chains, mul + wanted.chains
        add += wanted.more + wanted.chains
    else:
        mul, add = mul + wanted.more, add + wanted.centred
    if not has("fma"):
        fma, mul, add = 0, mul + fma, add + fma
    element = "ps" if single else "pd"
    return Counter({f"{kind} {element}": count * each for kind, count in (("fma", fma), ("mul", mul), ("add", add))})


def has(feature):
    """Whether Numba compiles for a processor with a feature; asked as Numba does."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    return bool(binding.get_host_cpu_features().get(feature, False))


def widest():
    """The bytes of the widest vector registers that Numba compiles for."""
    return 64 if has("avx512f") else 32 if has("avx") else 16


def check(assembly, wanted, data):
    """Assert that one of the innermost loops is the wanted one."""
    found = [complaints(loop, wanted, data) for loop in innermost_loops(assembly)]
    assert [] in found, f"none of the loops is {wanted}:\n" + "\n".join(map(str, sorted(found, key=len)[:3]))
