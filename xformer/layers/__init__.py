"""The layer library: mechanisms with one right answer, shared by the four families."""
