"""Markdown tables that appear row by row."""


def print_header(*titles: str) -> None:
    """Prints the titles and the rule below them, after an empty line."""
    print()
    print_row(*titles)
    print("|---" * len(titles) + "|", flush=True)


def print_row(*cells: object) -> None:
    """Prints one row at once, so that a long study shows its results as they come."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
