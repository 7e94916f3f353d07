"""Train seven token mixers on tasks that reach and form of a kernel decide, see docs/benchmarks/reach.md.

Each training is one that tools/train.py makes of a config of configs/reach; many run in a process, as starting one
takes longer than some of them. Started again, it continues where it was stopped.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from scipy.stats import t as student_t
from scipy.stats import ttest_rel

from pelk_mm.analysis.reach import (
    drawn_pairs_accuracy,
    kernel_cells,
    nearest_seed_bound,
    offset_pairs_bound,
    stripe_cells,
)
from pelk_mm.analysis.text_tables import to_markdown_table
from pelk_mm.engine.launch import configure_training, load_config, run
from pelk_mm.engine.steps import Steps, digest
from pelk_mm.ops import SharingGrid
from pelk_mm.testing.benchmark import environment

ROOT = Path(__file__).resolve().parents[2]
# Mixer -> what it changes in the backbone of the configs, and the offsets that it distinguishes.
MIXERS = {
    '7x7': (dict(kernel_sizes=[7], grids='dense'), kernel_cells(SharingGrid.dense(7))),
    'stripe 51': (dict(type='pelk_mm.SLaK', kernel_sizes=[51], stripe_width=5), stripe_cells(51, 5)),
    'dense 31': (dict(kernel_sizes=[31], grids='dense'), kernel_cells(SharingGrid.dense(31))),
    'dense 51': (dict(kernel_sizes=[51], grids='dense'), kernel_cells(SharingGrid.dense(51))),
    'peripheral 31': (dict(kernel_sizes=[31]), kernel_cells(SharingGrid.from_kernel_size(31))),
    'peripheral 51': (dict(kernel_sizes=[51]), kernel_cells(SharingGrid.from_kernel_size(51))),
    # The paper's centre for this size.
    'peripheral 101': (dict(kernel_sizes=[101], center=7), kernel_cells(SharingGrid.from_kernel_size(101, center=7))),
}
REFERENCE = 'dense 51'
# Of PeLK only.
NOT_OF_STRIPES = ('conv_ratio', 'small_kernel', 'position_embedding')
COLORS = dict(zip(MIXERS, ('0.6', '#D55E00', '#56B4E9', '#0072B2', '#9ACD32', '#009E73', '#CC79A7')))
ACCURACY = 'reach/acc'


@dataclass(frozen=True)
class Task:
    """A data set: its config, and how many blocks the networks have."""

    config: str
    blocks: tuple[int, ...] = (1, )


TASKS = {
    'nearest seed': Task('configs/reach/pelk-51_fcn_1xb4-300it_nearest-seed-64x64.py', (1, 2, 4)),
    'offset pairs': Task('configs/reach/pelk-51_fcn_1xb4-300it_offset-pairs-64x64.py'),
    'offset pairs, exact': Task('configs/reach/pelk-51_fcn_1xb4-300it_offset-pairs-exact-64x64.py'),
}
SEED, PAIRS, EXACT = TASKS


@dataclass(frozen=True)
class Training:
    """One training of the table; ``iterations`` None are those of the config."""

    task: str
    blocks: int
    mixer: str
    seed: int
    iterations: int | None

    @property
    def name(self) -> str:
        words = f'{self.task} {self.blocks} {self.mixer} {self.seed}'.replace(',', '').split()
        return '-'.join(words)

    def config(self) -> Config:
        """Return the complete config, which ``tools/train.py`` takes, too."""
        cfg = load_config(str(ROOT / TASKS[self.task].config))
        backbone = cfg.model.backbone
        backbone.update(MIXERS[self.mixer][0])
        backbone.arch.depths = [self.blocks]
        if backbone.type == 'pelk_mm.SLaK':
            backbone.arch.pop('center')
            for argument in NOT_OF_STRIPES:
                backbone.pop(argument)
        cfg.randomness = dict(seed=self.seed)
        # Seed 0 is that of the validation maps.
        cfg.train_dataloader.dataset.seed = self.seed + 1
        if self.iterations is not None:
            warm_up = min(cfg.param_scheduler[0].end, max(1, self.iterations // 10))
            cfg.param_scheduler[0].end = warm_up
            cfg.param_scheduler[1].update(begin=warm_up, end=self.iterations, T_max=self.iterations - warm_up)
            cfg.train_cfg.update(max_iters=self.iterations, val_interval=self.iterations)
            cfg.default_hooks.checkpoint.interval = self.iterations
        return cfg

    def result(self, work_dir: Path) -> dict:
        """Train, unless it is done, and return the metrics with the minutes."""
        cfg = self.config()
        folder = work_dir / f'{self.name}_{digest(cfg.to_dict())}'
        folder.mkdir(parents=True, exist_ok=True)
        return Steps(ROOT, lambda line: None).run_once(folder, 'result', partial(self._train, cfg, folder))

    def _train(self, cfg: Config, folder: Path) -> dict:
        start = time.monotonic()
        # MMEngine keeps loggers and visualizers by name in a process.
        cfg.work_dir, cfg.experiment_name, cfg.visualizer.name = str(folder), folder.name, folder.name
        configure_training(cfg, resume='auto')
        run(cfg, 'train')
        log = max(folder.glob('*/vis_data/scalars.json'))
        last = json.loads(log.read_text(encoding='utf-8').splitlines()[-1])
        metrics = {key: value for key, value in last.items() if key.startswith('reach/') or key == 'mIoU'}
        return dict(task=self.task, blocks=self.blocks, mixer=self.mixer, seed=self.seed, metrics=metrics,
                    minutes=(time.monotonic() - start) / 60)


def use_share_of_cores(threads: int, log: Path) -> None:
    """Prepare a process of the pool: its threads, and a file for what the trainings print."""
    torch.set_num_threads(threads)
    os.chdir(ROOT)
    with open(log.with_stem(f'{log.stem}_{os.getpid()}'), 'a', encoding='utf-8') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def run_all(trainings: list[Training], work_dir: Path, at_once: int) -> list[dict]:
    """Run the trainings that are not done, some at a time, and return all results in this order."""
    start, results = time.monotonic(), {}
    threads = max(1, torch.get_num_threads() // at_once)
    with ProcessPoolExecutor(at_once, get_context('spawn'), use_share_of_cores,
                             (threads, work_dir / 'trainings.log')) as pool:
        futures = {pool.submit(training.result, work_dir): training for training in trainings}
        try:
            for future in as_completed(futures):
                training = futures[future]
                results[training] = future.result()
                minutes = (time.monotonic() - start) / 60
                print(f'[{len(results)}/{len(trainings)}, {minutes:.0f} min] {training.name}: '
                      f'{results[training]["metrics"][ACCURACY]:.1f} %', flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[training] for training in trainings]


class Results:
    """The accuracies in per cent, by task, blocks, mixer and range of the distance."""

    def __init__(self, results: list[dict]) -> None:
        self.results = sorted(results, key=lambda result: result['seed'])

    def values(self, task: str, blocks: int, mixer: str, metric: str = ACCURACY) -> list[float]:
        """Return the accuracy of each seed, in order."""
        found = [result['metrics'][metric] for result in self.results
                 if (result['task'], result['blocks'], result['mixer']) == (task, blocks, mixer)]
        if not found:
            raise KeyError(f'no training of {task}, {blocks} blocks, {mixer}')
        return found

    def ranges(self, task: str) -> list[str]:
        """Return the names of the metrics by distance."""
        names = next(result['metrics'] for result in self.results if result['task'] == task)
        return [name for name in names if name.startswith(f'{ACCURACY}_')]

    def groups(self) -> Iterator[tuple[str, int]]:
        """Yield each task with each number of blocks, once."""
        return iter(dict.fromkeys((task, blocks) for task in TASKS for blocks in TASKS[task].blocks
                                  if any((each['task'], each['blocks']) == (task, blocks) for each in self.results)))


def compare(ours: list[float], others: list[float]) -> dict:
    """Return the mean of the paired differences, half its 95 % interval by Student's t, and p; the last for 2 seeds."""
    pairs = [one - other for one, other in zip(ours, others)]
    if len(pairs) < 2 or stdev(pairs) == 0:
        return dict(difference=mean(pairs))
    half = student_t.ppf(0.975, len(pairs) - 1) * stdev(pairs) / len(pairs)**0.5
    return dict(difference=mean(pairs), half_interval=float(half), p=float(ttest_rel(ours, others).pvalue))


@cache
def bounds(task: str, mixer: str) -> float:
    """Return the upper bound of one block in per cent, a mean over the ranges for offset pairs."""
    cells = MIXERS[mixer][1]
    if task == 'nearest seed':
        return 100 * nearest_seed_bound(cells).strict
    return 100 * mean(offset_pairs_bound(cells, task.endswith('exact')))


def summarise(results: Results) -> list[dict]:
    """Return a row for each task, number of blocks and mixer."""
    rows = []
    for task, blocks in results.groups():
        mixers = [mixer for mixer in MIXERS if any(each['mixer'] == mixer for each in results.results)]
        for mixer in mixers:
            values = results.values(task, blocks, mixer)
            row = dict(task=task, blocks=blocks, mixer=mixer, values=values, mean=mean(values),
                       sd=stdev(values) if len(values) > 1 else 0.0,
                       ranges={name.removeprefix(f'{ACCURACY}_'): mean(results.values(task, blocks, mixer, name))
                               for name in results.ranges(task)})
            if blocks == 1:
                row['bound'] = bounds(task, mixer)
            if task == EXACT:
                row['drawn'] = 100 * mean(drawn_pairs_accuracy(MIXERS[mixer][1], exact=True))
            if mixer != REFERENCE and REFERENCE in mixers:
                row.update(compare(values, results.values(task, blocks, REFERENCE)))
            rows.append(row)
    return rows


def to_table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    header = ('task', 'blocks', 'mixer', 'runs', 'mean', 'sd', 'bound', 'drawn', f'minus {REFERENCE}', '95 % interval',
              'p')
    lines = []
    for row in rows:
        difference, interval, p = '', '', ''
        if 'difference' in row:
            difference = f'{row["difference"]:+.1f}'
        if 'p' in row:
            low, high = (row['difference'] + sign * row['half_interval'] for sign in (-1, 1))
            interval, p = f'{low:+.1f} ... {high:+.1f}', f'{row["p"]:.2g}'
        lines.append((row['task'], row['blocks'], row['mixer'], len(row['values']), f'{row["mean"]:.1f}',
                      f'{row["sd"]:.1f}', *(f'{row[name]:.1f}' if name in row else '' for name in ('bound', 'drawn')),
                      difference, interval, p))
    return to_markdown_table(header, lines, (header[0], header[2]))


def draw(rows: list[dict]) -> Figure:
    """Draw accuracy over distance, one panel for each task and number of blocks."""
    groups = list(dict.fromkeys((row['task'], row['blocks']) for row in rows))
    figure = Figure(figsize=(3.4 * len(groups), 3.9), layout='constrained')
    for axis, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups):
        for row in (row for row in rows if (row['task'], row['blocks']) == group):
            style = '--' if row['mixer'].startswith('dense') else '-'
            axis.plot(list(row['ranges']), list(row['ranges'].values()), style, marker='o', markersize=3,
                      color=COLORS[row['mixer']], label=row['mixer'])
        names = list(next(row['ranges'] for row in rows if (row['task'], row['blocks']) == group))
        axis.set_xticks(range(len(names)), [name.replace('_', ' - ') for name in names], rotation=45, ha='right')
        axis.set(title=f'{group[0]}, {group[1]} block{"s" * (group[1] > 1)}', xlabel='distance in pixels')
        axis.spines[['top', 'right']].set_visible(False)
    figure.axes[0].set_ylabel('accuracy (%)')
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=len(MIXERS),
                  frameon=False)
    return figure


@dataclass(frozen=True)
class Prediction:
    """A sentence, with a check that gives its numbers, each with whether it is as expected."""

    text: str
    check: Callable[[Callable[..., float]], list[tuple[str, float, bool]]]


def at_least(name: str, value: float, least: float) -> tuple[str, float, bool]:
    return f'{name} {value:.1f} >= {least:g}', value, value >= least


def at_most(name: str, value: float, most: float) -> tuple[str, float, bool]:
    return f'{name} {value:.1f} <= {most:g}', value, value <= most


NEAR, MIDDLE, FAR = (f'{ACCURACY}_{name}' for name in ('4_9', '9_16', '16_26'))
# ``acc(task, mixer, blocks=1, metric=ACCURACY)`` is a mean over the seeds. As on docs/benchmarks/reach.md.
PREDICTIONS = (
    Prediction(
        'No mixer with one block is more than 1.5 points above its upper bound, on nearest seed and on exact pairs.',
        lambda acc: [at_most(f'{task}: {mixer}', acc(task, mixer), bounds(task, mixer) + 1.5)
                     for task in (SEED, EXACT) for mixer in MIXERS]),
    Prediction(
        'Nearest seed, one block: dense 51 is at least 25 points above stripe 51.',
        lambda acc: [at_least('difference', acc(SEED, 'dense 51') - acc(SEED, 'stripe 51'), 25)]),
    Prediction(
        'Nearest seed, one block: peripheral 51 is at most 9 points below dense 51, and peripheral 31 at most 6 below '
        'dense 31.',
        lambda acc: [at_most(f'dense - peripheral {size}', acc(SEED, f'dense {size}') - acc(SEED, f'peripheral {size}'),
                             most) for size, most in ((51, 9), (31, 6))]),
    Prediction(
        'Nearest seed, one block: 51 is at least 8 points above 31, dense and peripheral.',
        lambda acc: [at_least(f'{kind} 51 - 31', acc(SEED, f'{kind} 51') - acc(SEED, f'{kind} 31'), 8)
                     for kind in ('dense', 'peripheral')]),
    Prediction(
        'Nearest seed, one block: peripheral 101 differs from peripheral 51 by at most 5 points.',
        lambda acc: [at_most('difference', abs(acc(SEED, 'peripheral 101') - acc(SEED, 'peripheral 51')), 5)]),
    Prediction(
        'Nearest seed: four blocks of 7x7 stay at least 10 points below one block of peripheral 51.',
        lambda acc: [at_least('difference', acc(SEED, 'peripheral 51') - acc(SEED, '7x7', 4), 10)]),
    Prediction(
        'Nearest seed: a second block gives stripe 51 at least 10 points, and it stays at least 5 below two blocks of '
        'peripheral 51.',
        lambda acc: [at_least('second block', acc(SEED, 'stripe 51', 2) - acc(SEED, 'stripe 51'), 10),
                     at_least('peripheral - stripe', acc(SEED, 'peripheral 51', 2) - acc(SEED, 'stripe 51', 2), 5)]),
    Prediction(
        'Nearest seed: with two blocks, peripheral 51 is at most 3 points below dense 51.',
        lambda acc: [at_most('difference', acc(SEED, 'dense 51', 2) - acc(SEED, 'peripheral 51', 2), 3)]),
    Prediction(
        'Offset pairs: dense 51 and peripheral 51 reach 90 % and differ by at most 3 points; 7x7 and stripe 51 stay '
        'below 57 %.',
        lambda acc: [*(at_least(mixer, acc(PAIRS, mixer), 90) for mixer in ('dense 51', 'peripheral 51')),
                     at_most('difference', abs(acc(PAIRS, 'dense 51') - acc(PAIRS, 'peripheral 51')), 3),
                     *(at_most(mixer, acc(PAIRS, mixer), 57) for mixer in ('7x7', 'stripe 51'))]),
    Prediction(
        'Offset pairs: dense 31 and peripheral 31 reach 90 % up to 15 pixels and stay below 60 % from 16 pixels on.',
        lambda acc: [
            check for mixer in ('dense 31', 'peripheral 31')
            for check in (*(at_least(f'{mixer}, {name[10:]}', acc(PAIRS, mixer, metric=name), 90)
                            for name in (NEAR, MIDDLE)),
                          at_most(f'{mixer}, {FAR[10:]}', acc(PAIRS, mixer, metric=FAR), 60))]),
    Prediction(
        'Exact pairs from 9 to 15 pixels: peripheral 31, 51 and 101 lose, at least 25 points below dense 51 and below '
        '68 %.',
        lambda acc: [
            check for mixer in ('peripheral 31', 'peripheral 51', 'peripheral 101')
            for ours in [acc(EXACT, mixer, metric=MIDDLE)]
            for check in (at_most(mixer, ours, 68),
                          at_least(f'dense 51 - {mixer}', acc(EXACT, 'dense 51', metric=MIDDLE) - ours, 25))]),
    Prediction(
        'Exact pairs from 16 to 25 pixels: peripheral 51 is at least 25 points below dense 51 and below 64 %.',
        lambda acc: [at_most('peripheral 51', acc(EXACT, 'peripheral 51', metric=FAR), 64),
                     at_least('difference', acc(EXACT, 'dense 51', metric=FAR) -
                              acc(EXACT, 'peripheral 51', metric=FAR), 25)]),
)


def verdicts(results: Results) -> list[dict]:
    """Return for each prediction whether it held, from the means; ``'not run'`` if trainings are missing."""
    def accuracy(task: str, mixer: str, blocks: int = 1, metric: str = ACCURACY) -> float:
        return mean(results.values(task, blocks, mixer, metric))

    found = []
    for number, prediction in enumerate(PREDICTIONS, 1):
        try:
            checks = prediction.check(accuracy)
        except KeyError:
            found.append(dict(number=number, text=prediction.text, verdict='not run', numbers=[]))
            continue
        held = all(as_expected for _, _, as_expected in checks)
        found.append(dict(number=number, text=prediction.text, verdict='held' if held else 'failed',
                          numbers=[text + ('' if as_expected else ' (failed)') for text, _, as_expected in checks]))
    return found


def report(results: Results, settings: dict, minutes: float, work_dir: Path) -> str:
    """Write report.json, report.md and report.png, and return the text of report.md."""
    rows, found = summarise(results), verdicts(results)
    lines = [(each['number'], each['text'], f'**{each["verdict"]}**', '; '.join(each['numbers'])) for each in found]
    header = ('', 'prediction', 'verdict', 'numbers')
    text = f'{to_table(rows)}\n\n{to_markdown_table(header, lines, header[1:])}\n'
    content = dict(environment=environment('cpu'), settings=settings, minutes=minutes, rows=rows, predictions=found,
                   runs=results.results)
    (work_dir / 'report.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    (work_dir / 'report.md').write_text(text, encoding='utf-8')
    draw(rows).savefig(work_dir / 'report.png', dpi=100)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'reach', help='folder of all runs')
    parser.add_argument('--at-once', type=int, default=2, help='trainings at a time, each with its share of the cores')
    parser.add_argument('--seeds', type=int, default=5, help='trainings of each network')
    parser.add_argument('--iterations', type=int, help="of each training, default those of the task's config")
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS), help='some of the tasks')
    parser.add_argument('--mixers', nargs='+', choices=MIXERS, default=list(MIXERS), help='some of the mixers')
    parser.add_argument('--blocks', nargs='+', type=int, choices=(1, 2, 4), default=[1, 2, 4],
                        help='some of the depths')
    args = parser.parse_args()
    for name, least in dict(at_once=1, seeds=1, iterations=2).items():
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f'--{name.replace("_", "-")} must be at least {least}, got {getattr(args, name)}')
    work_dir, start = args.work_dir.resolve(), time.monotonic()
    work_dir.mkdir(parents=True, exist_ok=True)
    # Seeds outermost: what is there when it is stopped are pairs. The slowest first, so that none is left at the end.
    trainings = [Training(task, blocks, mixer, seed, args.iterations) for seed in range(args.seeds)
                 for task in args.tasks for blocks in reversed(TASKS[task].blocks) if blocks in args.blocks
                 for mixer in args.mixers]
    if not trainings:
        parser.error(f'--blocks {args.blocks} has nothing of --tasks {args.tasks}')
    results = Results(run_all(trainings, work_dir, args.at_once))
    minutes = (time.monotonic() - start) / 60
    settings = dict(seeds=args.seeds, iterations=args.iterations or 'as in the configs', at_once=args.at_once)
    print(f'\n{report(results, settings, minutes, work_dir)}\n{minutes:.0f} minutes in this run; written to '
          f'{work_dir / "report.json"}, report.md and report.png')


if __name__ == '__main__':
    sys.exit(main())
