"""Text tables."""

from collections.abc import Collection, Sequence


def table(lines: Sequence[Sequence[str]], *, left: Collection[str]) -> str:
    """Return lines as aligned columns.

    Args:
        lines: rows of cells, the header first.
        left: headers of left-aligned columns; the others are right-aligned.
    """
    columns = [
        [cell.ljust(width) if column[0] in left else cell.rjust(width) for cell in column]
        for column in zip(*lines, strict=True)
        for width in (max(map(len, column)),)
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
