"""One look for pages: HTML from Jinja2 templates, each page one file that needs no other."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evae.common.figures import DPI

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Picture:
    """A plot inside a page.

    Attributes:
        data: the PNG as a data URL.
        width: pixels at which its letters have the size that they were drawn for.
        caption: below it.
    """

    data: str
    width: int
    caption: str

    @classmethod
    def read(cls, path: Path, caption: str) -> "Picture":
        """Read a PNG that `evae.common.figures.save` wrote."""
        png = path.read_bytes()
        width = int.from_bytes(png[16:20])  # where a PNG says it
        return cls(f"data:image/png;base64,{base64.b64encode(png).decode()}", width * 96 // DPI, caption)


def render(template: str, **content: Any) -> str:
    """Fill a template; all texts are escaped.

    Args:
        template: its path inside the package, such as "reversion/report.html".
        content: what the template names; a name that is missing is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["heading"] = _unbroken
    return environment.get_template(template).render(content)


def _unbroken(heading: str) -> str:
    """A heading whose arrow stays on the line of the word before it."""
    return re.sub(" (?=[↑↓→])", "\N{NO-BREAK SPACE}", heading)
