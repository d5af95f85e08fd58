"""Documents are true of the code.

Links lead somewhere, examples load, and sentences can be read.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from feature_repo.dataset import DatasetSpec
from feature_repo.workspace import PROJECT_ROOT

DOCUMENTS = sorted(
    [
        *PROJECT_ROOT.glob("*.md"),
        *(PROJECT_ROOT / "docs").rglob("*.md"),
        *(PROJECT_ROOT / "examples").rglob("*.md"),
    ],
    key=lambda path: str(path),
)
README = PROJECT_ROOT / "README.md"
LONGEST_SENTENCE = 30
"""Words of a sentence in documents that a newcomer reads first."""


def prose(path: Path) -> list[str]:
    """Return a document's paragraphs: no code blocks, tables or headings; list items one by one."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [line for line in text.split("\n") if not line.startswith(("    ", "|", "#"))]
    blocks = re.split(r"\n\s*\n|\n(?=- )", "\n".join(lines))
    return [block.strip() for block in blocks if block.strip()]


def sentences(paragraph: str) -> list[str]:
    text = re.sub(r"`[^`]*`", "code", paragraph).replace("**", "")
    return re.split(r"(?<=[.!?:;])\s+", text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.M)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
            assert heading in slugs, f"{path.name} links to {target}"


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "docs/glossary.md", "docs/architecture.md"]
)
def test_first_documents_are_read_at_once(name: str) -> None:
    paragraphs = prose(PROJECT_ROOT / name)
    long = [s for p in paragraphs for s in sentences(p) if len(s.split()) > LONGEST_SENTENCE]
    assert len(paragraphs) > 5 and long == []
    assert [p for p in paragraphs if p.count("\n") >= 6] == [], "paragraphs of at most six lines"


def test_readme_is_at_most_a_hundred_lines() -> None:
    assert len(README.read_text(encoding="utf-8").split("\n")) <= 101


def test_the_readmes_dataset_is_one() -> None:
    text = README.read_text(encoding="utf-8")
    block = next(b for b in re.split(r"\n\s*\n", text) if b.lstrip().startswith('name = "my-shop"'))
    spec = DatasetSpec.model_validate(tomllib.loads(textwrap.dedent(block)))
    assert spec.events.separator == "\t" and spec.items and spec.items.rename


def test_paths_in_documents_exist() -> None:
    """A module that was moved is named by its new path everywhere but in what is history."""
    history = {"CHANGELOG.md"}
    packages = "feature_repo|pipelines|retrieval|ranking|serving|benchmarks|tests"
    found = [
        f"{path.relative_to(PROJECT_ROOT)}: {name}"
        for path in DOCUMENTS
        if path.name not in history and "notes" not in path.parts
        for name in re.findall(rf"`((?:{packages})/[\w/]+(?:\.py|/))`", path.read_text("utf-8"))
        if not (PROJECT_ROOT / name).exists()
    ]
    assert found == []
