"""What the site of docs/ needs beyond mkdocs.yml.

The pages also have to read well in a repository's browser, where they lie in docs/ and link to
what lies beside it. The docstrings are plain text, whose columns Markdown would run together.
"""

import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files, config):
    """The pages and pictures of the repository that the pages of docs/ link to."""
    for file in [*(ROOT / name for name in PAGES), *(ROOT / "bench/results").rglob("*.png")]:
        name = file.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, **_):
    """Links as they are in the site, where docs/ is the root."""
    return re.sub(r"\]\((?:\.\./|docs/)", "](", markdown)


class PlainDocstrings(griffe.Extension):
    """Docstrings as Markdown: paragraphs stay, what stands in columns becomes a block of text."""

    def on_instance(self, *, obj, **_):
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    blocks = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(
        f"```text\n{block}\n```" if re.search(r"\S {2,}\S|^ {2,}", block, re.M) else block
        for block in blocks
    )
