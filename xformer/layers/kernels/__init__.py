"""Accelerated attention cores, written in Pallas, which other cores never need."""
