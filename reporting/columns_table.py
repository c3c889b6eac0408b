"""The table of columns in docs/numbers.md, made from harness.columns: `make docs`."""

from pathlib import Path

from harness.columns import GROUPS, TABLE, Column

PAGE = Path(__file__).parent.parent / "docs" / "numbers.md"
HEAD = "| Column | Unit | Rows of | Meaning |\n| --- | --- | --- | --- |\n"


def with_table(page: str) -> str:
    """The page with the table of today in the place of the one that it has."""
    before, _, rest = page.partition(HEAD)
    _, _, after = rest.partition("\n\n")
    return before + HEAD + "\n".join(map(line, TABLE)) + "\n\n" + after


def line(column: Column) -> str:
    name = f"`{column.name}`" + (", `..._ci95`" if column.ci95 else "")
    return f"| {name} | {column.unit} | {rows_of(column)} | {column.meaning} |"


def rows_of(column: Column) -> str:
    letters = set(column.groups.upper())
    if letters >= {*"TLSXI"}:
        return GROUPS["M"]
    return ", ".join(words for letter, words in GROUPS.items() if letter in letters)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
