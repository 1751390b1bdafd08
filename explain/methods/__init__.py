"""What the exercises compute and measure, as pure functions of tensors; may import basics, data and networks."""
