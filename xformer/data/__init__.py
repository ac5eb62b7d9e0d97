"""From text files to packed batches: numpy in, numpy out."""
