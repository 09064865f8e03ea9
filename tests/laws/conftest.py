import pytest

from jaxop.attention import chunked


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several tiles along both axes, the last ones padded."""
    monkeypatch.setattr(chunked, "QUERY_CHUNK", 8)
    monkeypatch.setattr(chunked, "KEY_CHUNK", 16)
