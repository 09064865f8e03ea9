"""Docstrings of this package for mkdocstrings: sections with an example, a cost and a source."""

import re
import textwrap
from typing import Any

import griffe

_RETURNS = re.compile(r"^(Returns|Yields):\n((?:(?: {4}.*)?(?:\n|$))+)", re.MULTILINE)
_PLAIN = re.compile(r"^(Cost|Source): (.*(?:\n(?!\n|[A-Z]\w+:).+)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Gives the sections of jaxop's docstrings the names and forms that griffe knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = in_known_sections(obj.docstring.value)


def in_known_sections(docstring: str) -> str:
    """Returns a docstring whose "Example:" is "Examples:", and whose results, costs and sources are paragraphs.

    The signature has the type of the result, for which griffe would take the text before a colon.

    Example:
        >>> from docstrings import in_known_sections
        >>> print(in_known_sections("Source: Li,\\n    2020."))
        **Source:** Li, 2020.
    """
    docstring = re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)
    docstring = _RETURNS.sub(lambda match: f"**{match[1]}:**\n\n{textwrap.dedent(match[2])}", docstring)
    return _PLAIN.sub(lambda match: f"**{match[1]}:** {' '.join(match[2].split())}", docstring)
