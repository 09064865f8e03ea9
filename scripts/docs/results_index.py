"""Lists the results files by group in results/index.md.

    python scripts/docs/results_index.py

Run it after a script has written a results file.
"""

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.run import SECTIONS
from studies.commands import Command
from studies.run import STUDIES

SCRIPTS = Path(__file__).resolve().parents[1]
GROUPS = {
    "Benchmarks": ("benchmarks", SECTIONS, "Time and memory, compared with other implementations."),
    "Studies": ("studies", STUDIES, "Accuracy of trained models, fits and methods, on real and on generated data."),
}
INDEX = SCRIPTS / "docs" / "results" / "index.md"
HEAD = """# Results

The benchmarks and studies below are written by the scripts that measure them, with the option `--write`. Each header
names the command, the date, the processor, its load and the versions of the packages. The machine is shared, so ratios
of times are more reliable than the times.

- [Fourteen claims of five papers](claims.md): what the papers say, what we measured, and whether the claim holds
- [Earlier measurements](../../studies/earlier.md): tables copied by hand from runs of an earlier development version
"""


def main() -> None:
    """Writes the page."""
    INDEX.write_text(page(), encoding="utf-8")


def page() -> str:
    """Returns the page, with one line for every results file that exists."""
    parts = [HEAD]
    for title, (folder, commands, about) in GROUPS.items():
        lines = [line(SCRIPTS / folder / f"{name}.md") for name in names(commands)]
        parts.append(f"\n## {title}\n\n{about}\n\n" + "".join(filter(None, lines)))
    return "".join(parts)


def names(commands: Mapping[str, Command]) -> list[str]:
    """Returns the names of the results files that the commands can write, in their order."""
    modules = [importlib.import_module(command.module) for command in commands.values()]
    return [name for module in modules for name in getattr(module, "ABOUT", {})]


def line(path: Path) -> str | None:
    """Returns the link to a results file with its title and date; None if there is no such file."""
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    title, date = re.match(r"# (.+)\n", text), re.search(r"^- date: (\S+)", text, re.MULTILINE)
    if title is None or date is None:
        raise ValueError(f"{path} has no title or no date; write it again with the option --write of its script.")
    return f"- [{title[1]}](../../{path.parent.name}/{path.name}), {date[1]}\n"


if __name__ == "__main__":
    main()
