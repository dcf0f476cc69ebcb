"""What one hop between two processes costs with nothing of ours in it: CDR bytes published, awaited in a wait set of one, taken.

    python benchmarks/hop.py              # 30 a second
    python benchmarks/hop.py 500          # without a pause in which the processor turns to something else
    python benchmarks/hop.py 30 2         # announced 2 ms ahead by 12 bytes on another topic
    python benchmarks/hop.py 30 2 shared  # written into shared memory, and only the place published

Times are from before the bytes are put together to after they have been read once, for each size of image; with the transport profile
and the QoS of the nodes. After each, both processes turn to other memory for a while, as a model does. Whoever
compares these with ``make bench``: a frame of separate processes makes three hops.
"""

from __future__ import annotations

import argparse
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

from edge_resnet.conversions import Header, Stamp, read_image, read_numbers, stamp_ns, view_of, write_duration, write_image, write_numbers
from edge_resnet.deployment import transport_environment
from edge_resnet.nodes.executor import take_message
from edge_resnet.nodes.frames import BEST_EFFORT_QOS, FRAME_QOS
from edge_resnet.nodes.shared_images import MappedImages, SharedImages
from edge_resnet.pipeline.latency import percentile

SIZES = ((4, 16), (224, 224), (480, 640), (720, 1280))
EACH = 200
PAUSED = 60.0  # a second or fewer leave a pause, for something else
ELSEWHERE = 25_000_000  # bytes, as many as ResNet50's weights


def publish(framerate: float, ahead_s: float, shared: bool) -> None:
    node, other = rclpy.create_node('hop_from'), np.zeros(ELSEWHERE, np.uint8)
    publisher, announcements = node.create_publisher(Image, 'hop', FRAME_QOS), node.create_publisher(Duration, 'upcoming', BEST_EFFORT_QOS)
    offers: list[tuple[int, int, int]] = []
    images = SharedImages(publisher, lambda *offer: offers.append(offer))
    while not (publisher.get_subscription_count() and announcements.get_subscription_count()):
        time.sleep(0.1)
    time.sleep(0.5)
    for height, width in SIZES:
        image = np.zeros((height, width, 3), np.uint8)
        for number in range(EACH):
            header = Header(Stamp.from_ns(time.time_ns()), 'hop')
            if shared:
                images.write(view_of(header, image, 'rgb8'), number)
                publisher.publish(write_numbers(*offers[-1], *images.place))
            else:
                publisher.publish(write_image(header, image, 'rgb8'))
            began = time.monotonic()
            if framerate <= PAUSED:
                other.sum()
            time.sleep(max(0.0, began + 1 / framerate - ahead_s - time.monotonic()))
            if ahead_s:
                announcements.publish(write_duration(ahead_s))
                time.sleep(ahead_s)
    time.sleep(0.5)  # the memory goes with this process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('framerate', nargs='?', type=float, default=30.0, help='Hz')
    parser.add_argument('ahead_ms', nargs='?', type=float, default=0.0, help='how long before each image it is announced; 0: not at all')
    parser.add_argument('shared', nargs='?', choices=['', 'shared'], default='', help='through shared memory')
    parser.add_argument('--publish', action='store_true', help=argparse.SUPPRESS)  # the other process
    args = parser.parse_args()
    if not (args.framerate > 0 and 0 <= args.ahead_ms < 1000 / args.framerate):
        parser.error(f'framerate is {args.framerate:g}, ahead_ms {args.ahead_ms:g}: expected above 0, and 0 to less than a period')
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    os.environ.update(transport_environment(os.environ))
    bytes(8 << 20)  # freed at once; from then on malloc keeps memory for images, as it does in the nodes
    rclpy.init(args=[])
    if args.publish:
        publish(args.framerate, args.ahead_ms / 1000, bool(args.shared))
        return 0
    node = rclpy.create_node('hop_to')
    subscription = node.create_subscription(Image, 'hop', lambda _: None, FRAME_QOS, raw=True)
    announcements = node.create_subscription(Duration, 'upcoming', lambda _: None, BEST_EFFORT_QOS, raw=True)
    wait_set, times = _rclpy.WaitSet(2, 0, 0, 0, 0, 0, node.context.handle), defaultdict(list)
    other, memories = np.zeros(ELSEWHERE, np.uint8), {}
    with subprocess.Popen([sys.executable, __file__, *sys.argv[1:], '--publish']) as child:
        while child.poll() is None:
            wait_set.clear_entities()
            wait_set.add_subscription(subscription.handle)
            wait_set.add_subscription(announcements.handle)
            wait_set.wait(500_000_000)
            taken = take_message(subscription)
            take_message(announcements)
            if taken is not None:
                data = taken[0]
                if args.shared:
                    *offer, identity, number, at, length = read_numbers(data, 7)
                    memory = memories.get(identity) or memories.setdefault(identity, MappedImages(*offer))
                    data = memory.image(number, at, length).bytes
                image = read_image(data)
                int(np.frombuffer(image.data, np.uint8).max())
                times[image.width, image.height].append((time.time_ns() - stamp_ns(image.header)) / 1e6)
                if args.framerate <= PAUSED:
                    other.sum()
    for (width, height), found in times.items():
        print(f'{width}x{height}: {len(found)} of {EACH}, p50 {percentile(found, 50):.2f} ms, p99 {percentile(found, 99):.2f} ms')
    return child.returncode


if __name__ == '__main__':
    raise SystemExit(main())
