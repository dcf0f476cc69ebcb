"""Runs the model on the freshest network-sized image and publishes what it sees."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sensor_msgs.msg import Image, Temperature
from std_msgs.msg import Header
from std_srvs.srv import SetBool
from vision_msgs.msg import Classification, LabelInfo, VisionClass

from edge_resnet.conversions import Results, image_array, read_image
from edge_resnet.nodes.aside import Aside
from edge_resnet.nodes.base import LATCHED_QOS, OK, WARN, Health, ManagedNode
from edge_resnet.nodes.frames import UPCOMING_S
from edge_resnet.nodes.inputs import FrameInput
from edge_resnet.nodes.model_parameters import ModelParameters
from edge_resnet.nodes.parameters import param
from edge_resnet.nodes.polled import Polled
from edge_resnet.nodes.runner import run
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.drift import DriftMonitor
from edge_resnet.pipeline.governor import Governor
from edge_resnet.pipeline.interpreter import CHOICES
from edge_resnet.pipeline.latency import INFERENCE_DONE, INFERENCE_STARTED
from edge_resnet.pipeline.postprocessing import top_k

SLOW_S = 0.03  # a model that takes less gains nothing by it: telling its results beside it makes it slower
LOOKS_S = 2.5e-4  # how often it is looked for the next frame when a slow model is about to end


@dataclass(frozen=True)
class InferenceParameters(ModelParameters):
    runtime: str = param('auto', 'TFLite runtime; auto: the first one installed', choices=CHOICES)
    num_threads: int = param(1, 'threads of one inference; 3 on 4 cores: one is left for the rest', low=1, high=64)
    max_results: int = param(5, 'how many classes to publish, best first', low=1, high=1000, live=True)
    score_threshold: float = param(0.0, 'classes below this score are left out', low=0.0, high=1.0, live=True)
    governor: bool = param(False, 'infer less often, just enough that the board stays below governor_limit_c')
    governor_limit_c: float = param(78.0, 'temperature that the governor aims at, degrees Celsius; a Pi 4 throttles at 80', low=30.0, high=100.0)


class InferenceNode(ManagedNode[InferenceParameters]):
    """The model is loaded at configure and released at cleanup. ``make_classifier`` is there for tests to replace."""

    Parameters = InferenceParameters

    def __init__(self, make_classifier: Callable[..., Classifier] = Classifier, **options: Any) -> None:
        super().__init__('inference', **options)
        self._make_classifier = make_classifier
        self._classifier: Classifier | None = None
        self._input: FrameInput | None = None
        self._aside: Aside
        self._working = threading.Lock()  # the model's: the thread of an input that is closed may still be in it
        self._drift: DriftMonitor | None = None
        self._governor: Governor | None = None
        self._temperatures = Polled(self, Temperature, 'cpu_temperature')
        self._enabled = True
        self._output = self.frame_output(Classification, 'classification')
        self._durations: deque[float] = deque(maxlen=9)  # of the latest inferences with all that belongs to them, s
        self._ahead: tuple[Any, Any] = None, None  # the next frame, and what was read of it
        self._takes_s = 0.0  # one of them, 0 while it is unknown
        self._began_s = 0.0  # when the model began with what it is at; 0 when it is at nothing
        self._reading = threading.Lock()  # of frames ahead, which two threads do
        self._free_s = -math.inf  # since when it could have taken a frame
        self._label_info = self.create_publisher(LabelInfo, 'label_info', LATCHED_QOS)
        self.create_service(SetBool, 'inference/enable', self._enable)

    def configure(self) -> None:
        p = self.parameters
        bundle = p.bundle()
        self._drift = DriftMonitor.of_card(bundle.card, bundle.name)
        self._governor = Governor(p.governor_limit_c) if p.governor else None
        self._working = threading.Lock()
        self._classifier = self._make_classifier(bundle, p.runtime, p.num_threads)
        self._classifier.warm_up()
        self.facts = {'model': bundle.name, 'sha256': bundle.sha256, 'runtime': self._classifier.runtime}
        info = LabelInfo(header=Header(stamp=self.get_clock().now().to_msg()), threshold=p.score_threshold)
        info.class_map = [VisionClass(class_id=index, class_name=label) for index, label in enumerate(bundle.labels)]
        self._label_info.publish(info)
        self.get_logger().info(f'{bundle.name}: {len(bundle.labels)} classes, {self._classifier.input_dtype} input, {self._classifier.runtime}, '
                               f'{p.num_threads} thread{"s" * (p.num_threads > 1)}')

    def activate(self) -> None:
        if self._drift is not None:
            self._drift.reset()
        self._aside = Aside(self.guarded, 'results')
        self._input = FrameInput(self, Image, 'image_preprocessed', self._on_image, asks=True, shares=True, copies=True,
                                 on_upcoming=self._on_upcoming)
        self._input.asking = self._enabled
        self._input.start_thread()

    def deactivate(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None
            self._aside.close()
            self._ahead = None, None

    def cleanup(self) -> None:
        self._classifier = self._drift = None

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        if self._input is not None:
            self._input.keep_asking(self._enabled)
        response.success, response.message = True, 'enabled' if self._enabled else 'disabled'
        return response

    def _on_upcoming(self) -> None:
        """A frame comes in ``UPCOMING_S``, its result ``_takes_s`` later, announced as long ahead; a slow model is still at the one before."""
        if 2 * UPCOMING_S < self._takes_s <= SLOW_S:
            self._aside.call_at(time.monotonic() + self._takes_s, self._output.announce)

    def _accompany(self, began_s: float, ask: Callable[[], None] | None) -> None:
        """Beside a slow model that began then: ask for the next frame now, so that it is there when this one is done, and see to its end."""
        if ask is not None:
            ask()
        ends_s = began_s + self._takes_s
        self._aside.call_at(ends_s - UPCOMING_S, partial(self._on_ending, began_s, ends_s + UPCOMING_S if ask is not None else 0.0))

    def _on_ending(self, began_s: float, until_s: float) -> None:
        """The slow model that began then ends in ``UPCOMING_S``: its result is announced, and the frame that it goes straight on with is read, when
        it comes by ``until_s``."""
        self._output.announce()
        self._fetch(began_s, until_s)

    def _fetch(self, began_s: float, until_s: float) -> None:
        if (input_ := self._input) is None or self._began_s != began_s:
            return  # the model has ended
        if (data := input_.fetch()) is not None:
            self._read_ahead(data)
        elif (now_s := time.monotonic()) < until_s and self._began_s == began_s:  # else another call is timed
            self._aside.call_at(now_s + LOOKS_S, partial(self._fetch, began_s, until_s))

    def _read_ahead(self, data: Any) -> None:
        """Have the frame ready for the model."""
        with self._reading:
            if (classifier := self._classifier) is not None and self._ahead[0] is not data:
                with contextlib.suppress(Exception):  # it is told when the frame is used
                    self._ahead = data, self._read(classifier, data)

    @staticmethod
    def _read(classifier: Classifier, data: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """An image, its RGB pixels and the model's input."""
        image = read_image(data)
        pixels, order = image_array(image)
        pixels = pixels if order == 'rgb' else pixels[..., ::-1]
        return image, pixels, classifier.network_input(pixels)

    def _on_image(self, data: Any) -> None:
        """A slow model goes straight on with a frame that has come meanwhile, and its result is told while it does."""
        input_ = self._input
        with self._working:
            while data is not None and input_ is not None and input_ is self._input:
                data = self._work(data, input_)

    def _work(self, data: Any, input_: FrameInput) -> Any:
        """The next frame, if a slow model goes straight on with it."""
        classifier = self._classifier
        if classifier is None or not self._may_infer():
            return None
        began_s = self._began_s = time.monotonic()
        takes_s = self._takes_s / (self._governor.share if self._governor is not None else 1.0)
        early = began_s - self._free_s < takes_s  # else the camera is slower, and asking can wait for what somebody waits for
        ask = partial(self._ask, began_s + takes_s)
        slow = self._takes_s > SLOW_S
        if slow:
            self._read_ahead(data)  # before anything is done beside it: both would hold each other up, and the model with them
            self._aside.call(partial(self._accompany, began_s, ask if early else None))
        elif early:
            self._aside.call(ask, here=True)  # now, so that the next frame is there when this one is done
        tell = self._infer(classifier, data, began_s)
        self._began_s = 0.0
        if input_ is not self._input:  # deactivated meanwhile
            return None
        if (data := input_.take() if slow else None) is not None:
            self._read_ahead(data)
        self._aside.call(tell, here=data is None)
        if not early:
            self._aside.call(ask, here=data is None)
        self._free_s = time.monotonic()
        return data

    def _may_infer(self) -> bool:
        if not self._enabled:
            return False
        if self._governor is None or self._governor.allows():
            return True
        if self._input is not None:
            self._input.ask(self._governor.rest_s())
        return False

    def _ask(self, free_s: float) -> None:
        """For a frame that is there at ``free_s``."""
        if self._input is not None:
            self._input.ask(free_s - time.monotonic())

    def _infer(self, classifier: Classifier, data: Any, began_s: float) -> Callable[[], None]:
        """The result of an image, as what tells it, which does all that a slow model's next image need not wait for."""
        started_s = time.monotonic()
        ahead, read = self._ahead
        image, pixels, tensor = read if ahead is data else self._read(classifier, data)
        scores = classifier.classify(tensor)
        done_s = time.monotonic()
        if self._governor is not None:
            for temperature, _ in self._temperatures.take():
                self._governor.see(temperature.temperature)
            self._governor.worked(done_s - started_s)

        def tell() -> None:
            p = self.parameters
            self._output.publish(Results(image.header, top_k(scores, classifier.bundle.labels, p.max_results, p.score_threshold)))
            now_ns, now_s = self.now_ns(), time.monotonic()
            # not below 0, which it is with use_sim_time and no /clock
            started_ns, done_ns = (max(0, now_ns - round(1e9 * (now_s - then_s))) for then_s in (started_s, done_s))
            self.counts['published'] += 1
            self.counts['busy_ns'] += done_ns - started_ns
            self.stage(INFERENCE_STARTED, image.header, started_ns)
            self.stage(INFERENCE_DONE, image.header, done_ns)
            if self._drift is not None and self._drift.due(now_s):  # after all that somebody waits for
                self._drift.see(pixels, now_s)
            free_s = done_s if self._takes_s > SLOW_S else time.monotonic()  # a slow model does not wait for this
            self._durations.append(free_s - began_s)
            self._takes_s = sorted(self._durations)[len(self._durations) // 4]  # rather a frame that waits a little than a model that does

        return tell

    def diagnose(self, health: Health) -> None:
        if not self._enabled:
            health.report(OK, 'disabled by inference/enable')
        if self._input is not None:
            self._input.diagnose(health)
        rate, busy = self.rate('published'), self.rate('busy_ns') / 1e9
        health.values.update({'Output rate (Hz)': rate, 'Inference time (ms)': busy / rate * 1000 if rate else 'none',
                              'Inference duty (%)': 100 * busy, 'Enabled': int(self._enabled)})
        if self._governor is not None:
            if self._governor.share < 1:
                health.report(WARN, f'the governor holds inference back to {100 * self._governor.share:.0f} % of its time')
            health.values.update({'Governor share (%)': 100 * self._governor.share, 'Held back by the governor': self._governor.held_back})
        if self._classifier is not None:
            health.values.update({'Model': self._classifier.bundle.name, 'Runtime': self._classifier.runtime})
            self._diagnose_drift(health)

    def _diagnose_drift(self, health: Health) -> None:
        drift = self._drift.drift if self._drift is not None else None
        known = vars(drift) if drift is not None else {}
        for key, name in (('Calibration drift (levels)', 'levels'), ('Calibration colour drift (%)', 'cast_percent'),
                          ('Sharpness of calibration (%)', 'sharpness_percent')):
            value = known.get(name)
            health.values[key] = 'unknown' if value is None else value
        if self._drift is None:
            health.report(OK, 'calibration drift unknown: the model card has no histograms')
        elif drift is not None and self._drift.sustained:
            topic, model = self.resolve_topic_name('image_raw'), self.parameters.model
            health.report(WARN, f'the camera no longer looks like the calibration frames: {", ".join(drift.exceeded())}; record new ones with '
                                f'"ros2 run edge_resnet capture_calibration --model {model} --topic {topic} --out frames", '
                                'then "ros2 run edge_resnet calibrate"')


def main(argv: Sequence[str] | None = None) -> int:
    return run([InferenceNode], argv)


if __name__ == '__main__':
    raise SystemExit(main())
