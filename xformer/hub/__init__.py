"""Where the files of a model come from: a local folder, or a repository of the Hugging Face hub.

Everything that loads (configs, weights, tokenizers) opens a `Source` and asks it for files by name,
so that revision, cache, offline use and the refusal of what is unsafe are settled once, here.
"""

from xformer.hub.former import without_former
from xformer.hub.opening import open_source
from xformer.hub.pushing import push_folder
from xformer.hub.source import READABLE, HubOptions, Source

__all__ = ["READABLE", "HubOptions", "Source", "open_source", "push_folder", "without_former"]
