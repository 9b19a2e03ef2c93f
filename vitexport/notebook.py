"""Input: rows and sentences; output: HTML for a notebook, with everything in it escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """One table; a bar-less one without `header`."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def heading(text: str) -> str:
    """A line in bold."""
    return f"<p><b>{html.escape(text)}</b></p>"


def notes(sentences: Sequence[str]) -> str:
    """A list; nothing for none."""
    return f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""
