"""The code that the exercises build on; a reader of one exercise need not open it.

A folder imports only from the folders above it, and nothing here imports an exercise or common.py:

- basics: errors, files, types of options, shared results
- data: image files, datasets, labels and names
- networks: architectures, weights, preprocessing, the fast form, running them
- methods: rectifiers, feature maps, dropout, priors, faithfulness, calibration, selective prediction
- run: command line, output folder, resumable rows, shell, progress
- report: figures, the drawing of each exercise, the page; no row depends on it
"""
