"""Images, datasets, labels and names; knows the basics."""
