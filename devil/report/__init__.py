"""Explanations made visible: heat maps, figures, and pages that need no network to view.

Reading order: `heatmap` (numbers to colours), `figure` (one PNG), `page` (HTML, one picture or a
report on many). `files` writes whole files or none. Nothing here computes an explanation.
"""
