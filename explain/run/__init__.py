"""A run from the shell: command line, output folder, resumable rows, signals, progress; knows networks."""
