"""Docstrings of this package for mkdocstrings: sections with an example, a cost and a source."""

import re
import textwrap
from typing import Any

import griffe

_RETURNS = re.compile(r"^(Returns|Yields):\n((?:(?: {4}.*)?(?:\n|$))+)", re.MULTILINE)
_PLAIN = re.compile(r"^(Cost|Source): (.*(?:\n(?!\n|[A-Z]\w+:).+)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Gives the sections of jaxop's docstrings the names and forms that griffe knows."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Mends the annotations of a function."""
        for parameter in func.parameters:
            quote_axes(parameter.annotation)
        quote_axes(func.returns)

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = in_known_sections(obj.docstring.value)


def quote_axes(annotation: object) -> None:
    """Puts the axes of `Float[Array, "b *n"]` back into quotes: griffe takes the text for a product."""
    if isinstance(annotation, griffe.ExprSubscript):
        quote_axes(annotation.slice)
    elif isinstance(annotation, griffe.ExprBinOp):
        quote_axes(annotation.left)
        quote_axes(annotation.right)
    elif isinstance(annotation, griffe.ExprTuple):
        annotation.elements = [_quoted(part) for part in annotation.elements]
    if isinstance(annotation, griffe.ExprTuple | griffe.ExprList):
        for part in annotation.elements:
            quote_axes(part)


def _quoted(part: Any) -> Any:
    is_product = isinstance(part, griffe.ExprBinOp) and part.operator == "*"
    return f"'{part.left} *{part.right}'" if is_product else part


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
