"""One memory and its page for all tests of the page."""

import pytest
from page_of import memory_with_questions

from liftcore.page import write_page


@pytest.fixture(scope="session")
def marked(tiny_folder, tmp_path_factory):
    """(a memory full of markup, the file of its page)"""
    memory = memory_with_questions(tiny_folder)
    file = tmp_path_factory.mktemp("page") / "page.html"
    return memory, write_page(memory, file, command="liftcore absorb '</pre>.txt'")
