"""Every notebook is committed with the outputs of its own cells, and runs from top to bottom."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
LARGEST_PICTURE, LARGEST_SET = 120_000, 4_000_000  # bytes
SHOWS = re.compile(r"\bprint\(|\bplt\.show\(|^figure$", re.MULTILINE)
NUMBER = re.compile(r"[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
LOCAL = re.compile(r"/(?:home|root|tmp|work|Users|usr|opt|var)/|site-packages|[A-Z]:\\")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"])]


def text_of(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def words_of(cell):
    return NUMBER.sub("#", text_of(cell)).split()


def pictures_of(cell):
    return [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]


@each
def test_notebook_is_committed_executed(path):
    cells = code_of(read(path))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        source = "".join(cell["source"])
        assert bool(SHOWS.search(source)) == bool(cell["outputs"]), f"its outputs are not those of this code:\n{source}"
        assert not {output["output_type"] for output in cell["outputs"]} - {"stream", "display_data", "execute_result"}
        assert {output["name"] for output in cell["outputs"] if "name" in output} <= {"stdout"}
        assert "execution" not in cell["metadata"], "it holds the times of its execution: leave them out"


@each
def test_notebook_holds_pictures_of_bounded_size(path):
    pictures = [picture for cell in code_of(read(path)) for picture in pictures_of(cell)]
    assert len(pictures) >= 3
    assert max(len(picture) * 3 / 4 for picture in pictures) < LARGEST_PICTURE


def test_notebooks_are_small_together():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < LARGEST_SET


@each
def test_notebook_names_no_local_paths(path):
    notebook = read(path)
    for cell in code_of(notebook):
        shown = [output for output in cell["outputs"] if output["output_type"] == "stream"]
        shown += [output["data"].get("text/plain", "") for output in cell["outputs"] if "data" in output]
        assert not LOCAL.search(json.dumps(shown))
    assert not LOCAL.search(json.dumps(notebook["metadata"]))


@each
def test_answer_states_what_the_notebook_measured(path):
    """Every decimal number in the last cell is printed by a cell above it."""
    notebook = read(path)
    answer = "".join(notebook["cells"][-1]["source"])
    assert answer.startswith("## Answer")
    measured = [number for number in NUMBER.findall(answer) if "." in number]
    printed = "\n".join(map(text_of, code_of(notebook)))
    assert measured
    assert set(measured) <= set(NUMBER.findall(printed))


@pytest.mark.notebook
@each
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs(path):
    """Each cell shows as many pictures and the same text as the committed one, up to numbers."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    committed = [(len(pictures_of(cell)), words_of(cell)) for cell in code_of(notebook)]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert [(len(pictures_of(cell)), words_of(cell)) for cell in code_of(notebook)] == committed
