"""The numbers that the PeLK paper prints."""

import json
from importlib.resources import files


def load_paper_tables() -> dict:
    """Every table of the paper (arXiv 2403.07589): params in M (non-zero), FLOPs in G multiply-adds, metrics in %.

    Returns:
        dict: ``table2_ade20k``, ``table3_coco``, ``table4_imagenet``, ...; each holds ``rows``, dicts with ``method``.
    """
    return json.loads(files(__package__).joinpath('paper_tables.json').read_text(encoding='utf-8'))
