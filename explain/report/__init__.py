"""Figures, tables and the page, all made from rows, so that no row depends on this folder; knows all others."""
