"""The app: predicted beside control cells in a browser, and the same questions as tools of the Model Context Protocol.

Enters: names of checkpoints, a file of control cells, and what a browser or an agent asks and uploads. Leaves: a web
page, pictures, tables, and h5ad and csv files to download. Needs the extra `app` (Gradio); what is worked out stands in
files that do not. May import: `inference`, `plot`, `evaluation/cells` (maps), `data/reading`,
`data/preparing` (usual names of columns), `common`.
"""

from typing import TYPE_CHECKING

from evae.common.lazy import lazy_names

if TYPE_CHECKING:
    from evae.app.server import serve

__all__ = ["serve"]

if not TYPE_CHECKING:  # a type checker would take every name for granted
    __getattr__ = lazy_names(__name__, {"serve": "server"})
