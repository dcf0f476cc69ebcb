"""The page in a real browser: what moves, what the buttons do, and what it says when there is nothing to say. In this order."""

import re
import signal
import time

import pytest
from page import SCREENSHOTS, until

pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning')


def number(page, element):
    found = re.search(r'\d+(\.\d+)?', page.text(element))
    return float(found[0]) if found else None


def test_the_picture_changes_and_the_numbers_move(page):
    picture = until(lambda: page.run("document.getElementById('picture').src"), 'a picture')
    assert picture.startswith('data:image/jpeg;base64,')
    until(lambda: page.run("document.getElementById('picture').src") != picture, 'another picture')
    assert page.run("document.getElementById('picture').naturalWidth") == 224
    label = until(lambda: page.text('label') in ('red', 'green', 'yellow') and page.text('label'), 'a label')
    until(lambda: page.text('label') != label, 'another label')
    total = until(lambda: number(page, 'total'), 'a latency')
    until(lambda: number(page, 'total') != total, 'another latency')
    assert page.run("document.querySelectorAll('#top li').length") == 3
    assert page.run("[...document.querySelectorAll('#slices tbody tr')].map(row => row.cells[0].textContent)") == [
        'to frame ready', 'to inference done', 'to actuator', 'total']
    until(lambda: page.run("document.querySelectorAll('#hops tbody tr').length") == 4, 'four hops')
    assert number(page, 'rate') > 0


def test_three_slices_heat_and_throttle_moments_are_on_one_time_axis(page):
    told = "document.getElementById('chart').data?.map(trace => [trace.name, trace.xaxis ?? 'x', trace.x.length])"
    traces = until(lambda: page.run(told), 'a chart')
    assert [name for name, _, _ in traces] == [
        'to frame ready', 'to inference done', 'to actuator', 'worst', 'source → camera', 'camera → preprocess', 'preprocess → inference',
        'inference → actuator', 'heat', 'clock']
    assert len({(axis, length) for _, axis, length in traces}) == 1
    until(lambda: page.run("document.getElementById('chart').data[0].x.length") > traces[0][2], 'a second more')
    assert page.run("document.querySelectorAll('#chart .main-svg').length") > 0


def test_a_worst_frame_is_in_the_chart_or_marked_as_above_it(page):
    """One of all stretches the axis to twice its height at most; where it is higher still, its mark is at the top."""
    drawn = """(factor => {
      const kept = points;
      points = Array.from({length: 40}, (_, n) => (
        {n, t: n, ms: [3, 20, 1], worst: n === 20 ? factor * 50 : 50, drops: {}, celsius: 60, mhz: 1500, flags: []}));
      draw();
      const {data, layout} = $('chart'), worst = data.find(trace => trace.name === 'worst');
      const told = [layout.yaxis.range[1], worst.y[20], worst.customdata[20], worst.marker.size[20], worst.marker.size[19]];
      points = kept;
      draw();
      return told;
    })(arguments[0])"""
    for factor in (1, 1.5, 10):
        top, at, told, mark, other = page.run(drawn, factor)
        assert (told, mark > 0, other) == (factor * 50, factor == 10, 0)
        assert at == factor * 50 or (factor == 10 and 0.9 * top < at < top)
        assert top <= 2 * 50
        assert factor == 10 or top > factor * 50


@pytest.mark.skipif(bool(SCREENSHOTS), reason='the board is simulated then')
def test_a_throttle_moment_is_told_and_marked(page, robot):
    until(lambda: page.text('celsius') == '61.5' and page.text('moments') == '', 'a cool board')
    robot.board.set(80.5, 1000.0, 0b110)
    until(lambda: page.text('celsius') == '80.5' and page.text('mhz') == '1,000 MHz', 'a hot one')
    assert page.run("[...document.querySelectorAll('#flags .set')].map(flag => flag.textContent)") == ['frequency capped', 'throttled']
    until(lambda: page.text('moments') == '1 throttle moment', 'its mark in the chart')
    marked = [shape for shape in page.run("document.getElementById('chart').layout.shapes") if shape['type'] == 'rect']
    assert len(marked) == 1
    robot.board.set(70.0, 1500.0, 0)
    until(lambda: page.text('celsius') == '70.0', 'a cool one again')


def test_every_node_is_there_with_its_diagnostics(page):
    nodes = ['camera', 'preprocess', 'inference', 'actuator', 'thermal_monitor', 'latency_monitor', 'dashboard']
    until(lambda: page.run("[...document.querySelectorAll('#nodes summary b')].map(name => name.textContent)") == nodes, 'all nodes')
    page.run("document.querySelector('#nodes details').open = true")
    until(lambda: 'Captured' in page.run("document.querySelector('#nodes details[open]').textContent"), 'what the camera says')
    page.run("document.querySelector('#nodes details').open = false")
    until(lambda: page.run("[...document.querySelectorAll('#drifts .meter')].every(meter => !meter.textContent.includes('unknown'))"), 'the drift')


def test_emergency_stop_is_off_within_a_second_and_arming_ends_it(page, robot):
    until(lambda: page.text('on') == 'ON' and robot.state_file.read_text().strip() == '1', 'a red light')
    page.press('stop')
    begun = time.monotonic()
    until(lambda: robot.state_file.read_text().strip() == '0', 'off', 1.0)
    until(lambda: page.text('on') == 'off' and page.text('armed') == 'emergency stop', 'the page to say so')
    until(lambda: page.text('answer') == 'stop: not armed', 'the answer')
    until(lambda: page.text('label') == 'red', 'another red light')
    while time.monotonic() - begun < 4.0:
        assert robot.state_file.read_text().strip() == '0', 'it holds'
        time.sleep(0.05)
    until(lambda: page.text('arm') == 'Re-arm', 'the button')
    page.press('arm')
    until(lambda: page.text('armed') == 'armed', 'armed')
    until(lambda: robot.state_file.read_text().strip() == '1' and page.text('on') == 'ON', 'on again')


def test_a_dashboard_that_hangs_stops_when_it_is_back_and_does_not_arm_then(page, robot):
    def hung(order, button):
        robot.dashboard.send_signal(signal.SIGSTOP)
        page.press(button)
        until(lambda: page.text('answer') == f'{order}: no answer yet, nothing may have happened', 'an honest answer')
        robot.dashboard.send_signal(signal.SIGCONT)

    hung('stop', 'stop')
    until(lambda: page.text('answer') == 'stop: not armed', 'the stop')
    until(lambda: page.text('arm') == 'Re-arm', 'the button')
    hung('arm', 'arm')
    until(lambda: page.text('answer').startswith('arm: not armed: what the page showed then'), 'a refusal')
    assert page.text('armed') == 'emergency stop'
    until(lambda: page.text('link') == 'connected', 'the page to see again')
    page.press('arm')
    until(lambda: page.text('armed') == 'armed', 'armed')


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [390, 768, 1280])
def test_any_width_light_and_dark(page, width, dark):
    page.size(width, 844, dark=dark)
    time.sleep(0.5)
    assert page.run('document.documentElement.scrollWidth') <= width, 'nothing to scroll sideways'

    def legends():
        ends = page.run("[...document.querySelectorAll('#chart .annotation-text')].map(text => text.getBoundingClientRect().right)")
        return len(ends) >= 3 and max(ends) <= width

    until(legends, 'whole legends, with the next drawing of the chart', 10.0)
    lights = [int(value) for value in re.findall(r'\d+', page.run('getComputedStyle(document.body).backgroundColor'))[:3]]
    assert (max(lights) < 80) == dark
    assert page.run("Math.min(...[...document.querySelectorAll('button')].map(button => button.getBoundingClientRect().height))") >= 44
    boxes = page.run("[...document.querySelectorAll('section')].map(card => card.getBoundingClientRect())"
                     '.map(box => [box.x, box.y, box.right, box.bottom])')
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert right - left > 0.2 * width
        for other in boxes[index + 1:]:
            assert other[0] >= right or other[2] <= left or other[1] >= bottom or other[3] <= top, 'cards do not overlap'


def test_it_uses_nothing_but_this_machine_and_breaks_no_rule_of_its_own(page, robot):
    names = page.run("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert {name for name in names if not name.startswith((robot.url, 'data:'))} == set()
    severe = [entry['message'] for entry in page.driver.get_log('browser') if entry['level'] == 'SEVERE']
    assert [message for message in severe if '/arm - ' not in message or '409' not in message] == [], 'but for the order refused above'


def test_screenshots_for_the_documentation(page):
    if not SCREENSHOTS:
        pytest.skip('EDGE_RESNET_SCREENSHOTS=folder makes them')
    until(lambda: page.run('points.length') > 170, 'three minutes', 200.0)
    page.screenshot('dashboard.png', 1280)
    page.screenshot('dark.png', 1280, dark=True)
    page.screenshot('phone.png', 390)


def test_when_the_pipeline_stops_the_page_says_since_when(page, robot):
    page.size(1280, 900)
    assert robot.end('pipeline') == 0
    for card in ('picture', 'latency', 'actuator', 'thermal', 'drift'):
        age = until(lambda card=card: re.fullmatch(r'stale (\d+\.\d) s', page.stale(card)), f'{card} to be stale')[1]
        until(lambda card=card, age=age: float(re.search(r'[\d.]+', page.stale(card))[0]) > float(age), 'it grows')
    bars = "[...document.querySelector('#chart .barlayer .trace').querySelectorAll('path')].filter(bar => bar.getBBox().height > 0).length"
    until(lambda: page.run('!points.at(-1).ms'), 'a second without a frame')
    assert page.run(f'points.filter(point => point.ms).length - {bars}') == 0, 'it is a gap'
    assert page.text('on') == 'unknown'
    silent = "[...document.querySelectorAll('#nodes summary')].filter(node => node.textContent.includes('silent')).length"
    until(lambda: page.run(silent) == 6, 'all but the dashboard silent')
    assert page.text('link') == 'connected', 'it is the pipeline that is gone'
    page.screenshot('stale.png', 1280)


def test_when_the_connection_is_lost_the_page_says_so_and_finds_back(page, robot):
    assert robot.end('dashboard_node') == 0
    until(lambda: page.text('link').startswith('no connection for '), 'the page to say so')
    assert page.run("document.body.classList.contains('lost')")
    page.press('stop')
    until(lambda: page.text('answer') == 'stop was NOT sent: no connection', 'an honest answer')
    page.run("document.body.dataset.run = 'first'")
    robot.start('dashboard_node', port=int(robot.url.rstrip('/').rsplit(':', 1)[1]))
    until(lambda: page.run("document.body.dataset.run ?? 'second'") == 'second' and page.text('link') == 'connected', 'the page of the new run')
    page.press('stop')
    until(lambda: page.text('answer') == 'stop: there is no actuator node', 'an order with the new token')
