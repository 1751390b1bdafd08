"""Errors with their cure, files written all or nothing, results shared between functions; knows nothing else."""
