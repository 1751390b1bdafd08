"""What the exercises stand on, one file per noun; a reader of one need not open it.

Nothing here imports an exercise or common.py. Each line knows those above it, and nothing of those below:

- errors
- files, shell, progress, pictures; logits; evaluation
- checkpoints, inference; rectifiers, grad_cam, dropout; maps, faithfulness, disturbances; calibration
- lookup, labels, label_order, datasets, sample; options
- own_networks, preprocessing; networks; class_names
- figures; priors; selective; sections, page; output; evaluation_report, faithfulness_report, uncertainty_report
- rows; command_line; ascent_state, archetypes
"""
