"""Columns of text."""

from collections.abc import Collection, Sequence


def table(lines: Sequence[Sequence[str]], *, left: Collection[str]) -> str:
    """Lines in columns as wide as they must be.

    Args:
        lines: the first is the header.
        left: headers of columns that stand to the left; the others are numbers.
    """
    columns = [
        [cell.ljust(width) if column[0] in left else cell.rjust(width) for cell in column]
        for column in zip(*lines, strict=True)
        for width in (max(map(len, column)),)
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
