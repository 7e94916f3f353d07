"""Write the paper's tables with our runs beside them, and tables of the other runs: Markdown, CSV and an HTML page.

Metrics are read from work directories, published figures from the metafiles of the configs, params and FLOPs are
counted. Runs of the same config are one row. Rows without a run say so.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from mmengine.logging import MMLogger
from rich.console import Console

from pelk_mm import __version__, compat
from pelk_mm.reports import CostCounter, Leaderboard, Problem, find_runs, read_catalogue, to_csv, to_html, to_markdown

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dirs', nargs='*', type=Path, help='work directories, or folders that contain such')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/leaderboard'),
        help='folder to write to, default work_dirs/leaderboard')
    parser.add_argument('--overwrite', action='store_true', help='replace the leaderboard that the folder holds')
    parser.add_argument(
        '--throughput', nargs='+', type=Path, default=[], metavar='FILE', help='JSON of tools/benchmarks/throughput.py')
    parser.add_argument('--no-costs', action='store_true', help='do not count params and FLOPs, which takes minutes')
    args = parser.parse_args()
    for folder in args.work_dirs:
        if not folder.is_dir():
            parser.error(f'work_dirs must be folders, got {folder}')
    for file in args.throughput:
        if not file.is_file():
            parser.error(f'--throughput: no such file, {file}')
    existing = [file for file in outputs(args.out) if file.exists()]
    if existing and not args.overwrite:
        parser.error(f'--out: {existing[0]} exists; choose another folder, or replace it by --overwrite')
    return args


def outputs(folder: Path) -> list[Path]:
    return [folder / f'leaderboard.{ending}' for ending in ('md', 'csv', 'html')]


def read_throughput(files: list[Path], problems: list[Problem]) -> list[tuple[Path, dict]]:
    results = []
    for file in files:
        try:
            result = json.loads(file.read_text(encoding='utf-8'))
            missing = [key for key in ('environment', 'setting', 'inference') if key not in result]
            if missing:
                raise ValueError(f'it lacks {", ".join(missing)}')
            results.append((file, result))
        except (ValueError, TypeError) as error:
            problems.append(Problem(str(file), f'is not a result of tools/benchmarks/throughput.py: {error}'))
    return results


def main() -> None:
    args = parse_args()
    compat.setup()
    # Every model that is counted would log.
    MMLogger.get_instance('mmengine', log_level='WARNING')
    runs, problems = find_runs(args.work_dirs)
    entries, broken = read_catalogue(ROOT)
    problems += broken
    throughput = read_throughput(args.throughput, problems)
    counter = None if args.no_costs else CostCounter(args.out / 'costs.json')
    console = Console(stderr=True)
    with console.status('reading') as status:
        board = Leaderboard(runs, entries, ROOT, counter, lambda name: status.update(f'counting {name}'))
        tables = [*board.paper_tables(throughput), *board.own_tables()]
    problems += board.problems
    made = f'Made {time.strftime("%Y-%m-%d %H:%M")} by PeLK-MM {__version__} from {len(runs)} work directories.'
    args.out.mkdir(parents=True, exist_ok=True)
    pages = (to_markdown(tables, problems, made), to_csv(tables), to_html(tables, problems, made))
    for file, text in zip(outputs(args.out), pages):
        # Names of files may hold bytes that are no text.
        file.write_text(text, encoding='utf-8', errors='backslashreplace')
        print(file)
    for problem in problems:
        print(f'left out: {problem.where} {problem.text}', file=sys.stderr)


if __name__ == '__main__':
    main()
