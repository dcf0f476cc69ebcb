"""Frames for calibration from folders, videos and bags: what is written, resumed, refused."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tiny_model import LABELS, SIZE, patch, tiny_float_model, write_bundle

from edge_resnet.pipeline import calibration
from edge_resnet.pipeline.drift import DriftMonitor
from edge_resnet.pipeline.preprocessing import Preprocessing, resize
from edge_resnet.pipeline.selection import Selection
from edge_resnet.tools import capture_calibration
from edge_resnet.tools.dataset import images, read_rgb

SPEC = Preprocessing(SIZE, SIZE)
CRASH = """
import os, sys
from pathlib import Path
from edge_resnet.tools import capture_calibration

rename, calls = Path.rename, iter(range(1000))

def crash(self, target):
    if next(calls) == int(sys.argv[1]):
        os._exit(9)
    return rename(self, target)

Path.rename = crash
capture_calibration.main(sys.argv[2:])
"""


def scene(number, size=160):
    """A picture that is like no other, larger than the network's input."""
    return patch(LABELS[number % 3], np.random.default_rng(number), size)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / 'export'
    folder.mkdir()
    tiny_float_model(folder / 'float.tflite')
    (folder / 'labels.txt').write_text('\n'.join(LABELS) + '\n')
    said = {'preprocessing': {'resize': 'stretch', 'color_order': 'rgb', 'mean': [127.5] * 3, 'std': [127.5] * 3}, 'output': 'softmax'}
    (folder / 'export.json').write_text(json.dumps({**said, 'label_offset': 0}))
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for number in range(12):
        cv2.imwrite(str(folder / f'{number:02d}.png'), scene(number)[..., ::-1])
    return folder


@pytest.fixture
def run(tmp_path, model, capsys):
    """Run the command for folder ``out``: (exit code, manifest, what it said on stderr)."""
    def run(*given, out='frames', model=model):
        code = capture_calibration.main(['--model', str(model), '--out', str(tmp_path / out), *map(str, given)])
        path = tmp_path / out / 'manifest.json'
        return code, json.loads(path.read_text()) if path.exists() else None, capsys.readouterr().err

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_recorded_at_the_networks_size_with_a_manifest(run, photos, tmp_path):
    code, manifest, said = run('--source', photos, '--count', 12)
    assert code == 0
    assert '12 of 12 frames, passed over: none' in said
    assert names(tmp_path / 'frames') == [*(f'{number:06d}.png' for number in range(12)), 'manifest.json']
    frames = [read_rgb(path) for path in images(tmp_path / 'frames')]
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, resize(scene(number), SPEC))
    assert manifest['count'] == 12
    assert manifest['source'] == {'kind': 'folder', 'name': 'photos', 'clock': 'number of the image'}
    assert manifest['preprocessing'] == {
        'width': 32, 'height': 32, 'resize': 'stretch', 'color_order': 'rgb', 'mean': [127.5] * 3, 'std': [127.5] * 3}
    assert (manifest['seed'], manifest['passed_over'], manifest['time_span']) == (7, {}, {'first_s': 0.5, 'last_s': 11.5})
    np.testing.assert_allclose([manifest['histograms'][color] for color in ('red', 'green', 'blue')],
                               calibration.statistics(frames).histograms, atol=1e-5)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in images(tmp_path / 'frames')}
    assert {name: entry['sha256'] for name, entry in manifest['frames'].items()} == digests
    assert manifest['sha256'] == hashlib.sha256(''.join(f'{name} {digest}\n' for name, digest in digests.items()).encode()).hexdigest()
    assert str(tmp_path) not in json.dumps(manifest), 'no path of this machine'


def test_frames_are_passed_over_and_counted_by_reason(run, photos, tmp_path):
    cv2.imwrite(str(photos / '10-dark.png'), (scene(20)[..., ::-1] * 0.05).astype(np.uint8))
    cv2.imwrite(str(photos / '10-frozen.png'), scene(10)[..., ::-1])
    cv2.imwrite(str(photos / '11-alike.png'), np.clip(scene(4)[..., ::-1] + 1.0, 0, 255).astype(np.uint8))
    cv2.imwrite(str(photos / '11-blurred.png'), cv2.GaussianBlur(scene(21), (0, 0), 20))
    (photos / '11-broken.jpg').write_bytes(b'\xff\xd8 no picture')
    (photos / '10-dark.png').rename(photos / '09-dark.png')
    code, manifest, said = run('--source', photos, '--count', 17)
    assert code == 1, 'fewer than asked for'
    assert manifest['passed_over'] == {'alike': 1, 'blurred': 1, 'dark': 1, 'frozen': 1, 'unreadable': 1}
    assert manifest['count'] == 12
    assert 'the source ended with 12 of 17 frames, passed over: 1 alike, 1 blurred, 1 dark, 1 frozen, 1 unreadable' in said


def test_a_few_of_many_are_spread_over_all(run, photos):
    code, manifest, _ = run('--source', photos, '--count', 4)
    assert code == 0
    times = [entry['time_s'] for entry in manifest['frames'].values()]
    assert [int(time_s) // 3 for time_s in times] == [0, 1, 2, 3]


def test_what_the_schedule_left_out_is_better_than_too_few(run, photos):
    for number in range(12, 40):
        cv2.imwrite(str(photos / f'{number:02d}.png'), scene(0)[..., ::-1])
    code, manifest, _ = run('--source', photos, '--count', 12)
    assert (code, manifest['count']) == (0, 12)
    assert manifest['passed_over']['frozen'] <= 28, 'no image is looked at twice'


def test_a_recording_goes_on_to_a_larger_count_and_keeps_what_it_had(run, photos, tmp_path):
    run('--source', photos, '--count', 5)
    before = {path.name: path.stat().st_mtime_ns for path in images(tmp_path / 'frames')}
    code, manifest, _ = run('--source', photos, '--count', 9)
    assert (code, manifest['count']) == (0, 9)
    assert {name: (tmp_path / 'frames' / name).stat().st_mtime_ns for name in before} == before
    pictures = [path.read_bytes() for path in images(tmp_path / 'frames')]
    assert len(set(pictures)) == 9, 'no frame twice'


def test_a_finished_recording_is_left_alone(run, photos):
    first = run('--source', photos, '--count', 5)[1]
    assert run('--source', photos, '--count', 5)[:2] == (0, first)


@pytest.mark.parametrize('renames', [7, 8], ids=['before the frame has its name', 'before the manifest knows it'])
def test_a_crash_while_writing_loses_and_doubles_nothing(run, photos, tmp_path, model, root, renames):
    command = ['--model', str(model), '--out', str(tmp_path / 'frames'), '--source', str(photos), '--count', '8']
    assert subprocess.run([sys.executable, '-c', CRASH, str(renames), *command], cwd=root, timeout=60).returncode == 9
    assert json.loads((tmp_path / 'frames' / 'manifest.json').read_text())['count'] == 3
    code, manifest, _ = run('--source', photos, '--count', 8)
    assert (code, manifest['count']) == (0, 8)
    assert names(tmp_path / 'frames') == [*sorted(manifest['frames']), 'manifest.json']
    frames = [read_rgb(path) for path in images(tmp_path / 'frames')]
    assert calibration.statistics(frames).distinct == 8
    np.testing.assert_allclose(manifest['histograms']['red'], calibration.statistics(frames).histograms[0], atol=1e-5)


def test_ctrl_c_leaves_whole_frames_and_their_manifest(run, photos, tmp_path, monkeypatch):
    judge, calls = Selection.judge, []

    def interrupted(self, frame):
        calls.append(frame)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return judge(self, frame)

    monkeypatch.setattr(Selection, 'judge', interrupted)
    code, manifest, said = run('--source', photos, '--count', 8)
    assert code == 130
    assert 'interrupted' in said
    assert names(tmp_path / 'frames') == [*sorted(manifest['frames']), 'manifest.json']
    assert manifest['count'] == 3
    whole = run('--source', photos, '--count', 8)[1]
    assert whole['frames'].items() > manifest['frames'].items()
    assert whole['count'] == 8
    assert [entry['time_s'] for entry in whole['frames'].values()] == sorted(entry['time_s'] for entry in whole['frames'].values()), 'goes on'


@pytest.mark.parametrize(('given', 'refusal'), [
    ({'seed': 8}, 'seed was 7, now it is 8'), ({'source': 'others'}, "source name was 'photos', now it is 'others'"),
    ({'width': 16}, 'preprocessing width was 32, now it is 16')])
def test_another_source_preprocessing_or_seed_is_refused_by_name(run, photos, tmp_path, given, refusal):
    run('--source', photos, '--count', 5)
    before = names(tmp_path / 'frames')
    model = tmp_path / 'export'
    if 'width' in given:
        model = write_bundle(tmp_path / 'small')
        card = yaml.safe_load((model / 'card.yaml').read_text())
        card['preprocessing'].update(width=16)
        (model / 'card.yaml').write_text(yaml.safe_dump(card))
    shutil.copytree(photos, tmp_path / 'others')
    code, _, said = run('--source', tmp_path / given.get('source', 'photos'), '--count', 9, '--seed', given.get('seed', 7), model=model)
    assert code == 1
    assert refusal in said
    assert names(tmp_path / 'frames') == before


def test_a_folder_with_other_images_is_refused_and_left_alone(run, photos, tmp_path):
    code, _, said = run('--source', photos, '--count', 5, out='photos')
    assert code == 1
    assert '00.png is not in its manifest.json; expected a new folder' in said
    assert names(photos) == [f'{number:02d}.png' for number in range(12)]


@pytest.mark.parametrize(('spoil', 'refusal'), [
    (lambda folder: (folder / '000001.png').unlink(), '000001.png is missing'),
    (lambda folder: (folder / '000001.png').write_bytes(b'x'), '000001.png is changed'),
    (lambda folder: (folder / 'manifest.json').write_text('{"frames": 3}'), 'manifest.json: not one of capture_calibration'),
    (lambda folder: (folder / 'manifest.json').write_text('{"frames"'), 'manifest.json: ')])
def test_a_damaged_recording_is_refused_by_name(run, photos, tmp_path, capsys, spoil, refusal):
    run('--source', photos, '--count', 5)
    spoil(tmp_path / 'frames')
    assert capture_calibration.main(['--model', str(tmp_path / 'export'), '--out', str(tmp_path / 'frames'), '--source', str(photos)]) == 1
    assert refusal in capsys.readouterr().err


def test_two_captures_into_one_folder_are_refused(run, photos, tmp_path):
    (tmp_path / 'frames').mkdir()
    held = os.open(tmp_path / 'frames', os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert 'another capture is writing there' in run('--source', photos)[2]
    os.close(held)
    assert run('--source', photos, '--count', 2)[0] == 0


@pytest.mark.parametrize(('given', 'refusal'), [
    (['--source', 'nowhere'], 'nowhere: there is no such file or folder'), (['--source', 'empty'], 'empty: no images'),
    (['--source', 'text.mp4'], 'text.mp4: not a readable video'), (['--bag', 'nowhere'], 'nowhere: no rosbag2 here'),
    (['--source', 'photos', '--count', 0], 'count is 0, expected 1 to 100000'),
    (['--source', '/dev/video97'], '/dev/video97: there is no such device'),
    (['--source', 'photos', '--seconds', 5], 'photos: a folder of images has no time')])
def test_bad_input_is_one_clear_line(run, photos, tmp_path, monkeypatch, given, refusal):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.mp4').write_text('text')
    code, _, said = run(*given)
    assert code == 1
    assert re.fullmatch(f'capture_calibration: .*{re.escape(refusal)}.*\n', said), said


def test_a_video_is_recorded_over_its_whole_length(run, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'drive.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 10, (160, 160))
    for number in range(60):
        writer.write(scene(number)[..., ::-1])
    writer.release()
    code, manifest, _ = run('--source', tmp_path / 'drive.avi', '--count', 6)
    assert code == 0
    assert manifest['source'] == {'kind': 'video', 'name': 'drive.avi', 'clock': 'seconds of the video'}
    assert [int(entry['time_s']) for entry in manifest['frames'].values()] == list(range(6))
    number = int(manifest['frames']['000003.png']['time_s'] * 10)
    frame = read_rgb(tmp_path / 'frames' / '000003.png').astype(int)
    assert np.abs(frame - resize(scene(number), SPEC)).mean() < 15, 'colours in their order, but for JPEG'
    code, manifest, _ = run('--source', tmp_path / 'drive.avi', '--count', 12)
    times = [entry['time_s'] for entry in manifest['frames'].values()]
    assert (code, len(set(times))) == (0, 12)
    assert [int(time_s) for time_s in times[6:]] == list(range(6)), 'more frames are spread over all of it too'
    code, manifest, _ = run('--source', tmp_path / 'drive.avi', '--count', 4, '--seconds', 3, '--interval-s', 0.5, out='part')
    times = [entry['time_s'] for entry in manifest['frames'].values()]
    assert max(times) < 3
    assert min(np.diff(times)) >= 0.5


def write_bag(folder, plugin, topic='/image_raw', frames=20, compressed=False, compression=None):
    """A bag of two frames a second from 1000 s on, one of them malformed."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types, kind = store.types, 'sensor_msgs/msg/CompressedImage' if compressed else 'sensor_msgs/msg/Image'
    writer = Writer(folder, version=9, storage_plugin=plugin)
    if compression:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection(topic, kind, typestore=store)
        other = writer.add_connection('/chatter', 'std_msgs/msg/String', typestore=store)
        for number in range(frames):
            stamp = types['builtin_interfaces/msg/Time'](sec=1000 + number // 2, nanosec=number % 2 * 500_000_000)
            header, picture = types['std_msgs/msg/Header'](stamp=stamp, frame_id='lens'), scene(number)
            if compressed:
                data = cv2.imencode('.png', picture[..., ::-1])[1].reshape(-1) if number != 7 else np.frombuffer(b'no picture', np.uint8)
                message = types[kind](header=header, format='png', data=data)
            else:
                data = picture[..., ::-1].reshape(-1) if number != 7 else np.zeros(5, np.uint8)
                message = types[kind](header=header, height=160, width=160, encoding='bgr8', is_bigendian=0, step=480, data=data)
            writer.write(connection, (1000 + number // 2) * 10 ** 9 + number % 2 * 500_000_000, store.serialize_cdr(message, kind))
            text = types['std_msgs/msg/String'](data='hello')
            writer.write(other, (1000 + number // 2) * 10 ** 9 + 1, store.serialize_cdr(text, 'std_msgs/msg/String'))
    return folder


@pytest.mark.parametrize('compressed', [False, True], ids=['raw', 'compressed'])
@pytest.mark.parametrize('plugin', StoragePlugin, ids=['sqlite', 'mcap'])
def test_a_bag_goes_through_the_conversion_of_live_messages(run, tmp_path, plugin, compressed):
    bag = write_bag(tmp_path / 'drive', plugin, '/cam/image', compressed=compressed)
    code, manifest, _ = run('--bag', bag, '--bag-topic', '/cam/image', '--count', 20)
    assert code == 1, 'one of them is malformed'
    assert (manifest['count'], manifest['passed_over']) == (19, {'unreadable': 1})
    assert manifest['source'] == {'kind': 'bag', 'name': 'drive', 'topic': '/cam/image', 'clock': 'unix'}
    assert manifest['time_span'] == {'first_s': 1000.0, 'last_s': 1009.5}
    numbers = {name: round(2 * (entry['time_s'] - 1000)) for name, entry in manifest['frames'].items()}
    assert sorted(numbers.values()) == [*range(7), *range(8, 20)]
    for name, number in numbers.items():
        np.testing.assert_array_equal(read_rgb(tmp_path / 'frames' / name), resize(scene(number), SPEC))


def test_a_compressed_bag_and_one_of_its_files_will_do(run, tmp_path):
    bag = write_bag(tmp_path / 'drive', StoragePlugin.MCAP, compression=CompressionMode.STORAGE)
    code, manifest, _ = run('--bag', next(bag.glob('*.mcap')), '--count', 5)
    assert (code, manifest['source']['name']) == (0, 'drive')


def test_a_topic_that_the_bag_lacks_is_refused_with_those_it_has(run, tmp_path):
    bag = write_bag(tmp_path / 'drive', StoragePlugin.MCAP, '/cam/image')
    assert 'drive: no images on /image_raw, there are some on /cam/image' in run('--bag', bag)[2]
    assert 'no images on /chatter' in run('--bag', bag, '--bag-topic', '/chatter')[2]


def test_a_bag_that_is_cut_off_is_one_clear_line(run, tmp_path):
    for plugin, suffix in ((StoragePlugin.MCAP, 'mcap'), (StoragePlugin.SQLITE3, 'db3')):
        bag = write_bag(tmp_path / suffix, plugin)
        file = next(bag.glob(f'*.{suffix}'))
        file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
        code, _, said = run('--bag', bag, out=f'frames_{suffix}')
        assert code == 1
        assert re.fullmatch(f'(?s)(.* frames, .*\n)*capture_calibration: .*{suffix}: .*\n', said), said


def test_calibrate_takes_the_manifest_into_the_card(run, photos, tmp_path, model):
    from edge_resnet.tools import calibrate

    for number in range(12, 40):
        cv2.imwrite(str(photos / f'{number:02d}.png'), scene(number)[..., ::-1])
    manifest = run('--source', photos, '--count', 30)[1]
    assert calibrate.main(['--model', str(model), '--frames', str(tmp_path / 'frames'), '--out', str(tmp_path / 'int8')]) == 0
    card = yaml.safe_load((tmp_path / 'int8' / 'card.yaml').read_text())['calibration']
    assert card['manifest']['source'] == manifest['source']
    assert card['manifest']['sha256'] == manifest['sha256']
    assert DriftMonitor.of_card({'calibration': card}, 'int8') is not None
    assert card['sharpness'] > 0


def test_json_is_the_manifest(photos, tmp_path, model, capsys):
    given = ['--model', str(model), '--out', str(tmp_path / 'frames'), '--source', str(photos), '--count', '3', '--json']
    assert capture_calibration.main(given) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / 'frames' / 'manifest.json').read_text())


def test_a_terminal_gets_a_bar(run, photos, monkeypatch):
    monkeypatch.setattr('sys.stderr.isatty', lambda: True)
    said = run('--source', photos, '--count', 6)[2]
    assert f'\r[{"#" * 15:30}] 3 of 6 frames, passed over: none' in said
    assert said.endswith('\n')


def test_a_stream_address_is_named_without_its_password(monkeypatch):
    source = capture_calibration.camera_source('rtsp://user:secret@cam.local:554/front?token=1')
    assert source.description['name'] == 'rtsp://cam.local/front'
