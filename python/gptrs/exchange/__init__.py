"""Files of others, both ways: names and layouts of other programs exist here alone."""
