"""What the tools share: models to open, hosts to describe, bounds and errors, and folders and reports that are written whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_resnet.exceptions import EdgeResnetError, ParameterError
from edge_resnet.pipeline.bundle import Bundle, load_bundle

FLOAT = 'float.tflite'
SETTINGS = ('labels', 'resize', 'color_order', 'mean', 'std', 'output', 'label_offset')  # what calibrate's command line can say of a float model
NO_PLOTS = 'Plots were left out: matplotlib is not installed.\n'
GOVERNOR = Path('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor')


def run(tool: str, work: Callable[[], int], interrupted: str = 'nothing was written') -> int:
    """The exit code of ``work``; what is wrong is one line on stderr, and so is what Ctrl-C left behind."""
    try:
        return work()
    except (EdgeResnetError, OSError) as error:
        print(f'{tool}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\n' * sys.stderr.isatty() + f'{tool}: interrupted, {interrupted}', file=sys.stderr)
        return 130


def options(parser: argparse.ArgumentParser, required: bool = True) -> argparse.ArgumentParser:
    """``parser`` with the options of every report."""
    parser.add_argument('--out', type=Path, required=required, help='folder to make for the report')
    parser.add_argument('--force', action='store_true', help='replace an earlier report')
    parser.add_argument('--json', action='store_true', help='print the report as JSON')
    return parser


def check(args: argparse.Namespace, bounds: Mapping[str, tuple[float, float]]) -> None:
    """ParameterError names the first of ``args`` that is outside its bounds; one that was not given is not."""
    for name, (low, high) in bounds.items():
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not low <= value <= high:
                raise ParameterError(f'{name} is {value}, expected {low} to {high}')


def open_model(model: str) -> Bundle:
    """The bundle ``model``, or the float model of a folder that export_model or a training wrote, which has no card."""
    folder = Path(model).parent if Path(model).name == FLOAT else Path(model)
    if (folder / FLOAT).is_file() and not (folder / 'card.yaml').is_file():
        from edge_resnet.tools import calibrate

        bundle, _ = calibrate.float_bundle(argparse.Namespace(model=folder, out=folder, **dict.fromkeys(SETTINGS)))
        return replace(bundle, name=f'{folder.resolve().name}/{FLOAT}')
    return load_bundle(model)


def described(model: str, bundle: Bundle) -> dict[str, Any]:
    """What reports say of a model; ``deployable`` when the nodes take it as it is."""
    data = bundle.read_model()
    return {'name': bundle.name, 'model': model, 'sha256': hashlib.sha256(data).hexdigest(), 'size_bytes': len(data),
            'deployable': not bundle.name.endswith(f'/{FLOAT}')}


def header(kind: str) -> dict[str, Any]:
    """How each report begins: what it is, when and on what it was made."""
    from edge_resnet.tools import calibrate

    memory_mb = round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e6)
    return {'kind': kind, 'created': datetime.now(timezone.utc).isoformat(timespec='seconds'), 'host': {
        'processor': calibrate.processor(), 'cores': os.cpu_count(), 'memory_mb': memory_mb, 'kernel': f'{platform.system()} {platform.release()}',
        'governor': GOVERNOR.read_text().strip() if GOVERNOR.is_file() else None, 'python': platform.python_version(),
        'packages': calibrate.versions('edge_resnet', 'numpy', 'opencv-python-headless', 'ai-edge-litert', 'tflite-runtime')}}


def read(path: Path, kind: str) -> dict[str, Any]:
    """The report of ``kind`` in ``path``, a file or its folder; ParameterError when it is something else."""
    path = path / f'{kind}.json' if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ParameterError(f'{path}: {error}') from error
    if not isinstance(found, dict) or found.get('kind') != kind:
        raise ParameterError(f'{path}: not a report of kind {kind!r}')
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], missing: str = 'unknown') -> str:
    """A Markdown table; the first column is text, the others numbers. ``missing`` stands for None."""
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(missing if cell is None else str(cell).replace("|", "/") for cell in line)} |' for line in lines) + '\n'


def rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)


def percent(share: float) -> str:
    return f'{100 * share:.2f} %'


def megabytes(size_bytes: int) -> str:
    return f'{size_bytes / 1e6:.3g} MB'


def check_out(out: Path, files: Sequence[str], force: bool) -> None:
    """ParameterError when the folder ``out`` is there, unless by ``force`` and it holds nothing but an earlier report's ``files``."""
    if not os.path.lexists(out):
        return
    if not force:
        raise ParameterError(f'out is {out}, which is there already; expected the name of a new folder (--force replaces a report)')
    strange = sorted({path.name for path in out.iterdir()} - set(files)) if out.is_dir() and not out.is_symlink() else [out.name]
    if strange:
        raise ParameterError(f'out is {out}, and {strange[0]!r} is no part of a report; --force replaces nothing else')


def write(out: Path, contents: Mapping[str, Any]) -> None:
    """Write the folder ``out`` with a file for each of ``contents``, texts, bytes and figures, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as temp:
        folder = Path(temp) / 'out'  # has ordinary permissions, unlike the temporary folder itself
        folder.mkdir()
        for name, content in contents.items():
            if isinstance(content, str | bytes):
                (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
            else:
                content.savefig(folder / name, dpi=110)
        if out.exists():
            out.rename(Path(temp) / 'old')
        folder.rename(out)


def deliver(args: argparse.Namespace, files: Sequence[str], result: Mapping[str, Any], markdown: Callable[[Any, bool], str],
            *plots: tuple[tuple[float, float], Callable[[Any], None]]) -> int:
    """Write ``files`` (JSON, Markdown, a PNG for each of ``plots``) into the folder ``args.out`` and print the first or the second.

    A plot is (width, height) in inches and what draws it; without matplotlib they are left out, and that is said."""
    charts = []
    try:
        for size, draw in plots:
            from matplotlib.figure import Figure  # without pyplot a figure saves through Agg and needs no screen

            charts.append(Figure(figsize=size, layout='constrained'))
            draw(charts[-1])
    except ImportError:
        print('matplotlib is not installed: plots are left out (pip install -r requirements/tools.txt)', file=sys.stderr)
    data, text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + '\n', markdown(result, bool(charts))
    if args.out:
        write(args.out, dict(zip(files, (data, text, *charts), strict=False)))
    print(data if args.json else f'written to {args.out}\n\n{text}' if args.out else text, end='')
    return 0


def write_text(path: Path, text: str) -> None:
    """Write the file ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as temp:
        Path(temp, path.name).write_text(text, encoding='utf-8')
        Path(temp, path.name).replace(path)
