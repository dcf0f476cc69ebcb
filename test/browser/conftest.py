"""A pipeline and a dashboard as processes, and a real browser without a window that looks at them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from page import SCREENSHOTS, Page, until

sys.path.insert(0, str(Path(__file__).parents[1] / 'integration'))

FLAGS = ('--headless=new', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run',
         '--disable-dev-shm-usage', '--force-device-scale-factor=1')


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
