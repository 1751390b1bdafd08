"""What the exercises compute and measure, as pure functions of tensors; knows networks."""
