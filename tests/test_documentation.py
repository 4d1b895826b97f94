"""README and docs/: as short as promised, no link into the void, and a site that builds without a warning."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs").rglob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), *TUTORIALS]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def read(page: Path) -> str:
    """The text of a page; of a notebook that of its cells."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose(text: str) -> str:
    """The text without its code."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them, by the rule of GitHub and of mkdocs."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_the_links_of_these_pages_are_found():
    """Else the test below would pass for want of links."""
    assert len(LINK.findall(prose((ROOT / "README.md").read_text()))) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in LINK.findall(prose(read(page))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if page.is_relative_to(ROOT / "docs"):
            assert target.is_relative_to(ROOT / "docs"), f"{link} leaves the site"
        assert not anchor or anchor in anchors(target), link


def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("material", "mkdocstrings", "mkdocs_jupyter"):
        pytest.importorskip(module, reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site/reference/pipeline.html").read_text()
    assert "Draw cells as they would be after a perturbation" in reference
    for page in TUTORIALS:
        built = (tmp_path / "site/tutorials" / f"{page.stem}.html").read_text()
        assert "data:image/png" in built, page.stem
        assert not re.search(r'href="[^":]*\.md[#"]', built), page.stem
