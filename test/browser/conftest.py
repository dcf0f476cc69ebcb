"""A pipeline and a dashboard as processes, and a real browser without a window that looks at them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / 'integration'))

SCREENSHOTS = os.environ.get('EDGE_RESNET_SCREENSHOTS', '')
FLAGS = ('--headless=new', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run',
         '--disable-dev-shm-usage', '--force-device-scale-factor=1')


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


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver')
    chromium, chromedriver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (chromium and chromedriver):
        pytest.skip('no Chromium with its driver here: sudo apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    for flag in (*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("profile")}', *(['--no-sandbox'] if os.getuid() == 0 else [])):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope='module')
def robot(tmp_path_factory):
    pytest.importorskip('rclpy')
    pytest.importorskip('aiohttp')
    from fake_board import FakeBoard
    from processes import Processes

    processes = Processes()
    processes.state_file, processes.board = tmp_path_factory.mktemp('actuator') / 'state', FakeBoard(tmp_path_factory.mktemp('board'), 61.5)
    heat = {'board': 'simulated', 'ambient_c': 35.0, 'load': 1.0} if SCREENSHOTS else {'sysfs_root': processes.board.root}
    model = 'resnet50_traffic_lights' if SCREENSHOTS else 'mobilenetv3_small_minimalistic_traffic_lights'
    processes.start('pipeline', framerate=15.0, image_hold_s=2.0, model=model, state_file=processes.state_file, debounce_frames=1,
                    max_result_age_s=10.0, **heat)  # all of it for a busy machine
    yield processes
    processes.close()


@pytest.fixture(scope='module')
def page(robot, browser):
    robot.dashboard = robot.start('dashboard_node', port=0)
    robot.url = until(lambda: re.search(r'dashboard on (\S+)', robot.output('dashboard_node')), 'a dashboard')[1]
    page = Page(browser)
    page.size(1280, 900)
    browser.get(robot.url)
    until(lambda: page.text('link') == 'connected', 'a connection')
    return page
