"""The site: built as strictly as `make book` builds it, served here, and read in a browser."""

import csv
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
import yaml
from chapters import ROOT, stored_tables
from figures import load_script
from figures.method import interactive_curves
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(page["file"] for part in TOC["parts"] for page in part["chapters"])]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
WIDE, NARROW = (1280, 900), (390, 844)  # a screen and a telephone, in CSS pixels
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

every_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Where the site is, and what the build had to say against it."""
    folder = tmp_path_factory.mktemp("book")
    builder = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", folder, "--all", "-n", "-W", "--keep-going"]
    done = subprocess.run([builder, "build", ROOT, *options], capture_output=True, text=True)
    text = done.stdout + done.stderr
    said = re.findall(r".*(?:WARNING|ERROR).*", text)
    return folder / "_build" / "html", said if done.returncode == 0 else [*said, text[-2000:]]


@pytest.fixture(scope="session")
def site(built):
    return built[0]


def test_the_book_is_built_without_a_warning(built):
    site, said = built
    assert not said, "\n".join(said)
    assert (site / "index.html").is_file()


class Page(HTMLParser):
    """The ids of a page, what it refers to, and its images without alternative text."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.references, self.loads, self.no_alt = set(), set(), set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        for name in ("href", "src"):
            if attributes.get(name):
                self.references.add(attributes[name])
                if name == "src":
                    self.loads.add(attributes[name])
        if tag == "img" and not (attributes.get("alt") or "").strip():
            self.no_alt.append(attributes.get("src"))


@pytest.fixture(scope="session")
def pages(site):
    """Every page of the site, also those that Sphinx adds: address -> what is on it."""
    files = [f for f in site.rglob("*.html") if not f.relative_to(site).parts[0].startswith("_")]
    return {f.relative_to(site).as_posix(): Page(f) for f in files}


def test_no_internal_reference_is_broken(site, pages):
    broken = []
    for address, page in pages.items():
        for reference in page.references:
            if re.match(r"[a-z]+:|//", reference):  # elsewhere, or in the page itself (data:)
                continue
            target, _, fragment = reference.partition("#")
            path = unquote(urlsplit(urljoin(f"/{address}", target)).path).lstrip("/")
            path = address if not target else path
            wrong = not (site / path).is_file()
            if not wrong and fragment and path in pages:
                wrong = unquote(fragment) not in pages[path].ids
            if wrong:
                broken.append(f"{address}: {reference}")
    assert len(pages) > len(PAGES) and not broken


def test_no_page_loads_anything_from_elsewhere(site, pages):
    loaded = {name for page in pages.values() for name in page.loads}
    assert loaded and not [name for name in loaded if re.match(r"(?!data:)[a-z]+:|//", name)]
    styles = {r for page in pages.values() for r in page.references if ".css" in r or ".woff" in r}
    assert styles and not [r for r in styles if re.match(r"[a-z]+:|//", r)]


def test_every_image_has_a_text(pages):
    assert not {address: page.no_alt for address, page in pages.items() if page.no_alt}


def test_no_table_is_left_as_text(site):
    pages = {page: (site / f"{page}.html").read_text() for page in PAGES}
    assert not [page for page, text in pages.items() if re.search(r"<p>\s*\|", text)]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapters_can_be_downloaded_read_and_opened_in_colab(site, pages, chapter):
    references = pages[f"{chapter}.html"].references
    file = f"{REPOSITORY['branch']}/{chapter}.ipynb"
    owner_and_name = REPOSITORY["url"].removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{owner_and_name}/blob/{file}" in references
    assert f"{REPOSITORY['url']}/blob/{file}?plain=1" in references
    assert f"../_sources/{chapter}.ipynb" in references
    assert json.loads((site / "_sources" / f"{chapter}.ipynb").read_text())["cells"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_tables_can_be_downloaded_and_say_what_the_page_says(site, pages, chapter):
    for name, shown in stored_tables(Path(chapter).name).items():
        file = f"_downloads/tables/{name}.csv"
        assert f"../{file}" in pages[f"{chapter}.html"].references
        with open(site / file, newline="", encoding="utf-8") as stream:
            head, *rows = csv.reader(stream)
        found = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
        assert found == {
            " ".join(first.split()): {k: " ".join(v.split()) for k, v in row.items()}
            for first, row in shown.items()
        }


def test_scores_of_all_runs_can_be_downloaded(site, pages):
    results = ("baselines", "architectures", "temperature")
    for page in ("book/rerun.html", *(f"notebooks/{name}.html" for name in results)):
        links = {r for r in pages[page].references if r.endswith("scores.csv")}
        files = {Path(r).name: site / "x" / r for r in links}
        assert files.keys() == {"scores.csv", "class_scores.csv"}
        for name, file in files.items():
            assert file.resolve().read_bytes() == (ROOT / "study/records" / name).read_bytes()


def test_the_reference_describes_no_field_by_its_position(site):
    text = (site / "book" / "api.html").read_text()
    assert "patlib.evaluation.Evaluation" in text and "Alias for field" not in text


def test_the_last_page_lists_every_notebook(pages, site):
    text = (site / f"{PAGES[-1]}.html").read_text()
    assert all(f">{Path(chapter).name}<" in text for chapter in CHAPTERS)


def test_the_repository_is_small():
    files = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    assert (
        sum((ROOT / f).stat().st_size for f in files if f and (ROOT / f).is_file()) < 80e6
    )  # of records most


# ------------------------------------------------------------------ in a browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def visit(browser, url, size):
    """Open a page at a size, until everything is there and the mathematics is set."""
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == NARROW},
    )
    browser.get(url)
    browser.execute_async_script(
        "const done = arguments[0];"
        "const set = () => window.MathJax ? MathJax.startup.promise.then(() => done()) : done();"
        "document.readyState == 'complete' ? set() : addEventListener('load', set)"
    )


def requests(browser, url):
    """The addresses that this page has asked for since the browser was last asked for its log."""
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = {m["request"]["url"].partition("#")[0] for m in sent if m["documentURL"] == url}
    return {u for u in asked if not u.startswith(("data:", "blob:"))}


@every_page
def test_page_in_a_browser(browser, address, site, pages, page):
    url = f"{address}/{page}.html"
    browser.get_log("browser")
    visit(browser, url, WIDE)

    loaded = requests(browser, url)
    assert url in loaded
    assert not [u for u in loaded if not u.startswith(f"{address}/")], "asks another machine"
    # Also images that are not yet in sight.
    loaded |= {urljoin(url, source) for source in pages[f"{page}.html"].loads}
    files = {unquote(urlsplit(u).path).lstrip("/") for u in loaded if u.startswith(address)}
    weight = {f: (site / f).stat().st_size for f in files if (site / f).is_file()}
    heaviest = sorted(weight, key=weight.get)[-5:]
    assert sum(weight.values()) < 3e6, {f: weight[f] for f in heaviest}

    if browser.find_elements(By.CSS_SELECTOR, "main .math"):
        assert browser.find_elements(By.CSS_SELECTOR, "main mjx-container")
        assert not browser.find_elements(By.CSS_SELECTOR, "mjx-merror")

    visit(browser, url, NARROW)
    across = browser.execute_script(
        "const width = document.scrollingElement.scrollWidth;"
        "const wide = [...document.querySelectorAll('main *')]"
        "  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).slice(0, 3);"
        "return [width, wide.map(e => e.outerHTML.slice(0, 100))]"
    )
    assert across[0] <= NARROW[0], across

    errors = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert not errors


def test_the_index_of_names_fits_a_telephone(browser, address):
    visit(browser, f"{address}/genindex.html", NARROW)
    assert browser.find_elements(By.CSS_SELECTOR, "table.genindextable td")
    width = browser.execute_script("return document.scrollingElement.scrollWidth")
    assert width <= NARROW[0]


def test_contents_lead_to_every_page_in_order(browser, address):
    visit(browser, f"{address}/{PAGES[0]}.html", WIDE)
    links = browser.find_elements(By.CSS_SELECTOR, ".bd-sidebar-primary nav.bd-links a.internal")
    targets = [urlsplit(link.get_attribute("href")).path for link in links]
    assert targets == [f"/{page}.html" for page in PAGES[-len(targets) :]]
    assert len(targets) >= len(PAGES) - 1  # the first page may be the title's link alone
    links[-1].click()
    assert urlsplit(browser.current_url).path == f"/{PAGES[-1]}.html"


def test_a_figure_enlarges_on_a_telephone_and_by_keyboard(browser, address):
    visit(browser, f"{address}/notebooks/baselines.html", NARROW)
    figure = browser.find_element(By.CSS_SELECTOR, "main article img")
    dialog = browser.find_element(By.CSS_SELECTOR, "dialog.enlarged")
    assert not dialog.is_displayed() and figure.accessible_name
    figure.send_keys(Keys.ENTER)
    assert dialog.is_displayed()
    shown = dialog.find_element(By.TAG_NAME, "img")
    natural = browser.execute_script("return arguments[0].naturalWidth", figure)
    assert shown.size["width"] == natural > NARROW[0] > figure.size["width"]
    across = "return document.scrollingElement.scrollWidth"
    assert browser.execute_script(across) <= NARROW[0]  # it scrolls inside
    dialog.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    figure.click()
    assert dialog.is_displayed()
    dialog.find_element(By.TAG_NAME, "img").click()
    assert not dialog.is_displayed()


def test_figures_and_texts_have_no_pale_frame_in_the_dark(browser, address):
    for page in ("baselines", "method"):
        visit(browser, f"{address}/notebooks/{page}.html", WIDE)
        frames = browser.execute_script(
            "document.documentElement.dataset.theme = 'dark';"
            "return [...document.querySelectorAll('.cell_output img, .cell_output .text_html')]"
            ".map((e) => getComputedStyle(e)).map((s) => s.backgroundColor + ' ' + s.padding)"
        )
        assert frames and set(frames) == {"rgba(0, 0, 0, 0) 0px"}


def test_what_stands_with_a_table_stays_in_a_telephone_when_it_scrolls(browser, address):
    visit(browser, f"{address}/notebooks/baselines.html", NARROW)
    found = browser.execute_script(
        "return [...document.querySelectorAll('.output.text_html')].map((output) => {"
        "output.scrollLeft = 1000;"
        "const kept = 'caption, p.csv, tbody tr > :first-child';"
        "return [output.scrollLeft, ...[...output.querySelectorAll(kept)]"
        ".map((e) => e.getBoundingClientRect()).flatMap((r) => [r.left, r.right])]})"
    )
    assert max(scrolled for scrolled, *_ in found) > 100
    assert all(-1 <= x <= NARROW[0] for _, *sides in found for x in sides)


def test_set_up_and_parameters_stand_at_the_end_of_a_page(site):
    for chapter in CHAPTERS:
        text = (site / f"{chapter}.html").read_text()
        assert text.index("<h2") < text.index("check_parameters"), chapter


def test_search_finds(browser, address):
    visit(browser, f"{address}/{PAGES[-1]}.html", WIDE)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.CONTROL, "k")
    browser.switch_to.active_element.send_keys("temperature", Keys.ENTER)

    def found(browser):  # one after the other
        links = browser.find_elements(By.CSS_SELECTOR, "#search-results ul.search li a")
        return {urlsplit(link.get_attribute("href")).path for link in links}

    pages = {"/book/api.html", "/notebooks/train.html"}
    WebDriverWait(browser, 10).until(lambda browser: pages <= found(browser))


# -- the interactive figure of the method, alone -----------------------------------------------


@pytest.fixture
def figure(browser, tmp_path):
    """The figure alone in a dark page, 800 pixels wide."""
    file = tmp_path / "page.html"
    file.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>figure</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<body style="background: #111; color: #eee">{interactive_curves()}'
    )
    resize(browser, 800)
    browser.get_log("browser")  # of pages visited before
    browser.get(file.as_uri())
    yield browser
    # No error, nothing that could not be loaded; what the theme says of itself is not one.
    assert [e for e in browser.get_log("browser") if e["level"] != "INFO"] == []


def resize(browser, width):
    metrics = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def move(browser, slider, value):
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        slider,
        value,
    )


def path(browser, name):
    return browser.find_element("id", f"curve-{name}").get_attribute("d")


def drawn(browser, name):
    """The curve in the units of its axes: p and value."""
    points = np.array(re.findall(r"[-\d.]+", path(browser, name)), float).reshape(-1, 2)
    frame = browser.find_element("id", "fig3c-frame")
    left, top, width, height = (
        float(frame.get_attribute(a)) for a in ("x", "y", "width", "height")
    )
    largest = float(browser.find_element("id", "fig3c-plot").get_attribute("data-y-max"))
    return (points[:, 0] - left) / width, (1 - (points[:, 1] - top) / height) * largest, largest


def test_interactive_curves_agree_with_numpy(figure):
    for log_t, temperature, epsilon, gamma in (
        (1.3, 20, 0, 2),
        (-0.3, 0.5, 0, 0.5),
        (0.7, 5, -1, 5),
        (-0.7, 0.2, 1, 0),
    ):
        before = path(figure, "pat"), path(figure, "focal")
        move(figure, "pat-T", log_t)
        move(figure, "pat-epsilon", epsilon)
        move(figure, "focal-gamma", gamma)
        if temperature != 20:  # what it starts with
            assert path(figure, "pat") != before[0] and path(figure, "focal") != before[1]
        assert figure.find_element("id", "pat-T-value").text == f"{temperature:g}"
        for what, scale in (("loss", lambda p: -np.log(p)), ("coefficient", lambda p: p**0)):
            figure.find_element("id", f"fig3c-{what}").click()
            p, values, largest = drawn(figure, "pat")
            p = p.round(2)
            assert len(p) == (101 if what == "coefficient" else 100) and p[-1] == 1
            exact = np.exp((1 - epsilon - p) / temperature) * scale(p)
            np.testing.assert_allclose(values, exact, atol=1e-4 * largest)
            p, values, _ = drawn(figure, "focal")
            p = p.round(2)
            np.testing.assert_allclose(values, (1 - p) ** gamma * scale(p), atol=1e-4 * largest)
            assert 0 <= values.min() + 1e-6 and exact.max() <= largest * (1 + 1e-9)


def test_interactive_sliders_move_by_keyboard(figure):
    for slider, curve, still in (
        ("pat-T", "pat", "focal"),
        ("pat-epsilon", "pat", "focal"),
        ("focal-gamma", "focal", "pat"),
    ):
        before, other = path(figure, curve), path(figure, still)
        figure.find_element("id", slider).send_keys(Keys.ARROW_LEFT)
        assert path(figure, curve) != before and path(figure, still) == other
    assert figure.find_element("id", "pat-T").get_attribute("aria-valuetext") == "18"
    cells = figure.find_elements("css selector", "#fig3c-row-focal td")
    assert float(cells[1].text) == pytest.approx(0.5**1.9, rel=1e-3)
    assert "T = 18" in figure.find_element("id", "fig3c-plot").get_attribute("aria-label")


def test_interactive_figure_is_named_and_fits_a_phone(figure):
    for control in figure.find_elements("css selector", "#fig3c input"):
        assert control.accessible_name
    resize(figure, 390)
    assert figure.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = figure.execute_script(
        "return [...document.querySelectorAll('#fig3c *')]"
        ".filter((e) => e.getBoundingClientRect().right > 390.5).map((e) => e.tagName)"
    )
    assert wide == []
    sizes = figure.execute_script(
        "return [...document.querySelectorAll('#fig3c text')].map((t) => {"
        "const m = t.getScreenCTM(); return parseFloat(getComputedStyle(t).fontSize) *"
        "Math.hypot(m.a, m.b)})"
    )
    assert len(sizes) == 12 and min(sizes) >= 12
    # It brings its own colours into a dark figure.
    style = figure.execute_script(
        "const s = getComputedStyle(document.getElementById('fig3c'));"
        "return [s.backgroundColor, s.color]"
    )
    assert style == ["rgb(255, 255, 255)", "rgb(27, 27, 27)"]


def test_links_between_pages_stay_inside_the_pdf():
    html = (
        '<span id="document-notebooks/cost"></span><span id="document-book/api"></span>'
        '<a href="book/index.html#term-tail">a</a><a href="cost.html">b</a>'
        '<a href="cost.html#noise">c</a><a href="genindex.html">d</a>'
        '<a href="https://example.org/cost.html">e</a><a href="_downloads/1/scores.csv">f</a>'
    )
    links = re.findall(r'href="([^"]*)"', load_script("book/pdf.py").within(html))
    assert links == [
        *("#term-tail", "#document-notebooks/cost", "#noise"),
        *("genindex.html", "https://example.org/cost.html"),
    ]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium or Chrome")
def test_a_page_is_printed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<html><head></head><body><p>text</p></body></html>")
    print_page = load_script("book/pdf.py").print_page
    print_page(page, tmp_path / "page.pdf", CHROMIUM)
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and b"/Type /Page" in content
    with pytest.raises(subprocess.CalledProcessError):
        print_page(page, tmp_path / "none.pdf", "false")
    assert not (tmp_path / "none.pdf").exists()
