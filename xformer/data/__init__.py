"""From files of documents to packed batches: numpy in, numpy out."""
