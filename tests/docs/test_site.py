"""The site is built without a warning, and opens without a network."""

import os
import re
import subprocess
import sys

import pytest
from doc_pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_the_site_has_a_page_for_each_page(site):
    """Each page of docs/ is in the site, and the script that generates parts is not."""
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").exists(), page.name
    assert not list(site.rglob("*.py"))


def test_the_site_requests_nothing_from_elsewhere(site):
    """Scripts, styles, fonts and pictures are files of the site itself."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        found = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\s\">]+)", text)
        found += re.findall(r"<link\b(?![^>]*\brel=\"?canonical)[^>]*\bhref=\"?([^\s\">]+)", text)
        assert found
        for target in found:
            assert not re.match(r"(https?:)?//", target), (page.name, target)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8"))
    assert "mermaid" not in "".join(
        re.findall(r"class=\"([^\"]*)\"", (site / "how-it-works.html").read_text(encoding="utf-8"))
    )


def test_the_reference_has_every_public_name(site):
    """Each name of `midstream.__all__` has an entry, with the docstring of its own."""
    import midstream

    text = (site / "api.html").read_text(encoding="utf-8")
    for name in midstream.__all__:
        if name != "__version__":
            assert re.search(rf'id="midstream\.[\w.]*\b{name}"', text), name
