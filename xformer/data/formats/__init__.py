"""Reading documents out of files: one module for each format, behind `base.RawFile`."""
