"""What several files of training tests look at."""

import pytest

from tests.training.cases import run


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Directory and result of an uninterrupted run; nothing may change them."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory)
