"""What one hop between two processes costs with nothing of ours in it: CDR bytes published, awaited in a wait set of one, taken.

    python benchmarks/hop.py        # 30 a second
    python benchmarks/hop.py 500    # without a pause in which the processor turns to something else

Times are from before the bytes are put together to after they are taken, for each size of image; with the transport profile and
the QoS of the nodes. Whoever compares these with ``make bench``: a frame of separate processes makes three hops.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict

import numpy as np
import rclpy
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from sensor_msgs.msg import Image

from edge_resnet.conversions import Header, Stamp, read_image, stamp_ns, write_image
from edge_resnet.deployment import transport_environment
from edge_resnet.nodes.frames import FRAME_QOS
from edge_resnet.pipeline.latency import percentile

SIZES = ((4, 16), (224, 224), (480, 640), (720, 1280))
EACH = 200


def publish(framerate: float) -> None:
    publisher = rclpy.create_node('hop_from').create_publisher(Image, 'hop', FRAME_QOS)
    while not publisher.get_subscription_count():
        time.sleep(0.1)
    time.sleep(0.5)
    for height, width in SIZES:
        image = np.zeros((height, width, 3), np.uint8)
        for _ in range(EACH):
            publisher.publish(write_image(Header(Stamp.from_ns(time.time_ns()), 'hop'), image, 'rgb8'))
            time.sleep(1 / framerate)


def main() -> int:
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    os.environ.update(transport_environment(os.environ))
    bytes(8 << 20)  # freed at once; from then on malloc keeps memory for images, as it does in the nodes
    rclpy.init(args=[])
    framerate = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    if sys.argv[2:] == ['publish']:
        publish(framerate)
        return 0
    node = rclpy.create_node('hop_to')
    subscription = node.create_subscription(Image, 'hop', lambda _: None, FRAME_QOS, raw=True)
    wait_set, times = _rclpy.WaitSet(1, 0, 0, 0, 0, 0, node.context.handle), defaultdict(list)
    with subprocess.Popen([sys.executable, __file__, str(framerate), 'publish']) as child:
        while child.poll() is None:
            wait_set.clear_entities()
            wait_set.add_subscription(subscription.handle)
            wait_set.wait(500_000_000)
            with subscription.handle:
                taken = subscription.handle.take_message(Image, True)
            if taken is not None:
                image = read_image(taken[0])
                times[image.width, image.height].append((time.time_ns() - stamp_ns(image.header)) / 1e6)
    for (width, height), found in times.items():
        print(f'{width}x{height}: {len(found)} of {EACH}, p50 {percentile(found, 50):.2f} ms, p99 {percentile(found, 99):.2f} ms')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
