"""Any camera's image -> the network's input image, rgb8, as the model card says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import Image

from edge_resnet.conversions import view_of
from edge_resnet.nodes.base import Health, ManagedNode
from edge_resnet.nodes.camera_input import TRANSPORTS, Decode, camera_input
from edge_resnet.nodes.inputs import SMOOTHING, FrameInput
from edge_resnet.nodes.model_parameters import ModelParameters
from edge_resnet.nodes.parameters import param
from edge_resnet.nodes.runner import run
from edge_resnet.pipeline.demand import FrameDemand
from edge_resnet.pipeline.latency import FRAME_READY, PREPROCESS_STARTED
from edge_resnet.pipeline.preprocessing import Preprocessing, resize


@dataclass(frozen=True)
class PreprocessParameters(ModelParameters):
    image_transport: str = param('raw', 'take image_raw or image_raw/compressed', choices=TRANSPORTS)


class PreprocessNode(ManagedNode[PreprocessParameters]):
    """Resizes in the colour order that the image came in, and reorders what is left."""

    Parameters = PreprocessParameters

    def __init__(self, **options: Any) -> None:
        super().__init__('preprocess', **options)
        self._spec = Preprocessing()
        self._input: FrameInput | None = None
        self._output = self.frame_output(Image, 'image_preprocessed', self._on_request)
        self._takes_s = 0.0  # to process a frame

    def configure(self) -> None:
        self._spec = self.parameters.bundle().preprocessing

    def activate(self) -> None:
        self._input = camera_input(self, self.parameters.image_transport, self._process, asks=True, demand=FrameDemand(),
                                   every=self._output.every_frame, inline=True, shares=True, on_upcoming=self._output.announce)

    def deactivate(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None

    def _on_request(self, in_s: float) -> None:
        if self._input is not None:
            self._input.want(in_s, self._takes_s)

    def _process(self, header: Any, decode: Decode) -> None:
        started_ns, started_s = self.now_ns(), time.perf_counter()
        image, order = decode()
        small = resize(image, self._spec)
        if order == 'bgr':
            small = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
        elif np.may_share_memory(small, image):  # there was nothing to resize, and the image may be where its publisher writes the next
            small = small.copy()
        if self._input is not None and not self._input.intact():
            return
        ready_ns = self.now_ns()
        self._output.publish(view_of(header, small, 'rgb8'))
        self._takes_s += SMOOTHING * (time.perf_counter() - started_s - self._takes_s)
        self.stage(PREPROCESS_STARTED, header, started_ns)
        self.stage(FRAME_READY, header, ready_ns)
        self.counts['published'] += 1

    def diagnose(self, health: Health) -> None:
        if self._input is not None:
            self._input.diagnose(health)
        health.values.update({'Output rate (Hz)': self.rate('published'), 'Output width (px)': self._spec.width,
                              'Output height (px)': self._spec.height})


def main(argv: Sequence[str] | None = None) -> int:
    return run([PreprocessNode], argv)


if __name__ == '__main__':
    raise SystemExit(main())
