"""``gallery.html``: pictures beside their captions, in one file that any browser shows."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.files import write_text
from .vocabulary import normalize

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --right: #2a9d4a; --wrong: #d1495b; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table.facts td { padding: 0 1rem 0 0; }
table.facts td + td { text-align: right; font-variant-numeric: tabular-nums; }
article { display: flex; gap: 1rem; padding: .8rem 0; border-top: 1px solid var(--line); }
article img, article .none { width: 128px; height: 128px; flex: none; image-rendering: pixelated; }
article .none { border: 1px dashed var(--line); display: grid; place-items: center; opacity: .6; }
dl { display: grid; grid-template-columns: 6rem 1fr; gap: .1rem .6rem; margin: 0; }
dt, .name { opacity: .65; } dd { margin: 0; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
""".strip()


@dataclass(frozen=True, eq=False)
class Row:
    """One picture of the gallery."""

    name: str
    image: np.ndarray | None  # uint8 [S, S, 3]
    greedy: str
    beam: str | None = None
    references: Sequence[str] = ()
    score: float | None = None  # larger is better; None: not scored


def write_gallery(
    path: Path,
    rows: Iterable[Row],
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    each: int = 12,
) -> None:
    """Writes ``rows`` to ``path``, atomically; needs nothing beside it and loads nothing.

    Where all rows have a score, the ``each`` best and the ``each`` worst are shown, no row twice;
    otherwise all of them. ``facts`` (name -> value) stand in a table on top.
    """
    rows = list(rows)
    body = [f"<h1>{html.escape(title)}</h1>"]
    if facts:
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
            for name, value in facts.items()
        )
        body.append(f'<table class="facts">{cells}</table>')
    for heading, part in _sections(rows, each):
        body.append(f"<h2>{heading}</h2>")
        body += [_article(row) for row in part]
    write_text(
        path,
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n",
    )


def _sections(rows: list[Row], each: int) -> list[tuple[str, list[Row]]]:
    if not rows or any(row.score is None for row in rows):
        return [("Captions", rows)]
    ordered = sorted(rows, key=lambda row: -(row.score or 0.0))
    best = ordered[: min(each, (len(ordered) + 1) // 2)]
    worst = ordered[len(best) :][-each:][::-1]
    return [("Best", best), ("Worst", worst)] if worst else [("Best", best)]


def _article(row: Row) -> str:
    right = {normalize(reference) for reference in row.references}
    entries = [("greedy", row.greedy, True)]
    if row.beam is not None:
        entries.append(("beam", row.beam, True))
    entries += [("reference", reference, False) for reference in row.references]
    lines = []
    for label, caption, judged in entries:
        kind = ""
        if judged and right:
            kind = ' class="right"' if normalize(caption) in right else ' class="wrong"'
        lines.append(f"<dt>{label}</dt><dd{kind}>{html.escape(caption)}</dd>")
    score = "" if row.score is None else f", {row.score:.3g}"
    return (
        f"<article>{_picture(row)}<div>"
        f'<div class="name">{html.escape(row.name)}{score}</div>'
        f"<dl>{''.join(lines)}</dl></div></article>"
    )


def _picture(row: Row) -> str:
    if row.image is None:
        return '<div class="none">no picture</div>'
    file = io.BytesIO()
    Image.fromarray(row.image).save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(row.greedy)}" src="data:image/png;base64,{data}">'
