"""Figures, tables and the page, all made from rows: no row depends on this folder, which imports all others."""
