"""Train and test the configs of a table one after another, and write the table with the paper's figures beside ours.

Started again, it continues where it was stopped and skips finished parts. The table is a folder with a
metafile.yml that names the configs, see configs/ablations/README.md.
"""

import argparse
import os
import shlex
import sys
import time
from functools import partial
from pathlib import Path

from pelk_mm.engine.steps import StepFailed, Steps, digest
from pelk_mm.reports import Launcher, Trial, plan_sweep, save_sweep, sweep_markdown, sweep_table

ROOT = Path(__file__).resolve().parents[2]
STEPS = Steps(ROOT, partial(print, flush=True))
DIGITS = Path('data/digit_scenes')
MAKE_DIGITS = ('python', 'tools/dataset_converters/digit_scenes.py')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('table', type=Path, help='folder of configs, e.g. configs/ablations/table5_sharing_grid')
    parser.add_argument(
        '--digits',
        action='store_true',
        help='train small models on the built-in data instead, which is made if need be; results then hold for the '
        'present code only and are not mixed with those of other code')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=ROOT / 'work_dirs' / 'sweeps',
        help='folder of all sweeps, default work_dirs/sweeps of the repository')
    parser.add_argument('--gpus', type=int, help='start so many processes, by tools/dist_train.sh and dist_test.sh')
    parser.add_argument('--slurm', metavar='PARTITION', help='start by tools/slurm_train.sh and slurm_test.sh')
    parser.add_argument('--amp', action='store_true', help='as of tools/train.py')
    parser.add_argument('--auto-scale-lr', action='store_true', help='as of tools/train.py')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override values of every classifier')
    parser.add_argument(
        '--downstream-cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='those of every segmentor')
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument('--print-commands', action='store_true', help='run nothing: print what is left to do')
    mode.add_argument('--collect', action='store_true', help='run nothing: write the table of what is finished')
    args = parser.parse_args()
    if args.gpus is not None and (args.gpus < 1 or args.slurm is not None):
        parser.error('--gpus must be a positive number and goes without --slurm, which takes GPUS from the environment')
    if not (args.table / 'metafile.yml').is_file():
        tables = sorted(str(path.parent.relative_to(ROOT)) for path in ROOT.glob('configs/ablations/*/metafile.yml'))
        parser.error(f'table must be a folder with a metafile.yml, got {args.table}. There are {", ".join(tables)}')
    # Everything is done at the root of the repository, so that the commands are as one would type them there.
    args.table, args.work_dir = (relative_to_root(path) for path in (args.table, args.work_dir))
    return args


def relative_to_root(path: Path) -> Path:
    path = path.resolve()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def commands(trial: Trial, launcher: Launcher) -> list[tuple[str, list[str]]]:
    """Return the commands that are left for a trial, each with the name of its log."""
    if trial.result is not None:
        return []
    train = [] if trial.is_trained else [('train.log', trial.train_command(launcher))]
    return [*train, ('test.log', trial.test_command(launcher))]


def run(trial: Trial, launcher: Launcher) -> None:
    left = commands(trial, launcher)
    if not left:
        print(f'\n# {trial.name} was finished before: {trial.folder}', flush=True)
    elif trial.start is not None and not trial.start.is_trained:
        raise StepFailed(f'{trial.name} needs {trial.start.checkpoint}, which is not trained.')
    for log, command in left:
        STEPS.run(trial.folder / log, *command)


def main() -> None:
    args = parse_args()
    os.chdir(ROOT)
    launcher = Launcher(args.gpus, args.slurm,
                        [*['--amp'] * args.amp, *['--auto-scale-lr'] * args.auto_scale_lr])
    environment = ''
    if args.digits:
        if not args.print_commands and not args.collect:
            STEPS.run(args.work_dir / 'data.log', *MAKE_DIGITS)
        elif not (DIGITS / 'meta.json').exists():
            sys.exit(f'There is no {DIGITS} yet. Make it first: {shlex.join(MAKE_DIGITS)}')
        environment = STEPS.digest_environment(DIGITS)
    trials = plan_sweep(
        args.table,
        args.work_dir,
        options=dict(mmpretrain=args.cfg_options, mmseg=args.downstream_cfg_options),
        digits=args.digits,
        environment=environment)

    failed, start = 0, time.monotonic()
    for trial in trials:
        if args.print_commands:
            for _, command in commands(trial, launcher):
                print(shlex.join(command))
        elif not args.collect:
            try:
                run(trial, launcher)
            except StepFailed as error:
                print(f'\n{error}', flush=True)
                failed += 1
    if args.print_commands:
        return

    data = 'digits' if args.digits else 'ours'
    title = f'{args.table.name} on the built-in data' if args.digits else args.table.name
    table = sweep_table(title, trials)
    folders = [trial.folder.name for trial in trials]
    folder = args.work_dir / f'{args.table.name}{"_digits" * args.digits}_{digest(folders)}'
    files = save_sweep(table, trials, folder, data)
    print(f'\n{sweep_markdown(table, data)}\n')
    if not args.collect:
        print(f'{(time.monotonic() - start) / 60:.1f} minutes')
    print('Written to', *files, sep='\n  ')
    if failed:
        sys.exit(f'{failed} of {len(trials)} trainings failed, see above.')


if __name__ == '__main__':
    try:
        main()
    except StepFailed as error:
        sys.exit(str(error))
