"""The site: built as strictly as `make book` builds it, served here, and read in a browser."""

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

import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for chapter in TOC["chapters"])]
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


def test_the_last_page_lists_every_notebook(pages, site):
    text = (site / f"{PAGES[-1]}.html").read_text()
    assert all(f">{Path(chapter).name}<" in text for chapter in CHAPTERS)


def test_the_repository_is_small():
    files = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    assert sum((ROOT / f).stat().st_size for f in files if f and (ROOT / f).is_file()) < 20e6


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


def test_contents_lead_to_every_page_in_order(browser, address):
    visit(browser, f"{address}/{PAGES[0]}.html", WIDE)
    links = browser.find_elements(By.CSS_SELECTOR, ".bd-sidebar-primary nav.bd-links a.internal")
    targets = [urlsplit(link.get_attribute("href")).path for link in links]
    assert targets == [f"/{page}.html" for page in PAGES[-len(targets) :]]
    assert len(targets) >= len(PAGES) - 1  # the first page may be the title's link alone
    links[-1].click()
    assert urlsplit(browser.current_url).path == f"/{PAGES[-1]}.html"


def test_search_finds(browser, address):
    visit(browser, f"{address}/{PAGES[-1]}.html", WIDE)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.CONTROL, "k")
    browser.switch_to.active_element.send_keys("temperature", Keys.ENTER)

    def found(browser):  # one after the other
        links = browser.find_elements(By.CSS_SELECTOR, "#search-results ul.search li a")
        return {urlsplit(link.get_attribute("href")).path for link in links}

    pages = {"/book/api.html", "/notebooks/train.html"}
    WebDriverWait(browser, 10).until(lambda browser: pages <= found(browser))


@pytest.mark.skipif("notebooks/method" not in PAGES, reason="the method page is not there")
@pytest.mark.parametrize(
    ("slider", "curve", "other"),
    [
        ("pat-T", "curve-pat", "curve-focal"),
        ("pat-epsilon", "curve-pat", "curve-focal"),
        ("focal-gamma", "curve-focal", "curve-pat"),
    ],
)
def test_sliders_move_their_curve_and_no_other(browser, address, slider, curve, other):
    visit(browser, f"{address}/notebooks/method.html", WIDE)

    def drawn(path):
        return browser.find_element(By.ID, path).get_attribute("d")

    before = drawn(curve), drawn(other)
    element = browser.find_element(By.ID, slider)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.send_keys(*[Keys.ARROW_RIGHT] * 5)
    assert drawn(curve) != before[0] and drawn(other) == before[1]
    assert "NaN" not in drawn(curve) and len(before[0]) > 50
