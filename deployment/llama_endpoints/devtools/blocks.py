"""Generated parts of a Markdown page: the text between `<!-- name -->` and `<!-- end -->`."""

import re
from collections.abc import Mapping, Sequence


def fill(text: str, blocks: Mapping[str, str]) -> str:
    """Return the page with each block replaced by its generated text.

    Raises:
        ValueError: the page has no block of that name.
    """
    for name, content in blocks.items():
        pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"The page has no block <!-- {name} -->.")
        text = pattern.sub(lambda found, content=content: f"{found[1]}{content}{found[2]}", text)  # type: ignore[misc]
    return text


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
