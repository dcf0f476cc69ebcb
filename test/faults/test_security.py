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

from edge_resnet.deployment import ENCLAVES

SPEAKER = """
import sys, time
import rclpy
from vision_msgs.msg import Classification, ObjectHypothesis
rclpy.init(args=sys.argv)
node = rclpy.create_node('inference')
publisher = node.create_publisher(Classification, 'classification', 1)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    message = Classification(results=[ObjectHypothesis(class_id='red', score=0.95)])
    message.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(message)
    time.sleep(0.05)
"""


def has_security() -> bool:
    """Whether the Fast DDS of this environment was built with its security plugins."""
    for folder in os.environ.get('LD_LIBRARY_PATH', '').split(os.pathsep):
        for library in (*Path(folder or '/nowhere').glob('libfastrtps.so*'), *Path(folder or '/nowhere').glob('libfastdds.so*')):
            return b'builtin.PKI-DH' in library.read_bytes()
    return False


@pytest.mark.row(30)
def test_a_participant_without_keys(row, processes, tmp_path, root, monkeypatch):
    if not has_security():
        pytest.skip('the Fast DDS here is built without security plugins')
    if shutil.which('ros2') is None or subprocess.run(['ros2', 'security', '--help'], capture_output=True).returncode:
        pytest.skip('sros2 is not installed')
    keys, policy = tmp_path / 'keys', root / 'config' / 'security' / 'policy.xml'
    for command in (['create_keystore', keys], ['generate_artifacts', '-k', keys, '-p', policy]):
        subprocess.run(['ros2', 'security', *map(str, command)], check=True, timeout=120)
    secured = {'ROS_SECURITY_KEYSTORE': str(keys), 'ROS_SECURITY_ENABLE': 'true', 'ROS_SECURITY_STRATEGY': 'Enforce'}
    state = tmp_path / 'actuator.state'

    def was_on(seconds: int, *arguments: str) -> bool:
        """Whether the actuator was on while somebody said for so long that the light is red."""
        on = False
        with subprocess.Popen([sys.executable, '-c', SPEAKER, str(seconds), *arguments]) as speaker:
            while speaker.poll() is None:
                on = on or state.read_text() == '1\n'
                time.sleep(0.01)
        assert speaker.returncode == 0
        return on

    with monkeypatch.context() as context:
        for name, value in secured.items():
            context.setenv(name, value)
        processes.start('actuator_node', '--ros-args', '--enclave', f'{ENCLAVES}/actuator', '-p', f'state_file:={state}')
        wait_until(state.exists, 'the actuator')
        assert was_on(10, '--ros-args', '--enclave', f'{ENCLAVES}/inference'), 'with keys it is heard'
    wait_until(lambda: state.read_text() == '0\n', 'OFF')
    seconds = row.times(20, 5)
    row.trial(not was_on(seconds), count=seconds * 20)
