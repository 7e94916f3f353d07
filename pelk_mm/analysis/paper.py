"""The numbers that the PeLK paper prints."""

import json
from importlib.resources import files


def load_paper_tables() -> dict:
    """Return every table and figure of the paper (arXiv 2403.07589) with the configs or command that reproduce it.

    Params are in M (non-zero), FLOPs in G multiply-adds, metrics in %.

    Returns:
        dict: ``table1_dense_vs_stripe`` to ``table8_throughput``, each with ``rows``, dicts; ``fig1`` to ``fig6``,
        dicts. Each row and figure has ``configs`` (paths in the repository), ``command``, or ``reason``, why there
        is neither.
    """
    return json.loads(files(__package__).joinpath('paper_tables.json').read_text(encoding='utf-8'))
