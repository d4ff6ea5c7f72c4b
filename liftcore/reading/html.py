"""HTML through lxml and inscriptis: the words of a page as a reader sees them."""

from __future__ import annotations

import re
from typing import Any

from liftcore.errors import LiftError
from liftcore.reading.parts import Parts
from liftcore.reading.text import counted, library

# What is no text of a page.
_NO_TEXT = (
    "//script | //style | //noscript | //template | //button | //select | //textarea | //datalist"
    " | //iframe | //svg | //comment() | //body//a[contains(@class, 'headerlink')]"
)
# What is around a page's text, unless it holds the most of it.
_AROUND = (
    "//nav | //*[@role='navigation' or @role='search' or @aria-hidden='true' or @hidden]"
    " | //form | //body/header[.//a] | //body/footer | //*[@role='contentinfo']"
    " | //*[@class='navheader' or @class='navfooter']"  # DocBook's
)
_ROLES = ("navigation", "contentinfo")
_LOOSE_LINKS = ".//a[not(ancestor::h1 or ancestor::h2 or ancestor::p or ancestor::li)]"
_HEADINGS = ".//h1 | .//h2 | .//main | .//article"
_LONG_FORM = 600  # letters, which no search and no sign-in has
# Of a page's letters; a short page may have a long list of others beside it.
_MOST, _MOST_OF_ALL = 0.5, 0.9
_LINKS = 0.85  # a list with a larger share of its letters in links leads elsewhere
_FEWEST_LINKS = 2
# Links from page to page, in a line of their own.
_TURNS = "//a[@rel='next' or @rel='prev' or @rel='previous' or @rel='up']/.."
_LONGEST_TURN = 300  # letters


def read_html(text: str, name: str, notes: list[str] | None = None) -> Parts:
    """The text of a page without its navigation."""
    said, dropped = html_text(text, name)
    if not said:
        raise LiftError(f"{name} holds no text: a page that a script fills, perhaps")
    notes = list(notes or ())
    if dropped:
        notes.append(f"navigation dropped: {counted(dropped, 'block')}")
    return Parts("HTML", [("", said)], notes)


def html_text(text: str, name: str) -> tuple[str, int]:
    """(the text of HTML, how many blocks of navigation were dropped)."""
    lxml_html, inscriptis = library("lxml.html", name), library("inscriptis", name)
    profiles = library("inscriptis.css_profiles", name)
    config = library("inscriptis.model.config", name)
    # lxml refuses an encoding that is declared within a string.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    if not text.strip():
        return "", 0
    tree = lxml_html.document_fromstring(text)
    dropped = _drop_navigation(tree)
    settings = config.ParserConfig(css=profiles.CSS_PROFILES["strict"].copy())
    return _tidy(inscriptis.Inscriptis(tree, settings).get_text()), dropped


def _drop_navigation(tree: Any) -> int:
    """Takes out what is around the text; how many blocks were lists of links."""
    for element in tree.xpath(_NO_TEXT):
        element.drop_tree()
    # "¶" and "§" behind headings
    for link in tree.xpath("//body//a[starts-with(@href, '#')]"):
        if not any(map(str.isalnum, link.text_content())):
            link.drop_tree()
    dropped, whole = 0, _letters(tree)
    for element in tree.xpath(_AROUND):
        if element.tag == "header" and element.xpath(".//h1"):
            for link in element.xpath(_LOOSE_LINKS):
                link.drop_tree()
            continue
        around = element.tag in ("nav", "footer") or element.get("role") in _ROLES
        if _letters(element) > (_MOST_OF_ALL if around else _MOST) * whole:
            continue
        if element.tag == "form" and _is_long(element):
            continue
        if element.getparent() is not None:
            dropped += element.tag == "nav" or element.get("role") == "navigation"
            element.drop_tree()
    lists = {line for line in tree.xpath(_TURNS) if _letters(line) < _LONGEST_TURN}
    for element in tree.xpath("//ul | //ol | //dl"):
        links = element.xpath(".//a")
        letters, linked = _letters(element), sum(map(_letters, links))
        elsewhere = len(links) >= _FEWEST_LINKS and linked > _LINKS * letters
        if elsewhere and not _announced(element):
            lists.add(element)
    for element in lists:
        if lists.isdisjoint(element.iterancestors()):
            element.drop_tree()
            dropped += 1
    return dropped


def _announced(element: Any) -> bool:
    """Whether a list stands behind a colon, as one that belongs to the text does."""
    above = element.getprevious()
    before = (above.tail or "").strip() or above.text_content() if above is not None else ""
    return (before or element.getparent().text or "").rstrip().endswith(":")


def _is_long(form: Any) -> bool:
    """Whether a form is about more than what is filled in: programs put one around whole pages."""
    return bool(form.xpath(_HEADINGS)) or _letters(form) > _LONG_FORM


def _letters(element: Any) -> int:
    return sum(len(text.strip()) for text in element.itertext())


def _tidy(text: str) -> str:
    """Without white space at line ends, wide gaps, and more than one blank line in a row."""
    lines = (re.sub(r"(?<=\S)[ \t\xa0]{3,}", "  ", line.rstrip()) for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
