"""The families, one file each: config, blocks, model, heads."""

from xformer.models.build import build, supported_heads

__all__ = ["build", "supported_heads"]
