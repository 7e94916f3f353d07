"""Compare exported files on the CPU: onnxruntime and OpenVINO, fp32 and int8, fast and dense form of the kernels.

Of the quick start's three models it measures latency, size, metric and how many predictions stay the same; of PeLK-T
with random weights latency and size. Of the detector the backbone is exported, and its heads run in PyTorch. Start
tools/quickstart.py first. Files in int8 are calibrated on training images.
"""

import argparse
import copy
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from pelk_mm.analysis import build_model
from pelk_mm.analysis.text_tables import to_markdown_table
from pelk_mm.deploy import (
    EvalImages,
    ExportedFile,
    ExportedModel,
    ImageModel,
    Predictions,
    calibration_images,
    capture,
    deploy,
    describe,
    load_trained,
    save_int8_onnx,
    save_onnx,
    save_openvino,
    task_of,
    verify_outputs,
)
from pelk_mm.deploy.inference import exported_network, predict
from pelk_mm.engine.launch import load_config
from pelk_mm.install_hints import require
from pelk_mm.testing.benchmark import environment, save_report, time_paired

ROOT = Path(__file__).resolve().parents[2]
LARGE = 'PeLK-T'
LARGE_CONFIG = ROOT / 'configs/imagenet/pelk-tiny_32xb128_in1k.py'
# By model: key of the metric, its name, its factor to per cent.
METRICS = dict(
    classification=('accuracy/top1', 'top-1', 1),
    segmentation=('mIoU', 'mIoU', 1),
    detection=('coco/bbox_mAP', 'box AP', 100))
PYTORCH = 'PyTorch'
FIXED = ', fixed shape'


@dataclass
class Variant:
    """A file in a runtime, and what is measured of it."""

    form: str
    runtime: str
    precision: str
    path: Path
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f'{self.form}, {self.runtime}, {self.precision}'

    def open(self, shape: tuple[int, ...] | None = None) -> ExportedModel:
        precision = 'bf16' if 'bf16' in self.precision else 'f32'
        return ExportedModel(self.path, torch.get_num_threads(), precision, shape)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', choices=[*METRICS, LARGE], default=[*METRICS, LARGE])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quickstart'), help='of tools/quickstart.py')
    parser.add_argument('--data', type=Path, default=Path('data/digit_scenes'), help='its data')
    parser.add_argument('--images', type=int, help='evaluate on at most so many images; by default on all')
    parser.add_argument('--calibration', type=int, default=200, help='images to calibrate on, default 200')
    parser.add_argument('--seconds', type=float, default=60, help='time each model for about so long, default 60')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results')
    parser.add_argument('--markdown', type=Path, metavar='FILE', help='write the tables')
    return parser.parse_args()


def write_variants(model: nn.Module, cfg: Config, meta: dict, calibration: EvalImages,
                   folder: Path) -> Iterator[Variant]:
    """Export both forms for both runtimes, in fp32 and int8."""
    import openvino
    task = task_of(cfg)
    bf16 = 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    for form in ('fast', 'dense'):
        reference = ImageModel(model, task, form)
        source = folder / f'{form}.onnx'
        save_onnx(capture(reference), source, reference.output_names(), describe(cfg, meta, reference.channels))
        save_int8_onnx(source, folder / f'{form}-int8.onnx', calibration)
        save_openvino(source, folder / f'{form}.xml')
        save_openvino(source, folder / f'{form}-int8.xml', calibration)
        yield Variant(form, 'onnxruntime', 'fp32', source)
        yield Variant(form, 'onnxruntime', 'int8', folder / f'{form}-int8.onnx')
        yield Variant(form, 'OpenVINO', 'fp32', folder / f'{form}.xml')
        yield Variant(form, 'OpenVINO', 'int8', folder / f'{form}-int8.xml')
        # The dense form is left out: OpenVINO 2026.4 does not end a bf16 convolution of 31x31 on a map of 40x40.
        if bf16 and form == 'fast':
            yield Variant(form, 'OpenVINO', 'bf16', folder / f'{form}.xml')
            yield Variant(form, 'OpenVINO', 'int8, rest bf16', folder / f'{form}-int8.xml')


def evaluate(model: nn.Module, cfg: Config, networks: dict[str, ExportedModel], count: int | None) -> dict[str, dict]:
    """Return the evaluator's metrics, of the model and of it with exported networks, and equal predictions."""
    task = task_of(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        evaluators = {name: Evaluator(copy.deepcopy(cfg.test_evaluator)) for name in (PYTORCH, *networks)}
        for evaluator in evaluators.values():
            evaluator.dataset_meta = dataset.metainfo
        agreements = {name: Predictions() for name in networks}
        step = max(len(dataset) / (count or len(dataset)), 1)
        indices = [int(i * step) for i in range(min(count or len(dataset), len(dataset)))]
        for index in indices:
            batch = pseudo_collate([dataset[index]])
            expected = predict(model, batch)
            for name, network in networks.items():
                with exported_network(model, task, network.run_tensors, 3):
                    got = predict(model, batch)
                agreements[name].add(expected[0], got[0])
                evaluators[name].process(got, batch)
            evaluators[PYTORCH].process(expected, batch)
        metrics = {name: {key: float(value) for key, value in evaluator.evaluate(len(indices)).items()}
                   for name, evaluator in evaluators.items()}
    found = {name: dict(metrics=metrics[name], **agreement.to_dict(), agreement=share_of_equal(agreement, task))
             for name, agreement in agreements.items()}
    return {PYTORCH: dict(metrics=metrics[PYTORCH], images=len(indices)), **found}


def share_of_equal(predictions: Predictions, task: str) -> float:
    """Return the share of labels, pixels or detections that stay the same."""
    if task == 'detection':
        return predictions.detections.matched / max(predictions.detections.before, 1)
    if task == 'segmentation':
        return predictions.equal / predictions.decisions
    return predictions.images_equal / predictions.images


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all figures of one of the models."""
    if name == LARGE:
        cfg, meta = load_config(str(LARGE_CONFIG)), {}
        model = build_model(cfg, 'cpu').eval()
        images = calibration = EvalImages(cfg, 8, str(args.data / 'scenes/images/val'))
    else:
        run = max(args.work_dir.glob(f'{name}_*/last_checkpoint'), key=lambda file: file.stat().st_mtime).parent
        config, = run.glob('*.py')
        cfg = load_config(str(config))
        model, meta = load_trained(cfg, str(run / Path((run / 'last_checkpoint').read_text().strip()).name))
        images, calibration = EvalImages(cfg, 8), calibration_images(cfg, args.calibration)
    model = deploy(model, cfg).model
    reference = ImageModel(model, task_of(cfg)).eval()
    inputs = [images.network_input(i) for i in range(len(images))]
    variants = list(write_variants(model, cfg, meta, calibration, folder))
    networks = {variant.name: variant.open() for variant in variants}
    for variant in variants:
        files = [variant.path, *variant.path.parent.glob(f'{variant.path.stem}.bin')]
        exported = ExportedFile(networks[variant.name], networks[variant.name].run_tensors)
        agreements = verify_outputs(reference, exported, inputs)
        variant.results.update(
            bytes=sum(file.stat().st_size for file in files if variant.runtime == 'OpenVINO' or file == variant.path),
            largest_relative_difference=max(each.relative for each in agreements),
            noise={output: sum(each.noise for each in agreements if each.output == output) / len(inputs)
                   for output in reference.output_names()})
    runs = {key: network.run for key, network in networks.items()}
    fixed = {f'{each.name}{FIXED}': each for each in variants if each.runtime == 'OpenVINO'}
    runs.update((key, variant.open(inputs[0].shape).run) for key, variant in fixed.items())
    runs[PYTORCH] = lambda image: reference(torch.from_numpy(image))
    times = time_paired(runs, inputs[:1], 'cpu', limit=args.seconds)
    pytorch: dict[str, Any] = dict(latency=vars(times[PYTORCH]))
    if name != LARGE:
        # Files in fp32 compute the same, as the differences of their outputs show.
        chosen = {variant.name: networks[variant.name] for variant in variants if variant.precision != 'fp32'}
        evaluated = evaluate(model, cfg, chosen, args.images)
        pytorch.update(evaluated[PYTORCH])
        for variant in variants:
            variant.results.update(evaluated.get(variant.name, {}))
    for variant in variants:
        variant.results['latency'] = vars(times[variant.name])
    for key, variant in fixed.items():
        variant.results['latency_fixed_shape'] = vars(times[key])
    return dict(shape=inputs[0].shape, calibrated_on=len(calibration), pytorch=pytorch, variants=[
        dict(form=each.form, runtime=each.runtime, precision=each.precision, **each.results) for each in variants])


def to_table(name: str, result: dict[str, Any]) -> str:
    """Return the results of a model in Markdown."""
    key, metric, factor = METRICS.get(name, ('', 'metric', 1))
    share = dict(classification='same label', segmentation='same class, pixels', detection='same box').get(name, 'same')

    def row(words: list, entry: dict) -> list:
        value = entry.get('metrics', {}).get(key)
        size, agreement, fixed = entry.get('bytes'), entry.get('agreement'), entry.get('latency_fixed_shape')
        best = min(each['median'] for each in (entry['latency'], fixed) if each)
        return [*words, '' if size is None else f'{size / 1e6:.2f}', f'{1e3 * entry["latency"]["median"]:.2f}',
                f'{1e3 * fixed["median"]:.2f}' if fixed else '',
                f'{result["pytorch"]["latency"]["median"] / best:.2f}',
                '' if value is None else f'{factor * value:.2f}',
                '' if agreement is None else f'{100 * agreement:.2f}',
                f'{100 * max(entry["noise"].values()):.3g}' if 'noise' in entry else '']

    rows = [row(['', PYTORCH, 'fp32'], result['pytorch'])]
    rows += [row([each['form'], each['runtime'], each['precision']], each) for each in result['variants']]
    header = ['form', 'runtime', 'precision', 'MB', 'ms', 'ms, fixed shape', 'times as fast', f'{metric}, %',
              f'{share}, %', 'noise, %']
    table = to_markdown_table(header, rows, header[:3])
    return f'{name}, {"x".join(map(str, result["shape"]))}\n\n{table}\n'


def main() -> None:
    args = parse_args()
    require('openvino', 'nncf', by='this benchmark')
    report: dict[str, Any] = dict(environment=environment('cpu'), models={})
    tables = []
    for name in args.models:
        with TemporaryDirectory() as folder:
            report['models'][name] = measure(name, args, Path(folder))
        gc.collect()
        tables.append(to_table(name, report['models'][name]))
        print(tables[-1], flush=True)
        if args.json:
            save_report(report, args.json)
    if args.markdown:
        args.markdown.write_text('\n'.join(tables), encoding='utf-8')


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
