"""Hooks of MkDocs: pages that are made at build time, their navigation, and links from names to the reference."""

import html
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
import operators
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = reference.ROOT
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_FORMULA = re.compile(r'<(?:span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</(?:span|div)>', re.DOTALL)
IDENTIFIERS = {f"{part}.{name}" for part in reference.PARTS for name in reference.public_names(part)}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the notebooks, the reference and the results to the navigation."""
    docs = Path(config.docs_dir)
    notebooks = [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]
    results: list[Any] = [f"results/{path.name}" for path in sorted((docs / "results").glob("*.md"))]
    results.sort(key=lambda path: path != "results/index.md")
    for title, folder in (("Benchmarks", "benchmarks"), ("Studies", "studies")):
        if pages := [f"results/{folder}/{path.name}" for path in _results(folder)]:
            results.append({title: pages})
    config.nav = [
        *(config.nav or []),
        {"Notebooks": notebooks},
        {"Reference": [{f"jaxop.{part}": f"reference/{part}.md"} for part in reference.PARTS]},
        *([{"Results": results}] if results else []),
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made at build time."""
    for path in NOTEBOOKS:
        text, pictures = notebook(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    for folder in ("benchmarks", "studies"):
        for path in _results(folder):
            files.append(File.generated(config, f"results/{folder}/{path.name}", abs_src_path=str(path)))
    for part in reference.PARTS:
        files.append(File.generated(config, f"reference/{part}.md", content=reference.page(part)))
    return files


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook with its outputs in Markdown, and its pictures by name."""
    formats = {"display_data_priority": ["image/png", "text/plain"]}
    exporter = MarkdownExporter(config=Config({"NbConvertBase": formats}))
    text, resources = exporter.from_filename(str(path), {"unique_key": path.stem, "output_files_dir": "."})
    return text, {Path(name).name: picture for name, picture in resources["outputs"].items()}


def _results(folder: str) -> list[Path]:
    return sorted((ROOT / "scripts" / folder).glob("*.md"))


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Puts the table of operators into its page, and turns links to files of the checkout into links to their pages."""
    pages = {"results": "", "guides": "../results/"}
    folder = page.file.src_uri.rpartition("/")[0]
    if folder in pages:
        return re.sub(r"\]\(\.\./\.\./(?=benchmarks/|studies/)", f"]({pages[folder]}", markdown)
    if page.file.src_uri != "operators.md":
        return markdown
    return markdown.replace("*The command `bash scripts/docs.sh` puts the table here.*", operators.table())


def on_page_content(text: str, page: Page, **kwargs: Any) -> str:
    """Writes formulas in MathML, which browsers show without a script, and links names to the reference."""
    return _linked(_FORMULA.sub(_mathml, text), page)


def _mathml(match: re.Match[str]) -> str:
    formula = html.unescape(match[1] or match[2])
    return latex2mathml.converter.convert(formula, display="inline" if match[1] else "block")


def _linked(text: str, page: Page) -> str:
    """Links the names of the public interface in the text of a page to the reference."""
    part = Path(page.file.src_uri).stem if page.file.src_uri.startswith("reference/") else None

    def link(match: re.Match[str]) -> str:
        name = html.unescape(match[1]).removeprefix("jaxop.")
        if part is not None and f"{part}.{name}" in IDENTIFIERS:
            name = f"{part}.{name}"
        if name in IDENTIFIERS:
            return f'<autoref identifier="jaxop.{name}">{match[0]}</autoref>'
        if match[1] == f"jaxop.{name}" and name in reference.PARTS:
            return f'<a href="{get_relative_url(f"reference/{name}.html", page.url)}">{match[0]}</a>'
        return match[0]

    # not inside links, blocks of code and headings
    parts = re.split(r"(<a\b.*?</a>|<pre\b.*?</pre>|<strong>.*?</strong>|<h\d\b.*?</h\d>)", text, flags=re.DOTALL)
    parts[::2] = [re.sub(r"<code>([\w.]+)</code>", link, prose) for prose in parts[::2]]
    return "".join(parts)
