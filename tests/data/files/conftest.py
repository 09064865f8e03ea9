"""Files of every format."""

import pytest

from tests.data.files.cases import FORMATS, U, V


@pytest.fixture(params=FORMATS)
def kind(request, tmp_path):
    """A writer of one format and the path to write to."""
    return FORMATS[request.param], tmp_path / f"set.{request.param}"


@pytest.fixture
def good(kind):
    write, path = kind
    write(path, x=U, y=V)
    return path
