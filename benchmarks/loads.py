"""What benchmarks/pipeline.py compares the nodes with, on the same frames, model and threads; each of them is a process.

    python benchmarks/loads.py floor ...      # one process, a straight line: capture, preprocess, invoke, decide, command
    python benchmarks/loads.py tutorial ...   # one node of a plain tutorial: queues of 10, cv_bridge, msg.data as it comes
    python benchmarks/loads.py nodes ...      # our own nodes, with a classifier that takes a given time

The first two keep (capture stamp, inference start, inference end, command) of every frame and write them as JSON when they are told to end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_resnet.hardware.actuators import SimulatedActuator
from edge_resnet.hardware.cameras import CameraConfig, open_camera
from edge_resnet.pipeline.bundle import find_shared, load_bundle
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.decision import DecisionConfig, DecisionGate
from edge_resnet.pipeline.postprocessing import top_k
from edge_resnet.pipeline.preprocessing import resize
from edge_resnet.stopping import StopRequest

TARGET = 'red'
OVERSLEPT_S = 2e-4  # by a sleep, about; a model that takes six camera periods takes no more


class SlowClassifier(Classifier):
    """Takes ``duration_s`` in all: sleeping, as if the model ran on an accelerator (no processor time, so that all there is belongs to the
    pipeline), or ``busy``, by running the model as often as it takes."""

    def __init__(self, duration_s: float, busy: bool, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._duration_s, self._busy = duration_s, busy
        self._answer = np.zeros(len(self.bundle.labels), np.float32)

    def warm_up(self, runs: int = 2) -> None:
        self._answer = self._once(np.full((self.bundle.preprocessing.height, self.bundle.preprocessing.width, 3), 128, np.uint8))

    def _once(self, image: np.ndarray) -> np.ndarray:
        return super().classify(super().network_input(image))

    def network_input(self, image: np.ndarray) -> np.ndarray:
        return image  # making it is part of ``duration_s``

    def classify(self, image: np.ndarray) -> np.ndarray:
        end = time.perf_counter() + self._duration_s
        if self._busy:
            last = 0.0
            while time.perf_counter() + last < end:
                last = -time.perf_counter()
                self._answer = self._once(image)
                last += time.perf_counter()
        time.sleep(max(0.0, end - time.perf_counter() - OVERSLEPT_S))
        while time.perf_counter() < end:
            pass
        return self._answer


def classifier(args: argparse.Namespace) -> Callable[..., Classifier]:
    if not args.inference_s:
        return Classifier
    return lambda *arguments: SlowClassifier(args.inference_s, args.busy, *arguments)


def camera(args: argparse.Namespace) -> Any:
    return open_camera(CameraConfig(str(find_shared('samples')), args.width, args.height, args.framerate))


def ready(args: argparse.Namespace) -> None:
    """Tell that a frame came all the way."""
    Path(args.state).with_name('ready').touch()


def floor(args: argparse.Namespace, stop: StopRequest) -> list[tuple[int, ...]]:
    bundle = load_bundle(args.model)
    model = classifier(args)(bundle, 'auto', args.threads)
    model.warm_up()
    gate, actuator, source = DecisionGate(DecisionConfig(target_class=TARGET), time.monotonic), SimulatedActuator(Path(args.state)), camera(args)
    times, due = [], time.monotonic()
    while not stop.is_set():
        image = source.read().image
        stamp_ns = time.time_ns()
        small = cv2.cvtColor(resize(image, bundle.preprocessing), cv2.COLOR_BGR2RGB)
        started_ns = time.time_ns()
        scores = model.classify(small)
        done_ns = time.time_ns()
        actuator.write(gate.observe(top_k(scores, bundle.labels, 5), (time.time_ns() - stamp_ns) / 1e9).on)
        times.append((stamp_ns, started_ns, done_ns, time.time_ns()))
        ready(args)
        if args.framerate < args.saturating:
            due = max(due + 1 / args.framerate, time.monotonic() - 1 / args.framerate)
            time.sleep(max(0.0, due - time.monotonic()))
    actuator.close()
    return times


def tutorial(args: argparse.Namespace, stop: StopRequest) -> list[tuple[int, ...]]:
    """As the tutorials on camera, cv_bridge and image classification have it."""
    import rclpy
    from ai_edge_litert.interpreter import Interpreter
    from cv_bridge import CvBridge
    from rclpy.node import Node
    from sensor_msgs.msg import Image
    from vision_msgs.msg import Classification, ObjectHypothesis

    class CameraNode(Node):
        def __init__(self):
            super().__init__('tutorial_camera')
            self.publisher = self.create_publisher(Image, 'tutorial/image_raw', 10)
            self.bridge, self.source = CvBridge(), camera(args)
            self.create_timer(1 / args.framerate, self.on_timer)

        def on_timer(self):
            frame = self.source.read().image
            message = self.bridge.cv2_to_imgmsg(frame, 'bgr8')
            message.header.stamp = self.get_clock().now().to_msg()
            self.publisher.publish(message)

    class PreprocessNode(Node):
        def __init__(self):
            super().__init__('tutorial_preprocess')
            self.size, self.bridge = load_bundle(args.model).preprocessing, CvBridge()
            self.publisher = self.create_publisher(Image, 'tutorial/image_preprocessed', 10)
            self.create_subscription(Image, 'tutorial/image_raw', self.on_image, 10)

        def on_image(self, message):
            image = resize(self.bridge.imgmsg_to_cv2(message, 'bgr8'), self.size)
            small = self.bridge.cv2_to_imgmsg(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), 'rgb8')
            small.header = message.header
            self.publisher.publish(small)

    class InferenceNode(Node):
        def __init__(self):
            super().__init__('tutorial_inference')
            bundle, self.bridge = load_bundle(args.model), CvBridge()
            self.spec, self.labels = bundle.preprocessing, bundle.labels
            self.interpreter = Interpreter(str(bundle.model_path), num_threads=args.threads)
            self.interpreter.allocate_tensors()
            self.source, self.result = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]
            self.publisher = self.create_publisher(Classification, 'tutorial/classification', 10)
            self.create_subscription(Image, 'tutorial/image_preprocessed', self.on_image, 10)

        def on_image(self, message):
            stamp = message.header.stamp
            began_ns = time.time_ns()
            pixels = np.array(self.bridge.imgmsg_to_cv2(message, 'rgb8'), np.float32)
            scale, zero_point = self.source['quantization']
            real = (pixels - np.array(self.spec.mean, np.float32)) / np.array(self.spec.std, np.float32)
            tensor = np.clip(np.round(real / scale + zero_point), -128, 127).astype(np.int8)
            if args.inference_s:
                time.sleep(args.inference_s)
            else:
                self.interpreter.set_tensor(self.source['index'], tensor[None])
                self.interpreter.invoke()
            output = self.interpreter.get_tensor(self.result['index'])[0].astype(np.float32)
            scale, zero_point = self.result['quantization']
            scores = (output - zero_point) * scale
            times.append((stamp.sec * 1_000_000_000 + stamp.nanosec, began_ns, time.time_ns()))
            answer = Classification(header=message.header)
            for index in np.argsort(-scores)[:5]:
                answer.results.append(ObjectHypothesis(class_id=self.labels[index], score=float(np.clip(scores[index], 0, 1))))
            self.publisher.publish(answer)

    class ActuatorNode(Node):
        def __init__(self):
            super().__init__('tutorial_actuator')
            self.actuator = SimulatedActuator(Path(args.state))
            self.create_subscription(Classification, 'tutorial/classification', self.on_classification, 10)

        def on_classification(self, message):
            self.actuator.write(message.results[0].class_id == TARGET and message.results[0].score > 0.7)
            stamp = message.header.stamp
            times.append((stamp.sec * 1_000_000_000 + stamp.nanosec, time.time_ns()))
            ready(args)

    times: list[tuple[int, ...]] = []
    rclpy.init(args=['--ros-args', '--log-level', 'warn'], signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = {'camera': CameraNode, 'preprocess': PreprocessNode, 'inference': InferenceNode, 'actuator': ActuatorNode}[args.node]()
    executor = rclpy.executors.SingleThreadedExecutor()
    executor.add_node(node)
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.2)
    rclpy.try_shutdown()
    return times


def nodes(args: argparse.Namespace, ros: Sequence[str]) -> int:
    from edge_resnet.nodes.inference_node import InferenceNode
    from edge_resnet.nodes.pipeline import factory
    from edge_resnet.nodes.runner import run

    def slow(**options: Any) -> InferenceNode:
        return InferenceNode(classifier(args), **options)

    return run([slow if name == 'inference' else factory(name) for name in args.node.split(',')], [sys.argv[0], *ros])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('load', choices=('floor', 'tutorial', 'nodes'))
    parser.add_argument('--node', default='', help='of the tutorial or, with commas between them, of the nodes')
    parser.add_argument('--model', default='resnet50_traffic_lights')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--inference-s', type=float, default=0.0, help='0: as long as the model takes')
    parser.add_argument('--busy', action='store_true', help='fill --inference-s with running the model, not with sleep')
    parser.add_argument('--width', type=int, default=640)
    parser.add_argument('--height', type=int, default=480)
    parser.add_argument('--framerate', type=float, default=30.0)
    parser.add_argument('--saturating', type=float, default=1e9, help='from this frame rate on the floor takes the next frame at once')
    parser.add_argument('--state', default='', help='file of the simulated actuator')
    parser.add_argument('--out', type=Path, help='where the times go')
    ours, ros = (argv[:argv.index('--ros-args')], argv[argv.index('--ros-args'):]) if '--ros-args' in argv else (argv, [])
    args = parser.parse_args(ours)
    if args.load == 'nodes':
        return nodes(args, ros)
    stop = StopRequest().on_signals()
    times = (floor if args.load == 'floor' else tutorial)(args, stop)
    args.out.write_text(json.dumps(times))
    return 0


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
