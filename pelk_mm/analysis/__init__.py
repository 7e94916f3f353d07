"""Costs and pictures of models as importable functions; the tools only parse arguments."""

from .complexity import Complexity, Cost, count_complexity, default_shape
from .model_building import build_model
from .paper import load_paper_tables

__all__ = ['Complexity', 'Cost', 'build_model', 'count_complexity', 'default_shape', 'load_paper_tables']
