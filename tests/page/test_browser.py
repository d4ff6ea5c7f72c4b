"""The page in a real browser: jumps, keys, figures, a phone's width, and nothing loaded."""

import pytest
from browser import browser


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture
def page(chromium, marked):
    """The page, opened; what it complains of or asks the network for fails the test."""
    file = marked[1]
    context = chromium.new_context(viewport={"width": 900, "height": 700})
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
    page.on("request", lambda request: wrong.append(request.url))
    page.goto(file.as_uri())
    assert wrong == [file.as_uri()]
    yield page
    assert wrong == [file.as_uri()]
    context.close()


def shown(page):
    """The number of the token that the tip tells of."""
    assert page.is_visible("#tip")
    return int(page.inner_text("#tip").split(" of ")[0].split(" to ")[-1].split()[-1])


def test_the_strip_leads_into_the_text(page):
    total = page.evaluate("JSON.parse(document.getElementById('figures').textContent).tokens")
    assert page.evaluate("scrollY") == 0
    box = page.locator("#place").bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert shown(page) == pytest.approx(0.75 * total, abs=0.02 * total)
    assert page.evaluate("scrollY") > 300
    assert page.evaluate("document.activeElement.id") == "place"
    now = int(page.get_attribute("#place", "aria-valuenow"))
    page.keyboard.press("ArrowRight")
    assert int(page.get_attribute("#place", "aria-valuenow")) == now + 1
    assert "% known" in page.get_attribute("#place", "aria-valuetext")
    page.keyboard.press("Home")
    assert shown(page) == 1
    page.keyboard.press("End")
    assert shown(page) > 0.98 * total
    # The part of the text on the screen is marked.
    page.wait_for_function("parseFloat(document.getElementById('seen').style.left) > 80")


def test_tokens_tell_their_figures_to_pointer_and_keys(page):
    page.locator("#words i").nth(6).hover()
    assert shown(page) == 7 and "before training" in page.inner_text("#tip")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")
    page.focus("#place")
    page.keyboard.press("Tab")
    for _ in range(30):
        if page.evaluate("document.activeElement.closest('#words') !== null"):
            break
        page.keyboard.press("Tab")
    assert shown(page) == 1
    page.keyboard.press("ArrowRight")
    assert shown(page) == 2 and "token 2 of" in page.inner_text("#said")
    page.keyboard.press("ArrowDown")
    below = shown(page)
    assert below > 5
    page.keyboard.press("ArrowUp")
    assert shown(page) in range(1, 5)
    page.keyboard.press("n")
    focused = "document.activeElement.className"
    assert page.evaluate(focused) in ("l3", "l4") or page.locator("i.l3, i.l4").count() <= 2
    # One token is reached by Tab, and no more.
    assert page.locator("#words [tabindex], #words[tabindex]").count() == 1


def test_links_and_questions(page):
    page.locator(".asked a[data-token]").first.click()
    assert page.evaluate("document.activeElement.closest('#words') !== null")
    entries = page.locator(".asked li")
    page.check("#faulty")
    right = page.locator('.asked li[data-verdict="right"]').count()
    assert sum(entries.nth(n).is_visible() for n in range(2)) == 2 - right
    page.click("#copy")
    page.wait_for_function("document.getElementById('copy').textContent != 'Copy the command'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_schemes(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground, ink = (
        page.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("backgroundColor", "color")
    )
    light = [sum(map(int, c[4:-1].split(","))) for c in (ground, ink)]
    assert (light[0] > light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 450
    # Each level is told by its underline, too.
    lines = {
        page.evaluate(f"getComputedStyle(document.querySelector('.legend .l{n}')).textDecoration")
        for n in range(5)
    }
    assert len(lines) == 5
