"""Errors with their cure, atomic writes, types of options, shared results; imports no other folder of `explain`."""
