"""What can be known of the GPU kernels without a GPU: compile all of them, assemble them, and read the result.

    python bench/gpu_static.py [--kernels forward_channels_first,...] [--dtypes float32,...] [--architectures 90,...]

Every kernel is compiled for every dtype and architecture by NVVM, as on a machine with that GPU, and assembled by
ptxas; for `exact`, float32 that is computed in float64, on one: it loads as float32 and computes as float64 does. The
table says what it takes: registers, shared memory, spilled bytes, the narrowest load and store of its hot
loops, and how many blocks of the launch plan's size a multiprocessor holds. It fails, with exit code 1, if anything is
spilled, if a hot loop loads or stores less than 16 bytes at a time, if a kernel has no hot loop, or if fewer blocks fit
than the plans count on. Hot loops are the innermost loops with four loads of data; what is left over, and edges inside
a vector, go one at a time.

numba-cuda links through an optimiser of its own at run time, so the registers of a launch are close to these, not the
same.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

from fastbn.backends.cuda import plan as cuda_plan
from fastbn.backends.cuda.plan import BLOCKS_PER_SM, THREADS, Device, capacity

CHARS = {"float32": "f", "exact": "i", "float64": "d", "float16": "h", "bfloat16": "H"}

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": shared memory of a block and of a
# multiprocessor. All three have 65536 registers, given out to warps by the 256.
GPUS = {
    "80": Device(108, 166912, 167936, 40 << 20),
    "90": cuda_plan.H200,
    "100": Device(148, 232448, 233472, 126 << 20),
}
REGISTERS = 65536

# Loads of data in a loop from which it is a hot one: four vectors of x, or two of dy and of x.
HOT = 4

# Kernels that keep nothing on the chip and load masks or strided data a value at a time.
PLAIN = "masked", "copy", "convert"

LOAD = re.compile(r"\bld\.global(\.cs|\.L1::no_allocate)?(?:\.nc)?(\.v[24])?\.\w?(\d+)")
STORE = re.compile(r"\bst\.global(\.cs)?(\.v[24])?\.\w?(\d+)")


@dataclass
class Row:
    """One kernel for one dtype and architecture."""

    kernel: str
    dtype: str
    architecture: str
    registers: int = 0
    shared: int = 0
    spilled: int = 0
    load: int = 0
    store: int = 0
    blocks: int = 0
    problem: str = ""


def ptxas() -> str:
    """Return the assembler: that of the pip package, or of an installed toolkit."""
    try:
        for file in metadata.files("nvidia-cuda-nvcc") or ():
            if file.name == "ptxas":
                return str(file.locate())
    except metadata.PackageNotFoundError:
        pass
    found = shutil.which("ptxas")
    if found is None:
        sys.exit("gpu_static: ptxas not found: pip install nvidia-cuda-nvcc")
    return found


def blocks_of(lines: list[str]) -> tuple[list[list[str]], list[set[int]]]:
    """Cut PTX into basic blocks; return their lines, and which may follow each."""
    blocks: list[list[str]] = [[]]
    names: dict[str, int] = {}
    for line in lines:
        label = re.fullmatch(r"(\$L\w+):", line)
        if label:
            blocks.append([])
            names[label[1]] = len(blocks) - 1
        else:
            blocks[-1].append(line)
            if re.search(r"\bbra\b", line) or line.startswith("ret"):
                blocks.append([])
    follow: list[set[int]] = []
    for i, block in enumerate(blocks):
        last = block[-1] if block else ""
        jump = re.search(r"\bbra(?:\.uni)?\s+(\$L\w+)", last)
        after = {names[jump[1]]} if jump else set()
        if i + 1 < len(blocks) and not last.startswith(("bra", "ret")):  # falls through, as a guarded jump may
            after.add(i + 1)
        follow.append(after)
    return blocks, follow


def innermost_loops(lines: list[str]) -> list[list[str]]:
    """Return the lines of every natural loop of PTX that has no other loop inside.

    The order of the blocks in the file says nothing: NVVM puts other code in the middle of loops.
    """
    blocks, follow = blocks_of(lines)
    before: list[set[int]] = [set() for _ in blocks]
    for i, after in enumerate(follow):
        for j in after:
            before[j].add(i)
    reached, waiting = {0}, [0]
    while waiting:
        new = follow[waiting.pop()] - reached
        reached |= new
        waiting += new
    dominators = {i: set(reached) for i in reached} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for i in sorted(reached - {0}):
            dominating = {i} | set.intersection(*(dominators[j] for j in before[i] if j in reached))
            if dominating != dominators[i]:
                dominators[i], changed = dominating, True
    loops: dict[int, set[int]] = {}
    for i in reached:
        for head in follow[i] & dominators[i]:
            body, waiting = loops.setdefault(head, {head}), [i]
            while waiting:
                j = waiting.pop()
                if j not in body:
                    body.add(j)
                    waiting += before[j] & reached
    inner = [body for head, body in loops.items() if not any(h in body for h in loops if h != head)]
    return [[line for i in sorted(body) for line in blocks[i]] for body in inner]


def widths(lines: list[str], pattern: re.Pattern[str]) -> list[int]:
    """Return the bytes of every load or store."""
    found = (pattern.search(line) for line in lines)
    return [int(m[3]) // 8 * int((m[2] or ".v1")[2:]) for m in found if m]


def judge(row: Row, code: str, scalars: bool, cooperative: bool) -> None:
    """Say what is wrong with the code of a row, if anything."""
    lines = [line.strip() for line in code.splitlines()]
    hot = [loop for loop in innermost_loops(lines) if widths(loop, LOAD).count(16) >= HOT]
    loads = [w for loop in hot for w in widths(loop, LOAD)]
    stores = [w for loop in hot for w in widths(loop, STORE)]
    row.load, row.store = min(loads, default=0), min(stores, default=0)
    family = "channels_last" if row.kernel.endswith("channels_last") else "channels_first"
    operands = 2 if row.kernel.startswith(("backward", "sums", "gradient")) else 1
    gpu = GPUS[row.architecture]
    plain = row.kernel.startswith(PLAIN)
    smem_vectors = capacity(gpu, family, BLOCKS_PER_SM[cooperative], operands) if cooperative and not plain else 0
    block = row.shared + smem_vectors * operands * THREADS * cuda_plan.VECTOR + cuda_plan.RESERVED
    by_registers = REGISTERS // (-(-row.registers // 8) * 8 * THREADS)
    row.blocks = min(by_registers, gpu.shared_per_multiprocessor // block)
    problems = []
    if row.spilled:
        problems.append(f"{row.spilled} bytes spilled")
    if row.shared > cuda_plan.STATIC[family] and cooperative:
        problems.append(f"{row.shared} bytes of shared memory, the plans count on {cuda_plan.STATIC[family]}")
    if row.blocks < BLOCKS_PER_SM[cooperative]:
        problems.append(f"{row.blocks} blocks fit, the plans count on {BLOCKS_PER_SM[cooperative]}")
    if not scalars and not plain:
        if not hot:
            problems.append("no hot loop")
        elif row.load < 16 or (stores and row.store < 16):
            problems.append("a hot loop takes less than 16 bytes at a time")
    row.problem = "; ".join(problems)


def examine(kernel: str, dtype: str, architecture: str, scalars: bool, tail: str = "") -> Row:
    """Compile, assemble and judge one kernel."""
    from numba.cuda import dispatcher

    capability = int(architecture[:-1]), int(architecture[-1])
    # Compiling a function that a kernel calls asks for the GPU that is there. Its capability is all that is used.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    from fastbn_kernels.cuda import backward, copy, masked, masked_rows, moments, normalize, tails
    from fastbn_kernels.cuda.build.decorators import Variant

    name = kernel + (" (scalars)" if scalars else "") + (f" ({tail})" if tail else "")
    row = Row(name, dtype, architecture)
    modules = moments, normalize, backward, copy, masked, masked_rows
    compiled = next(vars(module)[kernel] for module in modules if kernel in vars(module))
    char = CHARS[dtype]
    activation, _, residual = tail.partition(" + ")
    after = tails.named(activation or None)
    if residual:
        after = tails.beside(after, writes=kernel.startswith("backward"))
    variant = Variant(char, "d" if char == "d" else "f", scalars, BLOCKS_PER_SM[compiled.cooperative], after)
    code = compiled.ptx(variant, capability)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(code)
        command = [ptxas(), "-v", f"-arch=sm_{architecture}", str(source), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode:
        row.problem = "ptxas: " + said.strip().splitlines()[0]
        return row

    def figure(pattern: str) -> int:
        found = re.search(pattern, said)
        return int(found[1]) if found else 0

    row.registers, row.shared = figure(r"Used (\d+) registers"), figure(r"(\d+) bytes smem")
    row.spilled = figure(r"(\d+) bytes spill stores") + figure(r"(\d+) bytes spill loads")
    row.kernel = kernel
    judge(row, code, scalars, compiled.cooperative)
    row.kernel = name
    return row


# What is done after the normalization, in a few kernels: an array more, and the activation of the most instructions,
# which spills 156 bytes of bfloat16 (eight numbers at a time) in one of them, backward_channels_last.
TAILS = {"relu + residual": ("float32", "bfloat16"), "gelu": ("float32",)}

TASKS = ("moments", "forward", "normalize", "sums", "gradient", "backward")
MASKED = ("moments", "normalize", "sums", "gradient")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ",".join(f"{task}_{family}" for task in TASKS for family in ("channels_first", "channels_last"))
    parser.add_argument("--kernels", default=every)
    parser.add_argument("--dtypes", default=",".join(CHARS))
    parser.add_argument("--architectures", default=",".join(GPUS))
    given = parser.parse_args()
    kernels, dtypes = given.kernels.split(","), given.dtypes.split(",")
    architectures = given.architectures.split(",")
    once = "90" if "90" in architectures else architectures[-1]
    jobs = [(k, d, a, False) for k in kernels for d in dtypes for a in architectures if d != "exact" or a == once]
    # Data that is not aligned is taken a value at a time; one architecture shows what there is to see, and one dtype of
    # 16 bits: the other differs in the conversion.
    single = [d for d in dtypes if d != "exact" and not (d == "float16" and "bfloat16" in dtypes)]
    jobs += [(k, d, architectures[-1], True) for k in kernels for d in single]
    jobs += [("copy_strided", d, architectures[-1], True) for d in dtypes if d != "exact"]
    jobs += [("convert_strided", d, architectures[-1], True) for d in dtypes if d in ("float32", "float64")]
    if given.kernels == every:
        masks = [f"masked_{task}_{family}" for task in MASKED for family in ("channels_first", "channels_last")]
        jobs += [(kernel, d, once, False) for kernel in masks for d in dtypes]
    jobs = [(*job, "") for job in jobs]
    tailed = [k for k in kernels if k.startswith(("forward", "backward"))]
    jobs += [(k, d, once, False, t) for k in tailed for t, kinds in TAILS.items() for d in dtypes if d in kinds]
    with ProcessPoolExecutor(os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()) as pool:
        rows = list(pool.map(examine, *zip(*jobs, strict=True)))
    head = [field.name for field in fields(Row)]
    table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    table += ["| " + " | ".join(str(getattr(row, name)) for name in head) + " |" for row in rows]
    print("\n".join(table))
    bad = [row for row in rows if row.problem]
    print(f"\n{len(rows)} compiled, {len(bad)} with a problem")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
