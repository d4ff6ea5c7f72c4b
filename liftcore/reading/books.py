"""EPUB: the chapters of a book, in the order in which it is read."""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections import Counter
from urllib.parse import unquote, urldefrag

from liftcore.errors import LiftError
from liftcore.reading.encodings import detected
from liftcore.reading.html import html_text
from liftcore.reading.parts import Parts
from liftcore.reading.text import counted, library

_PAGES = ("application/xhtml+xml", "text/html")
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def read_epub(content: bytes, name: str) -> Parts:
    """The text of a book, a part a file of its spine; its list of contents is left out."""
    etree = library("lxml.etree", name)
    archive = zipfile.ZipFile(io.BytesIO(content))
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)

    def tree(file: str):
        return etree.fromstring(archive.read(file), parser)

    if "META-INF/encryption.xml" in archive.namelist():
        ways = tree("META-INF/encryption.xml").xpath("//@Algorithm")
        if not set(ways) <= set(_FONTS):
            raise LiftError(f"{name} is encrypted (DRM): it cannot be read")
    (root, *_) = tree("META-INF/container.xml").xpath("//*[local-name()='rootfile']/@full-path")
    package = tree(root)
    items = {item.get("id"): item for item in package.xpath("//*[local-name()='item']")}
    texts, done, dropped = [], Counter[str](), 0
    for reference in package.xpath("//*[local-name()='spine']/*[local-name()='itemref']"):
        item = items.get(reference.get("idref"))
        if item is None or item.get("media-type") not in _PAGES:
            continue
        if reference.get("linear") == "no" or "nav" in (item.get("properties") or "").split():
            continue
        file = posixpath.join(posixpath.dirname(root), unquote(urldefrag(item.get("href")).url))
        page, notes = detected(archive.read(posixpath.normpath(file)), name, page=True)
        text, blocks = html_text(page, name)
        dropped += blocks
        done.update(notes)
        if text:
            texts.append(text)
    if not texts:
        raise LiftError(f"{name} holds no text")
    done_in = (f"{note} in {counted(chapters, 'chapter')}" for note, chapters in done.items())
    notes = [counted(len(texts), "chapter"), *done_in]
    if dropped:
        notes.append(f"navigation dropped: {counted(dropped, 'block')}")
    return Parts("EPUB", [("\n\n", text) for text in texts], notes, "chapter")
