"""Links of the README and of the pages lead somewhere, and files that they name exist."""

import re

import pytest
from doc_pages import ROOT, links_of, pages

OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and the site both make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        found.add(re.sub(r"\s", "-", plain))
    return found


@pytest.mark.parametrize("page", [*pages(), *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page):
    """Links between pages, to the README and to files are good, with their anchors."""
    for link in links_of(page):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}"
        if page.is_relative_to(ROOT / "docs"):
            assert target.is_relative_to(ROOT / "docs"), f"{page.name}: {link} leaves the site"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_can_be_reached_from_the_readme():
    """Each page is linked from the README, or from a page that is."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        local = [link.partition("#")[0] for link in links_of(page) if "://" not in link]
        waiting += [(page.parent / path).resolve() for path in local if path]
    missed = set(pages()) - reached
    assert not missed, [page.name for page in missed]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    """A file of the repository that a page names is there."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|benchmarks|engine|flows|connectors|docs)/[\w./-]+)`", text):
        if path.startswith(("engine/", "connectors/", "flows/")) and page.stem == "how-it-works":
            continue  # packages, see below
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_packages_shown_are_those_that_there_are():
    """The table and the picture of the packages have each package, and no other."""
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    picture = (ROOT / "docs" / "images" / "packages.svg").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+/\w+)` \|", page, re.MULTILINE)
    there = []
    for top in ("engine", "connectors", "flows"):
        inner = [f.name for f in (ROOT / top).iterdir() if list(f.glob("*.py"))]
        there += [f"{top}/{name}" for name in inner]
        line = next(line for line in picture.splitlines() if all(name in line for name in inner))
        assert line.count("·") == len(inner) - 1
    assert sorted(shown) == sorted(there)


def test_pages_name_no_address_of_an_index():
    """No page tells readers of a package index's address, nor of one of a code host."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"pypi\.org|github\.com|gitlab\.com|index-url", text), page.name


def test_the_test_of_links_can_fail():
    """Targets of links and pictures are found, those in code are not."""
    page = ROOT / "docs" / "index.md"
    assert links_of(page)
    assert "getting-started" in anchors(ROOT / "docs" / "getting-started.md")
