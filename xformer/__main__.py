"""The command line as `python -m xformer`, wherever the script `xformer` is not on the path."""

import sys

from xformer.cli.main import run_process

if __name__ == "__main__":
    sys.exit(run_process())
