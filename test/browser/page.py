"""What a person does with the page, and how a test waits for what it shows."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

SCREENSHOTS = os.environ.get('EDGE_RESNET_SCREENSHOTS', '')


def until(condition, what, timeout_s=60.0):
    """The first true value of ``condition``, in which an element may come and go."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(LookupError):
            if value := condition():
                return value
        time.sleep(0.02)
    raise AssertionError(f'{what} did not happen within {timeout_s} s')


class Page:
    """What a person does with the page: look and press."""

    def __init__(self, driver):
        self.driver = driver

    def text(self, element):
        return self.driver.execute_script('return document.getElementById(arguments[0]).textContent', element)

    def run(self, script, *arguments):
        return self.driver.execute_script(f'return {script}', *arguments)

    def stale(self, card):
        return self.run(f"document.querySelector('#{card}-card.stale .age')?.textContent ?? ''")

    def press(self, button):
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.ID, button).click()

    def size(self, width, height, *, dark=False):
        metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 500}
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
        scheme = [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': scheme})

    def screenshot(self, name, width, *, dark=False):
        """Written only when EDGE_RESNET_SCREENSHOTS names a folder for it."""
        if SCREENSHOTS:
            self.size(width, 900, dark=dark)
            time.sleep(1.0)
            self.size(width, self.run('document.documentElement.scrollHeight'), dark=dark)
            time.sleep(1.5)
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            assert self.driver.save_screenshot(str(Path(SCREENSHOTS, name))), f'{name} could not be written'
