"""Small tables as HTML, for notebooks: plain enough to look right in light and dark themes."""

from collections.abc import Sequence
from html import escape


def html_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[str] = ()) -> str:
    """A table with its title.

    Args:
        title: above it; "" for none.
        headings: of all columns; none for a table without a heading.
        rows: texts, escaped here; the first column stands left, the others right where there are headings.
        bold: first columns of the rows that stand out.
    """
    side = "right" if headings else "left"

    def line(cells: Sequence[str], tag: str, style: str = "") -> str:
        sides = ["left", *[side] * (len(cells) - 1)]
        inner = "".join(
            f'<{tag} style="text-align:{where};{style}">{escape(text)}</{tag}>'
            for where, text in zip(sides, cells, strict=True)
        )
        return f"<tr>{inner}</tr>"

    body = "".join(line(row, "td", "font-weight:bold" if row[0] in bold else "") for row in rows)
    head = f"<thead>{line(headings, 'th')}</thead>" if headings else ""
    return f"<p><b>{escape(title)}</b></p>" * bool(title) + f"<table>{head}<tbody>{body}</tbody></table>"
