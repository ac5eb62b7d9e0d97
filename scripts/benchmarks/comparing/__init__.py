"""What `peers.py` compares: cases, the processes that compute them, and what is said about them."""
