"""Tokenizers of the families, in the file format of the `transformers` folders."""
