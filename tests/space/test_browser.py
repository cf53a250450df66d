"""The demo as its visitors have it: a Space's folder, served, in headless Chromium. Run by `make demo-test`."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.browser

PATIENCE = 120  # seconds
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of the app, which runs in a folder put together as hub/space/README.md says; and its log."""
    folder = tmp_path_factory.mktemp("space")
    shutil.copytree(ROOT / "hub" / "space", folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "timm_wsms", folder / "timm_wsms")
    models = ROOT / "hub" / "models"
    environment = {
        **os.environ,
        "WSMS_MODEL": f"local-dir:{models / 'wsmean_tf_efficientnet_lite0_flowers'}",
        "PLAIN_MODEL": f"local-dir:{models / 'tf_efficientnet_lite0_flowers'}",
    }
    log = folder / "log.txt"
    with log.open("w") as file:
        command = [sys.executable, "app.py"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        found = wait(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield f"{found[0]}/", log  # Gradio took the first port that is free
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(server, browser):
    """The page, freshly loaded and filled, at a desktop's size; afterwards the console must hold no error."""
    yield load(browser, server[0], 1280, 800)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def load(browser, address, width, height):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get("about:blank")
    browser.get_log("browser")  # leaving a page breaks its requests off, and Gradio calls that an error
    browser.get(address)
    wait(lambda: text(browser, "#answers") and text(browser, "#stages"))
    return browser


def wait(condition):
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return value


def find(page, selector):
    return page.find_element("css selector", selector)


def text(page, selector):
    found = page.find_elements("css selector", selector)
    return found[0].text if found else ""


def slide(page, steps):
    """Moves the slider by the keyboard; a step is a quarter of an octave."""
    find(page, "#size input[type=range]").send_keys(("\ue014" if steps > 0 else "\ue012") * abs(steps))
    wait(lambda: f"× {2 ** (steps / 4):.2f}" in text(page, "#picture"))


def upload(page, path):
    find(page, "input[type=file]").send_keys(str(path))


def test_slider_changes_what_is_seen_and_said(page):
    assert "× 1.00" in text(page, "#picture")
    said, seen = text(page, "#answers"), find(page, "#picture img").get_attribute("src")
    slide(page, 6)
    assert text(page, "#answers") != said and find(page, "#picture img").get_attribute("src") != seen


def test_examples(page):
    picture = find(page, "#picture img").get_attribute("src")
    page.find_elements("css selector", "#examples button")[7].click()
    wait(lambda: find(page, "#picture img").get_attribute("src") != picture)
    wait(lambda: "✓ tulip" in text(page, "#answers"))
    slide(page, -2)  # of the new picture
    assert "✓ tulip" in text(page, "#answers") and "LaserGuided" in text(page, "#credits")


def test_uploads(page, tmp_path):
    example = find(page, "#picture img").get_attribute("src")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "damaged.jpg")
    (tmp_path / "damaged.jpg").write_bytes((tmp_path / "damaged.jpg").read_bytes()[:3000])
    (tmp_path / "text.png").write_text("dear diary")
    Image.new("L", (10_000, 5_000)).save(tmp_path / "large.png")
    for name, words in (("text.png", "is not a picture"), ("damaged.jpg", "damaged"), ("large.png", "50 megapixels")):
        upload(page, tmp_path / name)
        wait(lambda words=words: words in text(page, "#message"))
        assert find(page, "#picture img").get_attribute("src") == example
    Image.new("RGBA", (300, 200), (255, 0, 0, 128)).save(tmp_path / "good.png")
    upload(page, tmp_path / "good.png")
    wait(lambda: find(page, "#picture img").get_attribute("src") != example)
    assert not text(page, "#message") and "✓" not in text(page, "#answers")


def test_uploads_that_gradio_refuses(page, tmp_path):
    (tmp_path / "diary.txt").write_text("dear diary")
    upload(page, tmp_path / "diary.txt")
    wait(lambda: "Invalid file type" in text(page, "body"))
    (tmp_path / "huge.png").write_bytes(bytes(21_000_000))
    upload(page, tmp_path / "huge.png")
    wait(lambda: "exceed the maximum allowed size" in text(page, "body"))
    slide(page, 1)  # goes on


def test_looks(server, browser):
    """Nothing is wider than the screen; what it looks like is left in outputs/ for human eyes."""
    (ROOT / "outputs").mkdir(exist_ok=True)
    for width, height in ((1280, 1140), (390, 844)):
        page = load(browser, server[0], width, height)
        page.find_elements("css selector", "#examples button")[4].click()
        wait(lambda page=page: "✓ rose" in text(page, "#answers"))
        slide(page, -4)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        page.save_screenshot(ROOT / "outputs" / f"demo-{width}.png")


def test_nothing_calls_home_and_nothing_failed(server, page):
    """After all of the above: no request beyond loopback, no traceback in the server's log."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert server[0] in urls
    within = (server[0], "data:", "blob:", "chrome:", "chrome-untrusted:")  # the last two: Chromium's own pages
    assert not [url for url in urls if not url.startswith(within)]
    assert "Traceback" not in server[1].read_text()
