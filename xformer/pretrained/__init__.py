"""Checkpoints in the published folder format: config.json and safetensors."""
