"""How well a model's distributions suit a uniform quantizer. Reads models and never changes them."""

from .distances import gap_to_uniform
from .report import LayerReport, analyze, format_table

__all__ = ['LayerReport', 'analyze', 'format_table', 'gap_to_uniform']
