"""The order of blocks along the ways through a program: each after what leads to it, loops contiguous."""

from collections.abc import Callable, Iterable

After = Callable[[int], Iterable[int]]  # from a block to those that may follow it


def ordered(after: After, first: Iterable[int], within: set[int]) -> list[int]:
    """The blocks of `within` that ways from `first` reach, in order.

    The first block of a loop precedes the rest of it, and what follows the loop comes after all of it.
    """
    order = []
    for loop in loops(after, first, within):
        order.append(loop[0])
        if len(loop) > 1:
            order += ordered(after, after(loop[0]), within & set(loop[1:]))
    return order


def loops(after: After, first: Iterable[int], within: set[int]) -> list[list[int]]:
    """Tarjan's strongly connected components, each after what leads to it; ties in the order first met."""
    number: dict[int, int] = {}  # of each block, in the order in which they are met
    lowest: dict[int, int] = {}  # number that each block leads back to
    open_: list[int] = []
    found: list[list[int]] = []

    def meet(block: int) -> tuple[int, list[int]]:
        number[block] = lowest[block] = len(number)
        open_.append(block)
        return block, [following for following in after(block) if following in within]

    for start in first:
        ways = [meet(start)] if start in within and start not in number else []
        while ways:
            block, following = ways[-1]
            if following:
                other = following.pop()
                if other not in number:
                    ways.append(meet(other))
                elif other in open_:
                    lowest[block] = min(lowest[block], number[other])
                continue
            ways.pop()
            if ways:
                lowest[ways[-1][0]] = min(lowest[ways[-1][0]], lowest[block])
            if lowest[block] == number[block]:
                at = open_.index(block)
                found.append(open_[at:])
                del open_[at:]
    return found[::-1]
