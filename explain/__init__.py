"""The rooms that the exercises stand on; a reader of one exercise need not open them.

In the order of who may know whom; nothing here imports an exercise or common.py:

- basics: errors, files, shared results
- data: pictures, datasets, labels and names
- networks: architectures, weights, preprocessing, the fast form, running them
- methods: rectifiers, feature maps, dropout, priors, faithfulness, calibration, selective prediction
- run: command line, output folder, resumable rows, shell, progress
- report: figures, the drawing of each exercise, the page; no row depends on it
"""
