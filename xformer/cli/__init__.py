"""The command line: `xformer COMMAND ...`."""
