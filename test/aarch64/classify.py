"""Classify images with the project's own preprocessing and classifier in every TFLite runtime there is: python classify.py JOBS RESULTS

Runs on this machine's Python and on the emulated one of a Raspberry Pi. JOBS is a JSON file, a list of [bundle folder, [image, ...]];
RESULTS is a new folder for results.json, a list of what ``classify`` yields, and the network-sized images.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_resnet.exceptions import ModelError
from edge_resnet.pipeline.bundle import load_bundle
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.interpreter import RUNTIMES, find_runtime
from edge_resnet.pipeline.postprocessing import top_k
from edge_resnet.pipeline.preprocessing import resize
from edge_resnet.tools.dataset import progress, read_rgb

FLOAT_STEP = 1 / 256  # for a tensor that isn't quantised, the step that an 8-bit score has


def logit_step(interpreter: Any, index: int) -> float:
    """The quantisation step of what comes before the softmax that makes output tensor ``index``, or of that tensor if none does."""
    before = {operation['outputs'][0]: operation['inputs'][0] for operation in interpreter._get_ops_details() if operation['op_name'] == 'SOFTMAX'}
    scales = {tensor['index']: tensor['quantization'][0] for tensor in interpreter.get_tensor_details()}
    return scales[before.get(index, index)] or FLOAT_STEP


def classify(model: str, images: list[str], runtime: str, folder: Path) -> Iterator[dict[str, Any]]:
    """For each of ``images``: the best label and its score; the model's whole ``output`` in quantisation steps; the ``fitted``
    image's file."""
    bundle = load_bundle(model)
    classifier = Classifier(bundle, runtime, trial=False)  # these models have been tried already, and here an inference takes seconds
    interpreter = classifier._interpreter  # scores may have been through softmax; what differs by how many steps, only the raw output tells
    result, = interpreter.get_output_details()
    scale = result['quantization'][0]
    for image in progress(images, f'{bundle.name}, {runtime}, image'):
        fitted = resize(read_rgb(Path(image)), bundle.preprocessing)
        best, = top_k(classifier.classify(fitted), bundle.labels, 1)
        output = interpreter.get_tensor(result['index']).reshape(-1).astype(np.float64) / (1 if scale else FLOAT_STEP)
        file = folder / f'{bundle.name} {Path(image).stem}.png'
        cv2.imwrite(str(file), cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR))
        yield {
            'model': model, 'runtime': runtime, 'image': image, 'label': best.label, 'score': best.score, 'step': scale or FLOAT_STEP,
            'logit_step': logit_step(interpreter, result['index']), 'output': output.tolist(), 'fitted': str(file)}


def main(jobs: str, results: str) -> int:
    folder = Path(results)
    folder.mkdir()
    records: list[dict[str, Any]] = []
    for runtime in RUNTIMES:
        try:
            find_runtime(runtime)
        except ModelError as error:  # tflite-runtime has no wheel for Python 3.12
            print(f'classify: {error}', file=sys.stderr)
            continue
        for model, images in json.loads(Path(jobs).read_text()):
            records += classify(model, images, runtime, folder)
    (folder / 'results.json').write_text(json.dumps(records))
    return 0


if __name__ == '__main__':
    raise SystemExit(main(*sys.argv[1:]))
