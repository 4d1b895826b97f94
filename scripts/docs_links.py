"""A hook of mkdocs: links of notebooks to pages, which mkdocs-jupyter leaves as they stand, lead to the built pages."""

import re
from typing import Any

LINK = re.compile(r'(href="(?!https?:)[^"#]*)\.md([#"])')


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """The page with its links."""
    return LINK.sub(r"\1.html\2", html) if page.file.src_uri.endswith(".ipynb") else html
