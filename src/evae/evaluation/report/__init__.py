"""Figures and pages of a result.

Enters: records and cells. Leaves: HTML, Markdown, PNG. May import: all other rooms of `evaluation`.
"""
