"""A mask as what kernels walk by: the bits of segments and the counts of tiles, or the rows that count.

Channels first, the mask of positions is (N, S), the same for every channel: its bits are (N, words of S), and a tile
knows how many of its positions count, and which is the first. Both are made once a call, for all channels. With
channels last whole rows count or do not, and a list of those that do is all there is to know.
"""

from __future__ import annotations

from fastbn_kernels.build.decorators import Array, Mask, TileCounts, Words, kernel, prange, scalar
from fastbn_kernels.cpu.simd.masks import WORD, lowest, ones, packed, packed_word
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.tiles import tile_bounds, tile_count

# What is known of a tile: how many of its positions count, and the first one, n * S + s, of (N, S) one after the other.
COUNT, FIRST = range(2)


@scalar
def part_of_word(mask: Array, at: int, length: int) -> int:
    """Return the bits of `length` positions, fewer than a word has."""
    word: int = packed(mask, at, min(LANES, length), 0)
    for j in range(1, (length + LANES - 1) // LANES):
        word |= packed(mask, at + j * LANES, min(LANES, length - j * LANES), j)
    return word


@scalar
def pack_tile(mask: Array, tile: int, words: Array, tiles: Array) -> None:
    """Fill the words of a tile, behind whose values no bit is set, and what is known of it."""
    N, S = mask.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    count = 0
    first = -1
    for n in range(n0, n1):
        words[n, words.shape[1] - 1] = 0
        for s in range(s0, s1, WORD):
            at = n * S + s
            word = packed_word(mask, at) if s + WORD <= s1 else part_of_word(mask, at, s1 - s)
            words[n, s // WORD] = word
            count += ones(word)
            if first < 0 and ones(word):
                first = at + lowest(word)
    tiles[tile, COUNT] = count
    tiles[tile, FIRST] = first


@kernel
def pack_mask(mask: Mask, words: Words, tiles: TileCounts) -> None:
    """Fill the bits of a mask (N, S), and what is known of each tile and of all, (tiles + 1, 2).

    The bits are (N, words of S and one more, which is zero).
    """
    each = tile_count(mask.shape[0], mask.shape[1])
    for tile in prange(0, each):
        pack_tile(mask, tile, words, tiles)
    tiles[each, COUNT] = 0
    tiles[each, FIRST] = -1
    for tile in range(each):
        if tiles[each, COUNT] == 0:
            tiles[each, FIRST] = tiles[tile, FIRST]
        tiles[each, COUNT] += tiles[tile, COUNT]
