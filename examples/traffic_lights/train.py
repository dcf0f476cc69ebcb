"""Train a traffic-light classifier on a CPU and export it as a float TFLite model.

    python examples/traffic_lights/train.py --arch resnet50 --out build/resnet50_traffic_lights

Needs ``pip install .[train]`` (TensorFlow), as nothing else but ``export_model`` does. Writes ``float.tflite``,
``labels.txt`` and ``training.json`` (seed, epochs, versions, accuracy on the 297 test photos, which no step of the
training looks at). ``edge_resnet calibrate`` makes the INT8 bundle from them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import cv2
import dataset
import keras
import numpy as np
import tensorflow as tf

from edge_resnet.tools import architectures

SIZE = 224


class Recipe(NamedTuple):
    """``stages``: (pixels, epochs) of each; most of the learning happens at half the cost, the last epochs at the real size."""

    stages: tuple[tuple[int, int], ...]
    learning_rate: float = 6e-4
    imagenet: bool = False  # start from ImageNet weights
    mean: float = 127.5  # of each channel, 0-255 units
    std: float = 127.5


RECIPES = {
    'resnet50': Recipe(((128, 6), (SIZE, 6))),
    'efficientnet_lite0': Recipe(((128, 3), (SIZE, 4)), 3e-4, True, 127.0, 128.0),
    'mobilenetv3_small': Recipe(((128, 14), (SIZE, 10)), 1e-3),
    'mobilenetv3_small_minimalistic': Recipe(((128, 14), (SIZE, 10)), 1e-3),
}


def build(arch: str, size: int, imagenet: bool) -> keras.Model:
    """The architecture, ``(size, size, 3)`` normalised input, softmax over the labels."""
    model = architectures.build(arch, len(dataset.LABELS), size, imagenet=imagenet)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # Keras's 0.99 needs more steps than there are here
    return model


class Views(keras.utils.PyDataset):
    """Batches of augmented views, every class drawn equally often; a fresh draw each epoch from a seeded generator."""

    def __init__(self, images: list[np.ndarray], classes: np.ndarray, size: int, recipe: Recipe, batch: int, draws: int, seed: int) -> None:
        super().__init__(workers=1)
        self._images, self._classes, self._size, self._recipe, self._batch, self._draws = images, classes, size, recipe, batch, draws
        self._rng = np.random.default_rng(seed)
        self.on_epoch_begin()

    def on_epoch_begin(self) -> None:
        order = np.concatenate([self._rng.choice(np.flatnonzero(self._classes == c), self._draws) for c in range(len(dataset.LABELS))])
        self._order = self._rng.permutation(order)

    def __len__(self) -> int:
        return len(dataset.LABELS) * self._draws // self._batch

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._order[index * self._batch:(index + 1) * self._batch]
        views = np.stack([dataset.augment(self._images[i], self._size, self._rng) for i in chosen])
        return (views.astype(np.float32) - self._recipe.mean) / self._recipe.std, self._classes[chosen]


class CosineWithWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up over the first twentieth of the steps, then a cosine to zero."""

    def __init__(self, peak: float, steps: int) -> None:
        self.peak, self.steps, self.warmup = peak, steps, max(1, steps // 20)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        cosine = 0.5 * (1 + tf.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))
        return self.peak * tf.where(step < self.warmup, step / self.warmup, cosine)

    def get_config(self) -> dict:
        return {'peak': self.peak, 'steps': self.steps}


def export(model: keras.Model, path: Path) -> None:
    """Write ``model`` as a float TFLite model with input (1, SIZE, SIZE, 3) float32."""
    with tempfile.TemporaryDirectory() as saved:
        model.export(saved, input_signature=[keras.InputSpec(shape=(1, SIZE, SIZE, 3), dtype='float32')], verbose=False)
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(saved).convert())


def accuracy(tflite: Path, photos: list[tuple[Path, int]], recipe: Recipe, framed: bool) -> float:
    """Share of ``photos`` classified right by the exported model, stretched, or composed into a 640x480 frame first."""
    interpreter = tf.lite.Interpreter(model_path=str(tflite), num_threads=2)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0]['index'], interpreter.get_output_details()[0]['index']
    right = 0
    for path, truth in photos:
        image = dataset.read_rgb(path)
        if framed:
            image = dataset.compose(image, 640, 480)
        shrink = image.shape[0] > SIZE
        image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
        interpreter.set_tensor(source, ((image.astype(np.float32) - recipe.mean) / recipe.std)[None])
        interpreter.invoke()
        right += int(interpreter.get_tensor(result)[0].argmax()) == truth
    return right / len(photos)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', choices=sorted(RECIPES), default='resnet50')
    parser.add_argument('--out', type=Path, required=True, help='folder to write; must not hold a float.tflite yet')
    parser.add_argument('--data', type=Path, default=Path('build/traffic_lights'), help='where the photos are kept')
    parser.add_argument('--seed', type=int, default=7)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--draws', type=int, default=450, help='views per class and epoch')
    args = parser.parse_args(argv)
    if (args.out / 'float.tflite').exists():
        parser.error(f'{args.out / "float.tflite"} exists already')
    args.out.mkdir(parents=True, exist_ok=True)

    keras.utils.set_random_seed(args.seed)
    root = dataset.fetch(args.data)
    train, test = dataset.photos(root, 'train'), dataset.photos(root, 'test')
    images, classes = [dataset.read_rgb(path) for path, _ in train], np.array([c for _, c in train], dtype=np.int32)

    recipe = RECIPES[args.arch]
    steps = sum(epochs for _, epochs in recipe.stages) * (len(dataset.LABELS) * args.draws // args.batch)
    schedule = CosineWithWarmup(recipe.learning_rate, steps)
    model: keras.Model | None = None
    start, done = time.monotonic(), 0
    for number, (size, epochs) in enumerate(recipe.stages):
        bigger = build(args.arch, size, recipe.imagenet and model is None)
        bigger.compile(keras.optimizers.AdamW(schedule), loss='sparse_categorical_crossentropy', metrics=['accuracy'])
        if model is not None:  # the same weights, optimiser state and place in the schedule, at the next size
            bigger.set_weights(model.get_weights())
            bigger.optimizer.build(bigger.trainable_variables)
            model.optimizer.save_own_variables(state := {})
            bigger.optimizer.load_own_variables(state)
        model = bigger
        views = Views(images, classes, size, recipe, args.batch, args.draws, args.seed + number)
        model.fit(views, epochs=done + epochs, initial_epoch=done, verbose=2)
        done += epochs
        model.save(args.out / 'model.keras')
    seconds = time.monotonic() - start

    tflite = args.out / 'float.tflite'
    export(model, tflite)
    (args.out / 'labels.txt').write_text('\n'.join(dataset.LABELS) + '\n')
    spec = {'resize': 'stretch', 'color_order': 'rgb', 'mean': [recipe.mean] * 3, 'std': [recipe.std] * 3}
    report = {
        'arch': args.arch, **recipe._asdict(), 'preprocessing': spec, 'output': 'softmax', 'label_offset': 0, 'seed': args.seed,
        'weights_licence': 'Apache-2.0', 'weights_source': f'examples/traffic_lights/train.py on the training photos of {dataset.PACKAGE}',
        'batch': args.batch, 'draws_per_class': args.draws, 'train_photos': len(train), 'test_photos': len(test), 'training_s': round(seconds),
        'test_top1': accuracy(tflite, test, recipe, framed=False), 'test_top1_in_640x480_frames': accuracy(tflite, test, recipe, framed=True),
        'size_bytes': tflite.stat().st_size, 'tensorflow': tf.__version__, 'keras': keras.__version__, 'python': platform.python_version(),
    }
    (args.out / 'training.json').write_text(json.dumps(report, indent=2) + '\n')
    print(json.dumps(report, indent=2))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
