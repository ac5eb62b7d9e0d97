"""The same weights and batches, trained by PyTorch and by xformer: the same losses."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from xformer import partitioning
from xformer.objectives import NextToken
from xformer.optim import AdamW, Cosine
from xformer.partitioning import MeshConfig
from xformer.pretrained.xglm import WEIGHTS
from xformer.training.state import DROPOUT, blueprint, create_state, purpose_key
from xformer.training.steps import compile_train_step

STEPS = 50
ROWS, LENGTH = 8, 32


def batches(vocabulary):
    """Random walks over the vocabulary: something to learn, and rows padded on the right."""
    draw = np.random.default_rng(0)
    for _ in range(STEPS):
        walks = draw.integers(0, 7, (ROWS, LENGTH)).cumsum(axis=1) + draw.integers(4, 60, (ROWS, 1))
        ids = (4 + walks % (vocabulary - 4)).astype(np.int32)
        lengths = draw.integers(LENGTH // 2, LENGTH + 1, ROWS)
        segments = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
        ids = np.where(segments, ids, 1).astype(np.int32)
        positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape) * segments
        yield {"input_ids": ids, "segment_ids": segments, "position_ids": positions}


def torch_losses(config, params, optimizer):
    """Trains the published model with PyTorch's AdamW, schedule and clipping set as ours."""
    import torch
    import transformers

    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    model = transformers.XGLMForCausalLM(transformers.XGLMConfig(**fields))
    flat = traverse_util.flatten_dict(params)
    places = {path: WEIGHTS.weight(path) for path in flat}
    tensors = {
        place.name: torch.tensor(place.layout.to_published(np.asarray(flat[path])))
        for path, place in places.items()
    }
    _, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    model.train()
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if p.ndim != 2]
    groups = [
        {"params": decayed, "weight_decay": optimizer.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups,
        betas=(optimizer.b1, optimizer.b2),
        eps=optimizer.eps,
        lr=optimizer.learning_rate.peak,
    )
    schedule = optimizer.schedule(STEPS)
    losses = []
    for step, batch in enumerate(batches(config.vocab_size)):
        ids, mask = (torch.tensor(batch[key]).long() for key in ("input_ids", "segment_ids"))
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        for group in adamw.param_groups:
            group["lr"] = float(schedule(step))
        adamw.zero_grad()
        loss.backward()
        # The published gradient leaves the padding row out; ours has it, and nothing reads it here.
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
        adamw.step()
        losses.append(loss.item())
    return np.array(losses)


def our_losses(run):
    plan = blueprint(run, partitioning.make_mesh(run.mesh, jax.devices()[:1]))
    state = create_state(plan, run.seed)
    params = jax.device_get(state.params)
    step = compile_train_step(run, plan)
    losses = []
    for batch in batches(run.model.vocab_size):
        result = step(state, batch, purpose_key(run.seed, DROPOUT))
        state = result.state
        losses.append(float(result.metrics.loss))
    return params, np.array(losses)


@pytest.mark.reference
def test_fifty_adamw_steps_follow_pytorchs(make_run, record_property):
    import dataclasses

    base = make_run()
    model = dataclasses.replace(
        base.model,
        d_model=64,
        ffn_dim=256,
        num_layers=3,
        attention_heads=4,
        vocab_size=512,
        dropout=0.0,
        attention_dropout=0.0,
    )
    optimizer = AdamW(Cosine(3e-3, warmup_steps=5), weight_decay=0.1)
    run = dataclasses.replace(
        base,
        model=model,
        optimizer=optimizer,
        objective=NextToken(),
        steps=STEPS,
        mesh=MeshConfig(data=1),
    )
    params, ours = our_losses(run)
    theirs = torch_losses(model, params, optimizer)
    difference = np.abs(ours - theirs) / theirs
    record_property("largest_relative_difference", difference.max())
    print(
        f"largest relative difference {difference.max():.2e}; {theirs[0]:.4f} -> {theirs[-1]:.4f}"
    )
    assert theirs[-1] < 0.7 * theirs[0]
    assert difference.max() < 1e-4
