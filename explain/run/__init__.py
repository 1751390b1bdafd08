"""Running an exercise: command line, output folder, resumable rows, signals, progress; may import all but report."""
