"""Draw sample frames with what the pipeline makes of them: python examples/traffic_lights/picture.py --out docs/samples.png"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from edge_resnet.pipeline.bundle import find_shared, load_bundle
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.preprocessing import resize
from edge_resnet.tools.dataset import images, read_rgb

SHOWN = (0, 1, 3, 12)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', default='resnet50_traffic_lights')
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args(argv)
    model = Classifier(load_bundle(args.model))
    frames = images(find_shared('samples'))
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(12, 2.7), layout='constrained')
    for axis, number in zip(axes, SHOWN, strict=True):
        frame = read_rgb(frames[number])
        scores = model.classify(resize(frame, model.bundle.preprocessing))
        label, score = model.bundle.labels[scores.argmax()], scores.max()
        axis.imshow(frame)
        color = 'crimson' if label == 'red' else 'black'
        axis.set_title(f'{label} {score:.2f}   brake {"ON" if label == "red" else "off"}', fontsize=11, color=color)
        axis.axis('off')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=80)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
