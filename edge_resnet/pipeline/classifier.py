"""A loaded model: network-sized RGB image in, scores out."""

from __future__ import annotations

import threading

import numpy as np

from edge_resnet.exceptions import ImageError, ModelError
from edge_resnet.pipeline.bundle import Bundle
from edge_resnet.pipeline.interpreter import open_interpreter
from edge_resnet.pipeline.postprocessing import scores
from edge_resnet.pipeline.probe import probe
from edge_resnet.pipeline.quantization import Quantization, dequantize, input_table

DTYPES = (np.int8, np.uint8, np.float32)


class Classifier:
    """Runs the model of ``bundle``; safe to call from several threads, one at a time gets through.

    Scale, zero point, shape and dtype are the model's own. ModelError names the field, its value and what was expected.
    """

    def __init__(self, bundle: Bundle, runtime: str = 'auto', num_threads: int = 1, *, default_delegate: bool = True, trial: bool = True) -> None:
        self.bundle = bundle
        model = bundle.read_model()
        if trial:
            probe(model, str(bundle.model_path), runtime)
        try:
            self.runtime, self._interpreter = open_interpreter(model, runtime, num_threads, default_delegate)
        except ModelError as error:
            raise ModelError(f'{bundle.model_path}: {error}') from error
        source, result = self._only('input', self._interpreter.get_input_details()), self._only('output', self._interpreter.get_output_details())
        spec = bundle.preprocessing
        if tuple(source['shape']) != (1, spec.height, spec.width, 3):
            raise ModelError(f'{bundle.name}: input shape is {source["shape"].tolist()}, the card says {[1, spec.height, spec.width, 3]}')
        outputs = int(np.prod(result['shape']))
        if outputs != len(bundle.labels) + bundle.label_offset:
            raise ModelError(f'{bundle.name}: {outputs} outputs, but {len(bundle.labels)} labels and label_offset {bundle.label_offset}')
        self._source, self._result = source['index'], result['index']
        self.input_dtype: np.dtype = np.dtype(source['dtype'])
        self._output_dtype, self._output_quantization = np.dtype(result['dtype']), Quantization(*result['quantization'])
        if self._output_dtype != np.float32 and self._output_quantization.scale <= 0:
            raise ModelError(f'{bundle.name}: output is {self._output_dtype} but its scale is {self._output_quantization.scale}, expected above 0')
        table = input_table(spec, Quantization(*source['quantization']), self.input_dtype)
        self._table = table[:, 0].copy() if (table == table[:, :1]).all() else table
        self._lock = threading.Lock()

    def _only(self, side: str, details: list[dict]) -> dict:
        if len(details) != 1 or details[0]['dtype'] not in DTYPES:
            kinds = ', '.join(np.dtype(entry['dtype']).name for entry in details)
            raise ModelError(f'{self.bundle.name}: {side}s are [{kinds}], expected one of int8, uint8 or float32')
        return details[0]

    def warm_up(self, runs: int = 2) -> None:
        """Run on a grey image: the first inference allocates and is several times slower than the rest."""
        spec = self.bundle.preprocessing
        for _ in range(runs):
            self.classify(np.full((spec.height, spec.width, 3), 128, np.uint8))

    def network_input(self, image: np.ndarray) -> np.ndarray:
        """(1, H, W, 3) of the model's input dtype for ``image``, (H, W, 3) uint8 RGB of the network's size; ImageError for another."""
        spec = self.bundle.preprocessing
        if image.shape != (spec.height, spec.width, 3) or image.dtype != np.uint8:
            raise ImageError(f'image is {image.dtype} {list(image.shape)}, the model takes uint8 {[spec.height, spec.width, 3]}')
        ordered = image[..., ::-1] if spec.color_order == 'bgr' else image
        if self._table.ndim == 1:
            return np.take(self._table, ordered)[None]
        return np.stack([self._table[ordered[..., c], c] for c in range(3)], axis=-1)[None]

    def classify(self, image: np.ndarray) -> np.ndarray:
        """(len(labels),) float32 scores, 0 to 1, of ``image``, (H, W, 3) uint8 RGB of the network's size, or of what ``network_input`` made of it.

        ImageError for another size; ResultError when the model's output is not finite.
        """
        spec = self.bundle.preprocessing
        made = image.shape == (1, spec.height, spec.width, 3) and image.dtype == self.input_dtype
        tensor = image if made else self.network_input(image)
        with self._lock:
            self._interpreter.set_tensor(self._source, tensor)
            self._interpreter.invoke()
            raw = self._interpreter.get_tensor(self._result).reshape(-1)
        real = raw if self._output_dtype == np.float32 else dequantize(raw, self._output_quantization)
        return scores(real[self.bundle.label_offset:], self.bundle.output)
