"""Guards around the `tokenizers` library: its errors, its memory, its use by several threads."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

# The library takes about 300 bytes for a byte of pieces; the published 256,000 have 3 MB.
MAX_PIECES_BYTES = 6 * 2**20
# Long ones overflow the library's stack, and merges are sought in time quadratic in the length;
# trained pieces have 16 characters or so.
MAX_PIECE_LENGTH = 512


class BackendLock:
    """Lets one thread at a time use a Rust tokenizer.

    The library refuses to change a tokenizer that another thread encodes or decodes with, and what
    it holds of truncation and padding must be that of the call.  A pickle or a deep copy has a
    lock of its own.
    """

    def __init__(self) -> None:
        """Begins unlocked."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        """Waits until no other thread has the lock."""
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        """Lets the next thread have it."""
        self._lock.release()

    def __reduce__(self) -> tuple[type["BackendLock"], tuple[()]]:
        """Makes another lock of a pickle or a deep copy."""
        return BackendLock, ()


@contextlib.contextmanager
def rust_errors(meaning: str) -> Iterator[None]:
    """Turns what the Rust library raises into ValueErrors, its panics included.

    Args:
        meaning: what must hold, put in front of the library's own words.

    Yields:
        Nothing.

    Raises:
        ValueError: the block raised.
        RuntimeError: another thread is using the tokenizer, which says nothing of arguments.
    """
    try:
        yield
    except BaseException as error:  # a panic is no Exception, and its class cannot be imported
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, RuntimeError) and "borrowed" in str(error):
            raise
        raise ValueError(f"{meaning}: {str(error):.500}") from error


def check_pieces(pieces: Sequence[str], origin: str) -> None:
    """Refuses a vocabulary that could only be meant to fill the memory.

    Args:
        pieces: its texts.
        origin: where they come from, for messages.

    Raises:
        ValueError: one is too long, or all together are.
    """
    longest = max(pieces, key=len, default="")
    if len(longest) > MAX_PIECE_LENGTH:
        raise ValueError(
            f"{origin}: a piece of the vocabulary must have at most {MAX_PIECE_LENGTH} characters, "
            f"got {len(longest)}: {longest[:20]!r}..."
        )
    total = sum(len(piece.encode("utf-8", "surrogatepass")) for piece in pieces)
    if total > MAX_PIECES_BYTES:
        raise ValueError(
            f"{origin}: the pieces of the vocabulary must have at most {MAX_PIECES_BYTES} bytes "
            f"altogether, got {total}"
        )
