"""Strategies for hypothesis: odd numbers, half grids, damaged files. Only this module needs hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from pelk_mm.ops import SharingGrid

SEEDS = st.integers(0, 2**16)


def odd(low: int, high: int) -> st.SearchStrategy[int]:
    """Odd numbers from ``low`` to ``high``, both included."""
    return st.integers(low // 2, (high - 1) // 2).map(lambda half: 2 * half + 1)


def half_grids(widest: int = 9, longest: int = 6) -> st.SearchStrategy[tuple[int, ...]]:
    """Valid half grids, the outermost width first and the centre's, which is odd, last.

    No width is over ``widest``, and no more than ``longest`` stand beside the centre's.
    """
    outer = st.lists(st.integers(1, widest), max_size=longest)
    return st.builds(lambda widths, centre: (*widths, centre), outer, odd(1, widest))


@st.composite
def sharing_rules(draw: st.DrawFn, largest: int = 81) -> dict[str, int]:
    """Arguments of :meth:`SharingGrid.from_kernel_size`, with kernels of ``largest`` at most."""
    kernel_size = draw(odd(1, largest))
    return dict(kernel_size=kernel_size, center=draw(odd(1, kernel_size)), base=draw(st.integers(1, 5)))


def sharing_grids() -> st.SearchStrategy[SharingGrid]:
    """Grids of half grids, of the paper's rule, and dense ones."""
    return st.one_of(half_grids().map(SharingGrid.from_half),
                     sharing_rules().map(lambda rule: SharingGrid.from_kernel_size(**rule)),
                     odd(1, 13).map(SharingGrid.dense))


@st.composite
def damaged(draw: st.DrawFn, content: bytes, least: int = 1, most: int = 6) -> bytes:
    """A file with bits flipped, bytes changed, put in or taken out, or cut off.

    Args:
        draw (Callable): Given by hypothesis.
        content (bytes): The complete file.
        least (int): The smallest number of such changes. Defaults to 1.
        most (int): The largest. Defaults to 6.
    """
    data = bytearray(content)
    for _ in range(draw(st.integers(least, most))):
        position = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(['flip', 'flip', 'set', 'insert', 'remove', 'cut']))
        if how == 'flip' and data:
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif how == 'set' and data:
            data[position] = draw(st.integers(0, 255))
        elif how == 'insert':
            data[position:position] = draw(st.binary(max_size=20))
        elif how == 'remove':
            del data[position:position + draw(st.integers(1, 40))]
        elif how == 'cut':
            del data[position:]
    return bytes(data)
