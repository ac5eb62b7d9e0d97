"""Generation: pure decode steps and the loops around them."""
