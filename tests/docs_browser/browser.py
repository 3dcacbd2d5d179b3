"""One headless Chromium for all tests: opens pages of the built book from disk, and keeps what went wrong.

No host name resolves and the network is off, so a page that needs either shows it. Everything that depends
on the reader (light or dark, width, scripts) is switched as a system does it, not by classes of the theme.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

HTML = Path(__file__).resolve().parents[2] / "docs" / "_build" / "html"
DESKTOP = (1280, 900)
PHONE = (390, 844)

# The page counts as loaded once its fonts are there, its formulas are set and its drawing has settled.
READY = """
const done = arguments[0];
const mathematics = window.MathJax && MathJax.startup ? MathJax.startup.promise : null;
Promise.all([document.fonts.ready, mathematics])
  .then(() => requestAnimationFrame(() => setTimeout(() => done(""), 0)), (error) => done(String(error)));
"""

# A figure is one image to a reader, whose parts say nothing to axe-core and take it seconds.
AXE = """
const [options, done] = arguments;
const context = {include: [["html"]], exclude: [["figure svg > *"], ["mjx-container svg > *"]]};
axe.run(context, {...options, resultTypes: ["violations"]})
  .then((result) => done(result.violations), (error) => done(String(error)));
"""


def find_programs() -> tuple[str, str]:
    """Return the paths of Chromium and of its driver."""
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if found[0] is None or found[1] is None:
        raise RuntimeError("chromium or chromedriver is missing: apt-get install chromium chromium-driver")
    return found[0], found[1]


class Browser:
    """Chromium, with the calls that the tests need."""

    def __init__(self) -> None:
        chromium, driver = find_programs()
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (
            "--headless=new",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--disable-background-networking",
            "--disable-gpu",
            "--force-color-profile=srgb",
            "--hide-scrollbars",
        ):
            options.add_argument(argument)
        if os.geteuid() == 0:  # Chromium's sandbox does not run as root, which containers usually are
            options.add_argument("--no-sandbox")
            options.add_argument("--disable-dev-shm-usage")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_script_timeout(60)
        self.driver.set_page_load_timeout(60)
        self.axe_source = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
        self.command("Network.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.command("Network.emulateNetworkConditions", **offline)
        self.set_width(*DESKTOP)
        self.set_dark(False)

    def close(self) -> None:
        """End Chromium and its driver."""
        self.driver.quit()

    def command(self, name: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol."""
        answer: dict[str, Any] = self.driver.execute_cdp_cmd(name, parameters)
        return answer

    def set_width(self, width: int, height: int) -> None:
        """Lay out for a window of so many CSS pixels; the phone's is a phone's in other ways too."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width == PHONE[0]}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def set_dark(self, dark: bool) -> None:
        """Say what the reader's system prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.command("Emulation.setEmulatedMedia", features=[scheme, still])
        for _ in range(100):
            theme = self.script("return document.documentElement.dataset.theme ?? null")
            if theme in (None, scheme["value"]):
                return
            time.sleep(0.02)
        raise AssertionError(f"the page did not turn {scheme['value']} when the system did")

    def set_scripts(self, on: bool) -> None:
        """Switch the pages' scripts on or off, from the next page on."""
        self.command("Emulation.setScriptExecutionDisabled", value=not on)

    def open(self, page: str | Path, ready: bool = True) -> None:
        """Open a page by its path below docs/_build/html, or an absolute one; forget older faults."""
        name, _, rest = str(page).partition("?")
        self.faults()
        self.driver.get((HTML / name).as_uri() + (f"?{rest}" if rest else ""))
        if ready:
            problem = self.driver.execute_async_script(READY)
            assert not problem, problem

    def script(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self.driver.execute_script(code, *arguments)

    def wait(self, code: str, why: str, seconds: float = 3.0) -> None:
        """Wait until JavaScript returns something true."""
        end = time.monotonic() + seconds
        while not self.script(code):
            assert time.monotonic() < end, why
            time.sleep(0.05)

    def faults(self) -> list[str]:
        """Return what the console and the network have had to complain of since this was last asked."""
        found = [
            f"console: {entry['message']}"
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("WARNING", "SEVERE")
        ]
        address = {}
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            values = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                url = address[values["requestId"]] = values["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:")):
                    found.append(f"asked of another host: {url}")
            elif message["method"] == "Network.loadingFailed" and not values.get("canceled"):
                found.append(f"failed: {address.get(values['requestId'])} {values['errorText']}")
        return found

    def axe(self, **options: Any) -> list[str]:
        """Return what axe-core holds serious or critical on the page as it stands, with the first places."""
        if not self.script("return 'axe' in window"):
            self.driver.execute_script(self.axe_source)
        result = self.driver.execute_async_script(AXE, options)
        assert isinstance(result, list), result
        return [
            f"{rule['id']}, {len(rule['nodes'])} times: {rule['nodes'][0]['html'][:300]}"
            for rule in result
            if rule["impact"] in ("serious", "critical")
        ]

    def picture(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """Return a rectangle of the page, given in CSS pixels, as (rows, columns, RGB) in [0, 1]."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        answer = self.command("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        pixels: np.ndarray = imread(io.BytesIO(base64.b64decode(answer["data"])))[..., :3]
        return pixels
