"""Images for the tools: folders of frames, labelled folders and CSV files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_resnet.exceptions import ImageError, ParameterError, SourceError
from edge_resnet.tools.dataset import images, labelled, progress, read_rgb

LABELS = ('green', 'red')


def write(path: Path, color: tuple[int, int, int] = (1, 2, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((4, 4, 3), color[::-1], np.uint8))
    return path


def names(root: Path, found: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_the_images_of_a_folder_in_order(tmp_path):
    for name in ('b.png', 'a.jpg', 'C.PNG', 'sub/d.png'):
        write(tmp_path / name)
    (tmp_path / 'a.txt').write_text('')
    (tmp_path / 'folder.png').mkdir()
    assert names(tmp_path, images(tmp_path)) == ['C.PNG', 'a.jpg', 'b.png']


def test_the_images_of_subfolders_where_there_are_no_others(tmp_path):
    for name in ('red/a.png', 'green/b.png', 'deep/er/c.png'):
        write(tmp_path / name)
    assert names(tmp_path, images(tmp_path)) == ['green/b.png', 'red/a.png']


@pytest.mark.parametrize('name', ['.', 'missing'])
def test_no_images(tmp_path, name):
    with pytest.raises(ParameterError, match='there is no such folder' if name == 'missing' else 'no images'):
        images(tmp_path / name)


def test_a_labelled_folder(tmp_path):
    for name in ('red/a.png', 'green/b.png', 'green/a.png'):
        write(tmp_path / name)
    found = labelled(tmp_path, LABELS)
    assert names(tmp_path, [path for path, _ in found]) == ['green/a.png', 'green/b.png', 'red/a.png']
    assert [index for _, index in found] == [0, 0, 1]


@pytest.mark.parametrize('source', ['.', 'labels.csv'])
def test_a_csv_has_paths_relative_to_it(tmp_path, source):
    (tmp_path / 'labels.csv').write_text('file,label\nphotos/x.png,red\ny.png,green\n')
    assert labelled(tmp_path / source, LABELS) == [(tmp_path / 'photos/x.png', 1), (tmp_path / 'y.png', 0)]


def test_a_label_that_the_model_does_not_have_is_named(tmp_path):
    write(tmp_path / 'blue' / 'a.png')
    with pytest.raises(ParameterError, match=r"a.png: label 'blue' is not one of the model, expected green, red$"):
        labelled(tmp_path, LABELS)
    with pytest.raises(ParameterError, match=r'expected 0, 1, 2, 3, 4 and 995 more$'):
        labelled(tmp_path, [str(number) for number in range(1000)])


def test_frames_without_labels_are_no_photos_to_evaluate_on(tmp_path):
    write(tmp_path / 'a.png')
    with pytest.raises(ParameterError, match='no labelled images, expected one subfolder a class, a labels.csv, or a CSV file'):
        labelled(tmp_path, LABELS)


def test_a_csv_with_other_columns(tmp_path):
    (tmp_path / 'x.csv').write_text('path;class\na;b\n')
    with pytest.raises(SourceError, match='expected file,label'):
        labelled(tmp_path / 'x.csv', LABELS)


def test_images_are_rgb_whatever_the_file_holds(tmp_path):
    write(tmp_path / 'a.png', (200, 100, 50))
    assert read_rgb(tmp_path / 'a.png')[0, 0].tolist() == [200, 100, 50]
    cv2.imwrite(str(tmp_path / 'grey.png'), np.full((4, 4), 9, np.uint8))
    assert read_rgb(tmp_path / 'grey.png').shape == (4, 4, 3)


@pytest.mark.parametrize(('name', 'message'), [('a.png', 'a.png: not a readable image'), ('b.png', 'b.png: there is no such file')])
def test_an_image_that_can_not_be_read_is_named(tmp_path, name, message):
    (tmp_path / 'a.png').write_text('no')
    with pytest.raises(ImageError, match=message):
        read_rgb(tmp_path / name)


@pytest.mark.parametrize(('count', 'lines'), [(3, 3), (8, 4), (1000, 4), (0, 0)])
def test_progress_in_a_log_is_a_few_lines(capsys, count, lines):
    assert list(progress(range(count), 'reading')) == list(range(count))
    err = capsys.readouterr().err.splitlines()
    assert len(err) == lines
    assert not err or err[-1] == f'reading: {count} of {count}'
