"""Draws what the model saw in a frame, and how long that took, on the camera's image of that same frame, for rviz and rqt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sensor_msgs.msg import Image
from vision_msgs.msg import Classification

from edge_resnet.conversions import Results, read_results, stamp_ns, write_image
from edge_resnet.nodes.base import Health, ManagedNode, frame_publisher
from edge_resnet.nodes.camera_input import TRANSPORTS, Decode, camera_input
from edge_resnet.nodes.inputs import FrameInput
from edge_resnet.nodes.parameters import param
from edge_resnet.nodes.polled import StageTimes
from edge_resnet.nodes.runner import run
from edge_resnet.pipeline.latency import INFERENCE_DONE

WATCH_PERIOD_S = 0.5  # how soon a new subscriber is noticed
DRAW_PERIOD_S = 0.03
KEPT_FRAMES = 48  # that wait for their result; 44 MB of VGA images


@dataclass(frozen=True)
class OverlayParameters:
    autostart: bool = param(True, 'configure and activate without a lifecycle manager')
    image_transport: str = param('raw', 'take image_raw or image_raw/compressed', choices=TRANSPORTS)


@dataclass
class Pending:
    """What is known of one frame so far."""

    header: Any = None
    decode: Decode | None = None
    text: str = ''
    latency_ms: float | None = None


class OverlayNode(ManagedNode[OverlayParameters]):
    """Subscribes to nothing while nobody subscribes to ``overlay``."""

    Parameters = OverlayParameters

    def __init__(self, **options: Any) -> None:
        super().__init__('overlay', **options)
        self._pending: OrderedDict[int, Pending] = OrderedDict()
        self._images: FrameInput | None = None
        self._results: FrameInput | None = None
        self._stages: StageTimes | None = None
        self._watch_timer: Any = None
        self._draw_timer: Any = None
        self._output = frame_publisher(self, Image, 'overlay')

    def activate(self) -> None:
        self._watch_timer = self.create_timer(WATCH_PERIOD_S, self._watch, clock=self._steady)

    def deactivate(self) -> None:
        if self._watch_timer is not None:
            self.destroy_timer(self._watch_timer)
            self._watch_timer = None
        self._stop()

    def _watch(self) -> None:
        watched = self._output.get_subscription_count() > 0
        if watched and self._images is None:
            self._images = camera_input(self, self.parameters.image_transport, self._on_image)
            self._results = FrameInput(self, Classification, 'classification', self._on_result)
            self._stages = StageTimes(self)
            self._draw_timer = self.create_timer(DRAW_PERIOD_S, self._draw, clock=self._steady)
        elif not watched:
            self._stop()

    def _stop(self) -> None:
        if self._draw_timer is not None:
            self.destroy_timer(self._draw_timer)
        for source in (self._images, self._results, self._stages):
            if source is not None:
                source.close()
        self._images = self._results = self._stages = self._draw_timer = None
        self._pending.clear()

    def _of(self, frame_ns: int) -> Pending:
        pending = self._pending.setdefault(frame_ns, Pending())
        while len(self._pending) > KEPT_FRAMES:
            self._pending.popitem(last=False)
        return pending

    def _on_image(self, header: Any, decode: Decode) -> None:
        pending = self._of(stamp_ns(header))
        pending.header, pending.decode = header, decode

    def _on_result(self, data: bytes | Results) -> None:
        header, scores = read_results(data)
        self._of(stamp_ns(header)).text = f'{scores[0].label} {scores[0].score:.2f}' if scores else 'nothing'

    def _draw(self) -> None:
        """Publish the newest frame of which image, result and latency are there; those before it have had their chance."""
        for source, frame_ns, time_ns, _ in self._stages.records() if self._stages is not None else ():
            if source == INFERENCE_DONE:
                self._of(frame_ns).latency_ms = (time_ns - frame_ns) / 1e6
        complete = [frame_ns for frame_ns, found in self._pending.items() if found.decode and found.text and found.latency_ms is not None]
        if not complete:
            return
        found = self._pending[max(complete)]
        for frame_ns in [frame_ns for frame_ns in self._pending if frame_ns <= max(complete)]:
            del self._pending[frame_ns]
        assert found.decode is not None
        image, order = found.decode()
        self._output.publish(write_image(found.header, drawn(image, f'{found.text}  {found.latency_ms:.1f} ms'), f'{order}8'))
        self.counts['published'] += 1

    def diagnose(self, health: Health) -> None:
        if self._images is not None:
            self._images.diagnose(health)
        health.values['Output rate (Hz)'] = self.rate('published')


def drawn(image: np.ndarray, text: str) -> np.ndarray:
    """A copy of ``image``, (H, W, 3) uint8, with ``text`` in white on a darkened strip at its lower edge, as large as fits."""
    import cv2  # only while somebody watches

    image = image.copy()
    height, width = image.shape[:2]
    text = text.encode('ascii', 'replace').decode()  # OpenCV's font has no more
    (wide, high), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 1.0, 1)
    scale = min(0.9 * width / wide, 0.09 * height / high)
    margin = round(0.5 * scale * high)
    top = max(0, height - round(scale * (high + base)) - 2 * margin)
    image[top:] = image[top:] // 3
    cv2.putText(image, text, (margin, height - margin - round(scale * base)), cv2.FONT_HERSHEY_DUPLEX, scale, (255, 255, 255),
                max(1, round(scale)), cv2.LINE_AA)
    return image


def main(argv: Sequence[str] | None = None) -> int:
    return run([OverlayNode], argv)


if __name__ == '__main__':
    raise SystemExit(main())
