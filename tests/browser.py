"""A headless Chromium for tests that look at pages; it asks nobody but this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

LOCAL, NETWORK = ("127.0.0.1", "localhost"), ("http", "https", "ws", "wss")


@contextmanager
def chromium(profile: Path, size: tuple[int, int] = (1360, 1000)) -> Iterator[Any]:
    """Start a browser, with an empty profile; the test is skipped where there is none.

    Args:
        profile: An empty folder.
        size: Of the window.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    switches = "headless no-sandbox disable-gpu disable-dev-shm-usage disable-background-networking no-first-run"
    switches += " disable-component-update disable-sync disable-extensions hide-scrollbars force-color-profile=srgb"
    for switch in switches.split():
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument(f"--window-size={size[0]},{size[1]}")
    options.add_experimental_option("prefs", {"download.default_directory": str(profile / "downloads")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        yield opened
    finally:
        opened.quit()


def requested(browser: Any) -> set[str]:
    """Hosts that the pages of a browser have asked since the last call; those of this machine are left out."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    parts = [urlsplit(url) for url in asked]
    return {each.geturl() for each in parts if each.scheme in NETWORK and each.hostname not in LOCAL}


def complaints(browser: Any) -> list[str]:
    """What the console of a browser calls an error since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
