"""Quick start on two CPU cores: small data, a classifier, and a segmentor and a detector from its backbone.

Every step is a command of this repository, printed before it runs, as you would type it. Started again, it continues
where it was stopped; steps finished with the same configs, code and data are not repeated.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.fileio import load
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pelk_mm.analysis.text_tables import to_columns
from pelk_mm.engine.launch import load_config
from pelk_mm.engine.steps import StepFailed, Steps, digest

ROOT = Path(__file__).resolve().parents[1]
STEPS = Steps(ROOT, partial(print, flush=True))


@dataclass(frozen=True)
class Task:
    """One of the three trainings.

    Attributes:
        name (str): Names its folder and its image.
        config (str): Config file.
        predictions (str): What to call the predictions; ``tools/test.py --out`` takes the kind from the ending.
        metrics (dict[str, tuple[str, int, int]]): By key of the metric, what to call it, its factor to per cent, and
            the least per cent to expect.
        figure_size (tuple[float, float]): Width and height of its image in inches.
        draw (Callable): ``draw(figure, cfg, predictions)``.
    """

    name: str
    config: str
    predictions: str
    metrics: dict[str, tuple[str, int, int]]
    figure_size: tuple[float, float]
    draw: Callable[[Figure, Config, Path], None]


def draw_classification(figure: Figure, cfg: Config, predictions: Path) -> None:
    """Draw a row of images for each class, with the predicted class; wrong ones in red."""
    by_class: dict[int, list] = {}
    for result in load(predictions):
        by_class.setdefault(int(result['gt_label']), []).append(result)
    axes = figure.subplots(len(by_class), 10)
    for row, (label, results) in zip(axes, sorted(by_class.items())):
        # The mistakes first, so that what the model finds hard is seen.
        results.sort(key=lambda result: int(result['pred_label']) == label)
        for axis, result in zip(row, results):
            predicted = int(result['pred_label'])
            axis.imshow(Image.open(result['img_path']))
            axis.set_title(
                f'{predicted}' if predicted == label else f'{predicted}, not {label}',
                color='green' if predicted == label else 'red')
    figure.suptitle('Predicted digits: of each class the mistakes first, then some that are right')


def draw_segmentation(figure: Figure, cfg: Config, predictions: Path) -> None:
    """Draw rows of image, ground truth and prediction."""
    dataset = cfg.test_dataloader.dataset
    # The first colour is for the value 0, which is ignored.
    palette = np.array([(0, 0, 0), *dataset.metainfo.palette], dtype=np.uint8)
    folder = Path(dataset.data_root)
    files = sorted((folder / dataset.data_prefix.img_path).iterdir())[:NUM_SCENES]
    for row, file in zip(figure.subplots(len(files), 3), files):
        truth = Image.open(folder / dataset.data_prefix.seg_map_path / file.name)
        for axis, image in zip(row, (Image.open(file), palette[np.array(truth)],
                                     palette[np.array(Image.open(predictions / file.name))])):
            axis.imshow(image)
    _title_columns(figure, 'image', 'ground truth', 'prediction')


def draw_detection(figure: Figure, cfg: Config, predictions: Path) -> None:
    """Draw rows of image, ground truth and predictions with a score of at least 0.5: boxes, masks and classes."""
    dataset = cfg.test_dataloader.dataset
    coco = COCO(os.path.join(dataset.data_root, dataset.ann_file))
    labels = {category: label for label, category in enumerate(coco.getCatIds())}
    results = sorted(load(predictions), key=lambda result: result['img_id'])[:NUM_SCENES]
    for row, result in zip(figure.subplots(len(results), 3), results):
        image = np.array(Image.open(result['img_path']))
        annotations = coco.loadAnns(coco.getAnnIds(result['img_id']))
        truth = [(labels[annotation['category_id']], annotation['bbox'], coco.annToMask(annotation))
                 for annotation in annotations]
        found = result['pred_instances']
        predicted = [(int(label), (left, top, right - left, bottom - top), coco_mask.decode(mask))
                     for label, score, (left, top, right, bottom), mask in zip(
                         found['labels'], found['scores'].tolist(), found['bboxes'].tolist(), found['masks'])
                     if score >= 0.5]
        row[0].imshow(image)
        for axis, instances in zip(row[1:], (truth, predicted)):
            _draw_instances(axis, image, instances, dataset.metainfo)
    _title_columns(figure, 'image', 'ground truth', 'prediction')


def _draw_instances(axis, image: np.ndarray, instances: list, metainfo: dict) -> None:
    image = image // 2
    for label, _, mask in instances:
        image[mask > 0] = metainfo['palette'][label]
    axis.imshow(image)
    for label, (left, top, width, height), _ in instances:
        color = np.array(metainfo['palette'][label]) / 255
        axis.add_patch(Rectangle((left, top), width, height, fill=False, color=color))
        text = axis.text(left, top, metainfo['classes'][label], va='bottom', bbox=dict(color=color, pad=1))
        text.set_in_layout(False)


def _title_columns(figure: Figure, *titles: str) -> None:
    for axis, title in zip(figure.axes, titles):
        axis.set_title(title)


NUM_SCENES = 6
TASKS = (
    Task('classification', 'configs/digits/pelk-atto_1xb64_digits.py', 'predictions.pkl',
         {'accuracy/top1': ('top-1', 1, 95)}, (12, 14), draw_classification),
    Task('segmentation', 'configs/digits/pelk-atto_upernet_1xb8-1600it_digits-128x128.py', 'predictions',
         {'mIoU': ('mIoU', 1, 50)}, (7, 14), draw_segmentation),
    Task('detection', 'configs/digits/cascade-mask-rcnn_pelk-atto_fpn_1xb4-4e_digits.py', 'predictions.pkl',
         {'coco/bbox_mAP': ('box AP', 100, 20), 'coco/segm_mAP': ('mask AP', 100, 15)}, (7, 14), draw_detection),
)


def train(steps: Steps, task: Task, folder: Path, options: list[str]) -> dict:
    """Train, or continue a training that was stopped, and return its checkpoint."""
    minutes = steps.run(folder / 'train.log', 'python', 'tools/train.py', task.config, '--work-dir', folder, '--resume',
                        *options)
    return dict(minutes=minutes, checkpoint=(folder / 'last_checkpoint').read_text().strip())


def test(steps: Steps, task: Task, folder: Path, checkpoint: str) -> dict:
    """Test a checkpoint, and return its metrics and the file of its predictions."""
    # A test that was stopped leaves half of the predictions.
    results = Path(tempfile.mkdtemp(prefix='test_', dir=folder))
    minutes = steps.run(results / 'test.log', 'python', 'tools/test.py', task.config, checkpoint, '--work-dir', results,
                        '--out', results / task.predictions)
    metrics_file, = results.glob('*/*.json')
    return dict(
        minutes=minutes, metrics=json.loads(metrics_file.read_text()), predictions=str(results / task.predictions))


def run(steps: Steps, task: Task, work_dir: Path, environment: str, options: list[str]) -> tuple[dict, dict]:
    """Train and test, each unless it is done, and return the results of both."""
    folder = work_dir / f'{task.name}_{digest(environment, load_config(task.config).to_dict(), options)}'
    trained = steps.run_once(folder, 'training', partial(train, steps, task, folder, options))
    return trained, steps.run_once(folder, 'test', partial(test, steps, task, folder, trained['checkpoint']))


def run_named(work_dir: Path, environment: str, options: list[str], steps: Steps, task: Task) -> tuple[dict, dict]:
    """Run as :func:`run`, beside other tasks: each line starts with the name of the task."""
    named = replace(steps, report=lambda line: print(f'{task.name} | {line.strip()}', flush=True))
    return run(named, task, work_dir, environment, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/quickstart'), help='folder for models and figures')
    work_dir = parser.parse_args().work_dir.resolve()
    os.chdir(ROOT)
    if work_dir.is_relative_to(ROOT):
        work_dir = work_dir.relative_to(ROOT)

    minutes = STEPS.run(work_dir / 'data.log', 'python', 'tools/dataset_converters/digit_scenes.py')
    rows, failed = [('data', '', '', '', f'{minutes:.1f}')], False
    environment = STEPS.digest_environment(Path('data/digit_scenes'))
    first, *others = TASKS
    # A core is left for the process that loads images: threads that wait for each other would wait for it too.
    threads = max(1, torch.get_num_threads() - 1)
    results = [run(replace(STEPS, variables=dict(OMP_NUM_THREADS=str(threads))), first, work_dir, environment, [])]
    backbone = f'model.backbone.init_cfg.checkpoint={results[0][0]["checkpoint"]}'
    results += STEPS.run_side_by_side(partial(run_named, work_dir, environment, ['--cfg-options', backbone]), others)
    for task, (trained, tested) in zip(TASKS, results):
        figure = Figure(figsize=task.figure_size, layout='constrained')
        task.draw(figure, load_config(task.config), Path(tested['predictions']))
        for axis in figure.axes:
            axis.axis('off')
        figure.savefig(work_dir / f'{task.name}.png', dpi=100)

        for key, (name, factor, least) in task.metrics.items():
            value = tested['metrics'][key] * factor
            failed |= value < least
            times = f'{trained["minutes"]:.1f} + {tested["minutes"]:.1f}'
            rows.append((task.name, name, f'{value:.1f}', str(least), times))

    print()
    print(to_columns([('step', 'metric', '%', 'at least', 'minutes'), *rows], num_text=2))
    print('(minutes: of training + of the test, those of the last two tasks side by side; steps that were finished\n'
          'before show what they took then)')
    images = [work_dir / f'{task.name}.png' for task in TASKS]
    print('Predictions on validation images:', *images, sep='\n  ')
    if failed:
        sys.exit('A metric is lower than it should be.')


if __name__ == '__main__':
    try:
        main()
    except StepFailed as error:
        sys.exit(str(error))
