"""Who may take part, where the middleware can tell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import wait_until
from sensor_msgs.msg import Image
from tiny_model import write_bundle

from edge_resnet.deployment import ENCLAVES
from edge_resnet.nodes.base import FRAME_QOS

INTRUDER = """
import sys, time
import rclpy
from sensor_msgs.msg import Image
from bench import image_bytes
rclpy.init()
node = rclpy.create_node('intruder')
publisher = node.create_publisher(Image, 'image_raw', 1)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    publisher.publish(image_bytes(time.time_ns()))
    time.sleep(0.05)
"""


def has_security() -> bool:
    """Whether the Fast DDS of this environment was built with its security plugins."""
    for folder in os.environ.get('LD_LIBRARY_PATH', '').split(os.pathsep):
        for library in (*Path(folder or '/nowhere').glob('libfastrtps.so*'), *Path(folder or '/nowhere').glob('libfastdds.so*')):
            return b'builtin.PKI-DH' in library.read_bytes()
    return False


@pytest.mark.row(30)
def test_a_participant_without_keys(row, processes, bench, tmp_path, root, monkeypatch):
    if not has_security():
        pytest.skip('the Fast DDS here is built without security plugins')
    if shutil.which('ros2') is None or subprocess.run(['ros2', 'security', '--help'], capture_output=True).returncode:
        pytest.skip('sros2 is not installed')
    keys, policy = tmp_path / 'keys', root / 'config' / 'security' / 'policy.xml'
    for command in (['create_keystore', keys], ['generate_artifacts', '-k', keys, '-p', policy]):
        subprocess.run(['ros2', 'security', *map(str, command)], check=True, timeout=120)
    secured = {'ROS_SECURITY_KEYSTORE': str(keys), 'ROS_SECURITY_ENABLE': 'true', 'ROS_SECURITY_STRATEGY': 'Enforce'}
    heard = bench.listen(Image, 'image_preprocessed', FRAME_QOS)  # without keys, like the intruder
    with monkeypatch.context() as context:
        for name, value in secured.items():
            context.setenv(name, value)
        processes.start('preprocess_node', '--ros-args', '--enclave', f'{ENCLAVES}/preprocess', '-p', f'model:={write_bundle(tmp_path / "tiny")}')
    wait_until(lambda: 'configured' in processes.output('preprocess_node') or time.sleep(3.0) or True, 'preprocess')
    seconds = row.times(20, 5)
    subprocess.run([sys.executable, '-c', INTRUDER, str(seconds)], env={**os.environ, 'PYTHONPATH': str(root / 'test')}, check=True, timeout=60)
    row.trial(not heard, count=seconds * 20)
    assert not heard
