"""docs/planning.md shows what the planner says. After an intended change: `python -m llama_endpoints.devtools.planning_page`."""

from llama_endpoints.devtools.planning_page import PAGE, page, tables


def test_the_page_has_the_planners_tables() -> None:
    text = PAGE.read_text("utf-8")
    assert page(text) == text
    assert all(table in text for table in tables().values())


def test_all_models_are_in_it() -> None:
    assert tables()["models"].count("\n") == 2 + 18
