"""The parameters that say which model; preprocess and inference share them, and so agree on the network's input."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edge_resnet.nodes.parameters import param
from edge_resnet.pipeline.bundle import OUTPUTS, Bundle, load_bundle
from edge_resnet.pipeline.preprocessing import COLOR_ORDERS, RESIZE_MODES

DEFAULT_MODEL = 'resnet50_traffic_lights'


@dataclass(frozen=True)
class ModelParameters:
    autostart: bool = param(True, 'configure and activate without a lifecycle manager')
    model: str = param(DEFAULT_MODEL, 'name or folder of a model bundle, or a .tflite file', read_only=True)
    resize: str = param('', 'how to fit the image; empty: as the model card says', choices=('', *RESIZE_MODES), read_only=True)
    color_order: str = param('', 'channel order of the model; empty: as the card says', choices=('', *COLOR_ORDERS), read_only=True)
    mean: list[float] = param([], 'mean per channel, 0-255 units; empty: as the card says', read_only=True)
    std: list[float] = param([], 'standard deviation per channel, 0-255 units; empty: as the card says', read_only=True)
    output: str = param('', 'what the model gives; empty: as the card says', choices=('', *OUTPUTS), read_only=True)
    labels_file: str = param('', 'one label a line; empty: the labels of the model', read_only=True)

    def bundle(self) -> Bundle:
        names = ('resize', 'color_order', 'mean', 'std', 'output', 'labels_file')
        return load_bundle(self.model, {name: value for name, value in dataclasses.asdict(self).items() if name in names})
