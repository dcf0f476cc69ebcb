"""What one hop between two processes costs with nothing of ours in it: CDR bytes published, awaited in a wait set of one, taken.

    python benchmarks/hop.py        # 30 a second
    python benchmarks/hop.py 500    # without a pause in which the processor turns to something else
    python benchmarks/hop.py 30 2   # announced 2 ms ahead by 12 bytes on another topic

Times are from before the bytes are put together to after they are taken, for each size of image; with the transport profile and
the QoS of the nodes. After each, both processes turn to other memory for a while, as a model does. Whoever
compares these with ``make bench``: a frame of separate processes makes three hops.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict

import numpy as np
import rclpy
from builtin_interfaces.msg import Duration
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from sensor_msgs.msg import Image

from edge_resnet.conversions import Header, Stamp, read_image, stamp_ns, write_duration, write_image
from edge_resnet.deployment import transport_environment
from edge_resnet.nodes.executor import take_message
from edge_resnet.nodes.frames import BEST_EFFORT_QOS, FRAME_QOS
from edge_resnet.pipeline.latency import percentile

SIZES = ((4, 16), (224, 224), (480, 640), (720, 1280))
EACH = 200
PAUSED = 60.0  # a second or fewer leave a pause, for something else
ELSEWHERE = 25_000_000  # bytes, as many as ResNet50's weights


def publish(framerate: float, ahead_s: float) -> None:
    node, other = rclpy.create_node('hop_from'), np.zeros(ELSEWHERE, np.uint8)
    publisher, announcements = node.create_publisher(Image, 'hop', FRAME_QOS), node.create_publisher(Duration, 'upcoming', BEST_EFFORT_QOS)
    while not (publisher.get_subscription_count() and announcements.get_subscription_count()):
        time.sleep(0.1)
    time.sleep(0.5)
    for height, width in SIZES:
        image = np.zeros((height, width, 3), np.uint8)
        for _ in range(EACH):
            publisher.publish(write_image(Header(Stamp.from_ns(time.time_ns()), 'hop'), image, 'rgb8'))
            began = time.monotonic()
            if framerate <= PAUSED:
                other.sum()
            time.sleep(max(0.0, began + 1 / framerate - ahead_s - time.monotonic()))
            if ahead_s:
                announcements.publish(write_duration(ahead_s))
                time.sleep(ahead_s)


def main() -> int:
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    os.environ.update(transport_environment(os.environ))
    bytes(8 << 20)  # freed at once; from then on malloc keeps memory for images, as it does in the nodes
    rclpy.init(args=[])
    framerate, ahead_ms = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    if sys.argv[3:] == ['publish']:
        publish(framerate, ahead_ms / 1000)
        return 0
    node = rclpy.create_node('hop_to')
    subscription = node.create_subscription(Image, 'hop', lambda _: None, FRAME_QOS, raw=True)
    announcements = node.create_subscription(Duration, 'upcoming', lambda _: None, BEST_EFFORT_QOS, raw=True)
    wait_set, times = _rclpy.WaitSet(2, 0, 0, 0, 0, 0, node.context.handle), defaultdict(list)
    other = np.zeros(ELSEWHERE, np.uint8)
    with subprocess.Popen([sys.executable, __file__, str(framerate), str(ahead_ms), 'publish']) as child:
        while child.poll() is None:
            wait_set.clear_entities()
            wait_set.add_subscription(subscription.handle)
            wait_set.add_subscription(announcements.handle)
            wait_set.wait(500_000_000)
            taken = take_message(subscription)
            take_message(announcements)
            if taken is not None:
                image = read_image(taken[0])
                times[image.width, image.height].append((time.time_ns() - stamp_ns(image.header)) / 1e6)
                if framerate <= PAUSED:
                    other.sum()
    for (width, height), found in times.items():
        print(f'{width}x{height}: {len(found)} of {EACH}, p50 {percentile(found, 50):.2f} ms, p99 {percentile(found, 99):.2f} ms')
    return child.returncode


if __name__ == '__main__':
    raise SystemExit(main())
