"""MNER-QG on Ray: multimodal named entity recognition with query grounding."""

__version__ = "0.1.0"
