"""Write a run's report: one HTML page with its curves, samples, configuration and provenance.

The page needs no other file and no network, and may be written while the run goes on. The loss
curves are also saved as a picture, loss.png, beside it.

Example:
  xformer report runs/quickstart
"""

import argparse

from xformer.training.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run folder.

    Args:
        parser: The command's parser.
    """
    parser.add_argument("run", metavar="RUN", help="run folder")


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints where it is.

    Args:
        args: Parsed arguments.

    Returns:
        0.
    """
    print(write_report(args.run))
    return 0
