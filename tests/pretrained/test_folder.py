"""The functional face's one call: config, weights and placement of a folder or a hub name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer import partitioning, read_params
from xformer.hub import HubOptions
from xformer.layers.execution import Execution
from xformer.layers.heads import Base, CausalLM
from xformer.layers.stack import restack
from xformer.partitioning import MeshConfig, Rules
from xformer.pretrained.saving import save_params
from xformer.pretrained.xglm import WEIGHTS


@pytest.fixture
def folder(tmp_path, draw):
    """A folder with an untied head."""
    save_params(tmp_path, draw(), WEIGHTS)
    return tmp_path


def test_what_was_written_is_read(folder, config, draw, assert_same):
    assert_same(read_params(folder, config, CausalLM()), draw())
    assert_same(read_params(str(folder), config, Base()), draw()["model"])
    options = HubOptions(subfolder=folder.name)
    assert_same(read_params(folder.parent, config, CausalLM(), options=options), draw())


def test_dtype_is_the_one_asked_for(folder, config, draw, assert_same):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), draw())
    assert_same(read_params(folder, config, CausalLM(), dtype=jnp.bfloat16), half)
    save_params(folder, half, WEIGHTS)
    assert_same(read_params(folder, config, CausalLM(), dtype=None), half)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
    assert_same(read_params(folder, config, CausalLM()), single)


def test_scanned_layers_go_straight_onto_a_mesh(folder, config, draw, shapes_of, assert_same):
    shapes = shapes_of(layers="scan")
    names = partitioning.axis_names(shapes_of(layers="scan", boxed=True))
    mesh = partitioning.make_mesh(MeshConfig(data=1, fsdp=8))
    places = partitioning.shardings(shapes, names, mesh, Rules())
    execution = Execution(layers="scan")
    params = read_params(folder, config, CausalLM(), execution=execution, shardings=places)
    assert_same(params, restack(draw(), "scan"))
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == places


def test_missing_weights_are_named(folder, config, draw):
    save_params(folder, draw()["model"], WEIGHTS)
    with pytest.raises(ValueError, match=r"lacks the weights \['lm_head/kernel'\]"):
        read_params(folder, config, CausalLM())


def test_folder_without_weights_is_refused(tmp_path, config):
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor flax_model.msgpack"):
        read_params(tmp_path, config, CausalLM())


def test_message_about_very_many_missing_weights_is_short(folder, config):
    deep = dataclasses.replace(config, num_layers=40)
    with pytest.raises(ValueError, match=r"lacks the weights \[.*\] and \d+ more") as caught:
        read_params(folder, deep, CausalLM())
    assert len(str(caught.value)) < 10_000
