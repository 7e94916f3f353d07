"""Do larger kernels gain? A ConvNeXt of 7x7 kernels, and the same one grown, fine-tuned on the built-in data.

A ConvNeXt-atto is trained as a classifier. A segmentor and a detector then start from its backbone three times: with
its own 7x7 kernels, grown to kernels as large as the maps, and grown with outer cells that stay zero. All have the same
recipe, number of iterations and seeds. Started again, it continues where it was stopped.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import t as student_t
from scipy.stats import ttest_rel

from pelk_mm.analysis.figures import COLORS
from pelk_mm.analysis.text_tables import to_markdown_table
from pelk_mm.engine.steps import StepFailed, Steps
from pelk_mm.testing.benchmark import environment

ROOT = Path(__file__).resolve().parents[2]
STEPS = Steps(ROOT, partial(print, flush=True))
CLASSIFIER = 'configs/digits/convnext-atto_1xb64_digits.py'
# Arm -> kernels of the four stages, and whether their outer cells stay zero.
ARMS = {
    '7x7': ([7, 7, 7, 7], False),
    'grown': ([31, 15, 7, 7], False),
    'grown, outer cells zero': ([31, 15, 7, 7], True),
}


@dataclass(frozen=True)
class Task:
    """A downstream task: its config, how often it is trained, and by metric its title and factor to per cent."""

    config: str
    seeds: int
    metrics: dict[str, tuple[str, int]]


TASKS = dict(
    segmentation=Task('configs/digits/pelk-convnext-atto_upernet_1xb8-1600it_digits-128x128.py', 5,
                      {'mIoU': ('mIoU', 1)}),
    detection=Task('configs/digits/cascade-mask-rcnn_pelk-convnext-atto_fpn_1xb4-4e_digits.py', 3,
                   {'coco/bbox_mAP': ('box AP', 100), 'coco/segm_mAP': ('mask AP', 100)}))


def train_classifier(work_dir: Path) -> dict:
    """Train the ConvNeXt, and return its accuracy and, by arm, the backbone that is grown from it."""
    folder = work_dir / 'convnext'
    STEPS.run(folder / 'train.log', 'python', 'tools/train.py', CLASSIFIER, '--work-dir', folder, '--resume')
    trained = (folder / 'last_checkpoint').read_text().strip()
    grown = {}
    for kernels, _ in ARMS.values():
        path = work_dir / f'convnext_{kernels[0]}.pth'
        path.unlink(missing_ok=True)
        STEPS.run(folder / 'grow.log', 'python', 'tools/model_converters/grow_convnext.py', trained, path,
                  '--kernel-sizes', *map(str, kernels))
        grown[str(kernels)] = str(path)
    return dict(top1=last_metrics(folder)['accuracy/top1'], grown=grown)


def write_config(task: str, arm: str, grown: str, path: Path) -> None:
    """Write the config of an arm: validation only at the end, and what the arm changes."""
    kernels, outer_cells_zero = ARMS[arm]
    length = 1600 if task == 'segmentation' else 4
    lines = [f'_base_ = {str(ROOT / TASKS[task].config)!r}',
             f'model = dict(backbone=dict(kernel_sizes={kernels}, init_cfg=dict(checkpoint={grown!r})))',
             f'train_cfg = dict(val_interval={length})']
    if outer_cells_zero:
        lines.append("custom_hooks = [dict(type='pelk_mm.DynamicSparsityHook', init='zeros', include=r'^backbone\\.')]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def last_metrics(folder: Path) -> dict:
    """Return the last validation of a training, by name of the metric."""
    log = max(folder.glob('*/vis_data/scalars.json'))
    *_, last = (line for line in log.read_text(encoding='utf-8').splitlines() if 'lr' not in json.loads(line))
    return json.loads(last)


class Runs:
    """The trainings, some at a time, each with its share of the cores."""

    def __init__(self, work_dir: Path, grown: dict[str, str], at_once: int) -> None:
        self.work_dir, self.grown, self.at_once = work_dir, grown, at_once
        self.lock, self.done, self.start = threading.Lock(), 0, time.monotonic()

    def run_all(self, runs: list[tuple[str, str, int]]) -> list[dict]:
        """Train each (task, arm, seed) that is not trained yet, and return the results in this order."""
        self.all = len(runs)
        # Of each training only the command is shown, and its result below.
        return Steps(ROOT, self._report_command).run_side_by_side(self._run, runs, self.at_once)

    def _run(self, steps: Steps, run: tuple[str, str, int]) -> dict:
        task, arm, seed = run
        folder = self.work_dir / f'{task}_{"".join(c if c.isalnum() else "-" for c in arm)}_{seed}'
        config = folder / 'arm' / 'config.py'
        folder.mkdir(parents=True, exist_ok=True)
        result = steps.run_once(folder, 'result', partial(self._train, steps, task, arm, seed, config))
        with self.lock:
            self.done += 1
            minutes = (time.monotonic() - self.start) / 60
            values = ', '.join(f'{name} {result[key]:.1f}' for key, (name, _) in TASKS[task].metrics.items())
            print(f'[{self.done}/{self.all}, {minutes:.0f} min] {task}, {arm}, seed {seed}: {values}', flush=True)
        return result

    def _train(self, steps: Steps, task: str, arm: str, seed: int, config: Path) -> dict:
        write_config(task, arm, self.grown[str(ARMS[arm][0])], config)
        folder = config.parents[1]
        minutes = steps.run(folder / 'train.log', 'python', 'tools/train.py', config, '--work-dir', folder,
                            '--resume', '--cfg-options', f'randomness.seed={seed}')
        metrics = last_metrics(folder)
        return dict(task=task, arm=arm, seed=seed, minutes=minutes,
                    **{key: metrics[key] * factor for key, (_, factor) in TASKS[task].metrics.items()})

    def _report_command(self, line: str) -> None:
        if line.startswith('\n$'):
            print(line.strip(), flush=True)


def summarise(results: list[dict]) -> list[dict]:
    """Return a row for each metric and arm: mean, standard deviation, and the paired difference from 7x7.

    The interval of the difference is that of Student's t for pairs of equal seeds, at 95 %.
    """
    rows = []
    for task, settings in TASKS.items():
        for key, (name, _) in settings.metrics.items():
            values = {arm: [run[key] for run in results if (run['task'], run['arm']) == (task, arm)] for arm in ARMS}
            base = values[next(iter(ARMS))]
            for arm, ours in values.items():
                row = dict(task=task, metric=name, arm=arm, mean=statistics.mean(ours), sd=statistics.stdev(ours),
                           values=ours)
                if ours is not base:
                    pairs = [one - other for one, other in zip(ours, base)]
                    half = student_t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs)**0.5
                    row.update(difference=statistics.mean(pairs), half_interval=float(half),
                               p=float(ttest_rel(ours, base).pvalue))
                rows.append(row)
    return rows


def to_table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    header = ('task', 'metric', 'kernels', 'runs', 'mean', 'sd', 'minus 7x7', '95 % interval', 'p')
    lines = []
    for row in rows:
        compared = ('', '', '')
        if 'p' in row:
            low, high = (row['difference'] + sign * row['half_interval'] for sign in (-1, 1))
            compared = (f'{row["difference"]:+.2f}', f'{low:+.2f} ... {high:+.2f}', f'{row["p"]:.3f}')
        lines.append((row['task'], row['metric'], row['arm'], str(len(row['values'])), f'{row["mean"]:.2f}',
                      f'{row["sd"]:.2f}', *compared))
    return to_markdown_table(header, lines, header[:3])


def draw(rows: list[dict]) -> Figure:
    """Draw every run and the mean of each arm, one panel for each metric."""
    metrics = list(dict.fromkeys((row['task'], row['metric']) for row in rows))
    figure = Figure(figsize=(4 * len(metrics), 3.6), layout='constrained')
    for axis, (task, metric) in zip(figure.subplots(1, len(metrics)), metrics):
        arms = [row for row in rows if (row['task'], row['metric']) == (task, metric)]
        for seed in zip(*(row['values'] for row in arms)):
            axis.plot(range(len(arms)), seed, color='0.8', zorder=1)
        for index, (row, color) in enumerate(zip(arms, COLORS)):
            axis.scatter([index] * len(row['values']), row['values'], color=color, zorder=2)
            axis.hlines(row['mean'], index - 0.2, index + 0.2, color=color)
        axis.set(title=f'{task}: {metric} (%)', xmargin=0.2)
        axis.set_xticks(range(len(arms)), [row['arm'].replace(', ', ',\n') for row in arms])
        axis.spines[['top', 'right']].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'grown_digits', help='folder of all runs')
    parser.add_argument('--at-once', type=int, default=2, help='trainings at a time, each with its share of the cores')
    args = parser.parse_args()
    if args.at_once < 1:
        parser.error(f'--at-once must be at least 1, got {args.at_once}')
    os.chdir(ROOT)
    work_dir, start = args.work_dir.resolve(), time.monotonic()
    STEPS.run(work_dir / 'data.log', 'python', 'tools/dataset_converters/digit_scenes.py')
    classifier = STEPS.run_once(work_dir, 'classifier', partial(train_classifier, work_dir))
    # Seeds outermost: what is there when it is stopped are pairs.
    runs = [(task, arm, seed) for seed in range(max(task.seeds for task in TASKS.values()))
            for task, settings in TASKS.items() if seed < settings.seeds for arm in ARMS]
    results = Runs(work_dir, classifier['grown'], args.at_once).run_all(runs)
    rows = summarise(results)
    minutes = (time.monotonic() - start) / 60
    report = dict(environment=environment('cpu'), minutes=minutes, classifier_top1=classifier['top1'], rows=rows,
                  runs=results)
    (work_dir / 'report.json').write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    draw(rows).savefig(work_dir / 'report.png', dpi=100)
    print(f'\nclassifier: top-1 {classifier["top1"]:.1f}\n\n{to_table(rows)}\n\n{minutes:.0f} minutes in this run; '
          f'written to {work_dir / "report.json"} and {work_dir / "report.png"}')


if __name__ == '__main__':
    try:
        main()
    except StepFailed as error:
        sys.exit(str(error))
