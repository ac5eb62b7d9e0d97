"""Checkpoints: exact, verified, and never the reason that a run is lost."""

import contextlib
import dataclasses
import functools
import gc
import json
import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer import partitioning
from xformer.data.pipeline import open_batches
from xformer.layers.execution import Execution
from xformer.optim import SGD, Adafactor, AdamW
from xformer.partitioning import MeshConfig
from xformer.training import agreement, checkpoints
from xformer.training.checkpoints import CheckpointError, CheckpointStore
from xformer.training.config import Checkpoints
from xformer.training.fingerprint import tree_checksums
from xformer.training.integrity import _hash
from xformer.training.state import blueprint, create_state, own_form


# orbax abandons coroutines when reading fails; their complaints are about the damage made here.
def abandons_coroutines(test):
    ignored = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    return pytest.mark.usefixtures("collected")(ignored(test))


@pytest.fixture
def collected():
    """Makes a test's complaints appear in it and not in a later one."""
    yield
    gc.collect()


@functools.cache
def fresh_state(model, optimizer, execution, run):
    return create_state(plan_of(run.value), seed=0)


class Unhashed:
    """Hides a value from a cache whose other arguments decide the result."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


def initial_state(run):
    return fresh_state(run.model, run.optimizer, run.execution, Unhashed(run))


def initial_state_at(run, step):
    return dataclasses.replace(initial_state(run), step=jnp.int32(step))


def plan_of(run, mesh=None):
    return blueprint(run, partitioning.make_mesh(mesh or run.mesh))


@pytest.fixture
def run(make_run):
    return make_run()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


def save_steps(folder, run, steps, keep=5):
    """Saves a different state at each step, and returns the checksums of each."""
    fresh = initial_state(run)
    saved = {}
    with CheckpointStore(folder, keep) as store:
        for step in steps:
            params = jax.tree.map(lambda leaf, step=step: leaf + step, fresh.params)
            state = dataclasses.replace(fresh, step=jnp.int32(step), params=params)
            store.save(step, state, run.execution.layers, {"note": step})
            saved[step] = tree_checksums(state)
    return saved


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(agreement, "_PAUSE_S", 0)


def restore(folder, run, mesh=None):
    with CheckpointStore(folder, 5) as store:
        return store.restore(run, plan_of(run, mesh))


def largest_file(folder):
    """The largest of the files with arrays; of those beside them, one is larger and never read."""
    return max(folder.rglob("ocdbt.process_*/d/*"), key=lambda p: p.stat().st_size)


def test_restore_gives_the_newest_state_bit_for_bit(folder, run):
    saved = save_steps(folder, run, [3, 7])
    restored = restore(folder, run)
    assert restored.step == 7 and restored.record["note"] == 7 and not restored.quarantined
    assert tree_checksums(restored.state) == saved[7]


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_restore_onto_another_mesh_is_exact(folder, run, mesh):
    saved = save_steps(folder, run, [3])
    config = MeshConfig(*mesh)
    restored = restore(folder, run, config)
    assert tree_checksums(restored.state) == saved[3]
    kernel = restored.state.params["model"]["layers"]["0"]["fc1"]["kernel"]
    assert kernel.sharding.mesh.shape == config.shape(8)


CHAIN = [
    (MeshConfig(fsdp=8), 8),
    (MeshConfig(data=2, sequence=2, tensor=2), 8),
    (MeshConfig(), 1),
    (MeshConfig(data=2, fsdp=4, slices=2), 8),
]


def test_a_state_that_moves_from_mesh_to_mesh_stays_as_it_is_and_sees_the_same_batches(folder, run):
    saved, seen, position, wanted = save_steps(folder, run, [3])[3], [], None, []
    with contextlib.closing(open_rows(run)) as batches:
        wanted = [batches_as_arrays(next(batches)) for _ in range(2 * len(CHAIN) + 2)]
    for config, count in [*CHAIN, CHAIN[0]]:
        plan = blueprint(run, partitioning.make_mesh(config, jax.devices()[:count]))
        with CheckpointStore(folder, 5) as store:
            restored = store.restore(run, plan)
            assert restored.state.step.sharding.mesh.shape == config.shape(count)
            assert tree_checksums(own_form(plan, restored.state)) == saved
            shutil.rmtree(folder / str(restored.step))  # the next mesh reads what this one wrote
            store._manager.reload()
            store.save(3, own_form(plan, restored.state), run.execution.layers, {})
        sharding = partitioning.batch_sharding(plan.mesh, run.rules)
        with contextlib.closing(open_rows(run, *partitioning.batch_share(sharding))) as batches:
            batches.restore(position or batches.state())
            for _ in range(2):
                seen.append(batches_as_arrays(partitioning.global_batch(next(batches), sharding)))
            position = batches.state()
    for one, other in zip(seen, wanted, strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def open_rows(run, share=0, shares=1):
    return open_batches(
        run.train_data,
        batch_size=run.batch_size,
        seed=run.seed,
        process_index=share,
        process_count=shares,
    )


def batches_as_arrays(batch):
    return {name: np.asarray(rows) for name, rows in batch.items()}


@pytest.mark.parametrize("optimizer", [AdamW(1e-3), Adafactor(1e-3)])
@pytest.mark.parametrize("saved_as, wanted", [("loop", "scan"), ("scan", "loop")])
def test_checkpoints_do_not_depend_on_the_layer_mode(folder, run, optimizer, saved_as, wanted):
    run = dataclasses.replace(run, optimizer=optimizer, execution=Execution(layers=saved_as))
    save_steps(folder, run, [0])
    other = dataclasses.replace(run, execution=Execution(layers=wanted))
    restored = restore(folder, other)
    fresh = initial_state(other)
    assert jax.tree.all(jax.tree.map(np.array_equal, restored.state, fresh))


def test_offloading_reads_what_was_saved_in_loops_and_sets_nothing_aside(folder, run):
    save_steps(folder, dataclasses.replace(run, execution=Execution(layers="scan")), [3])
    save_steps(folder, run, [7])
    other = dataclasses.replace(run, execution=Execution(layers="scan", remat="offload"))
    restored = restore(folder, other)
    assert restored.step == 7 and not restored.quarantined


def test_a_run_that_cannot_be_described_is_no_damage(folder, run, monkeypatch):
    save_steps(folder, run, [3, 7])

    def refuse(*_):
        raise ValueError("set Execution.remat")

    monkeypatch.setattr(checkpoints, "_target", refuse)
    with pytest.raises(ValueError, match="^set Execution.remat"):
        restore(folder, run)
    assert (folder / "7").is_dir()


def test_parameters_alone_are_restored_beside_a_writer(folder, run):
    saved = save_steps(folder, run, [3])
    before = sorted(p.name for p in folder.iterdir())
    with CheckpointStore(folder) as store:
        restored = store.restore_params(run, plan_of(run))
    got = {f"params/{path}": value for path, value in tree_checksums(restored.state).items()}
    assert got and got.items() <= saved[3].items()
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize("layers", ["loop", "scan"])
def test_parameters_alone_are_those_of_the_whole_state(folder, run, layers):
    model = dataclasses.replace(run.model, vocab_size=31)
    run = dataclasses.replace(run, model=model)
    save_steps(folder, run, [3])
    run = dataclasses.replace(run, execution=Execution(layers=layers))
    plan = plan_of(run, MeshConfig(data=4, tensor=2))
    assert plan.is_padded
    with CheckpointStore(folder) as store:
        whole = store.restore(run, plan).state.params
        alone = store.restore_params(run, plan).state
    for tree in (whole, alone):
        held, wanted = (
            jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding), one)
            for one in (tree, plan.shapes.params)
        )
        assert held == wanted
    assert tree_checksums(alone) == tree_checksums(whole)


def test_pruned_steps_do_not_pile_up_while_the_store_is_open(folder, run):
    with CheckpointStore(folder, keep=1) as store:
        for step in range(1, 8):
            store.save(step, initial_state_at(run, step), "loop", {})
        assert len(list((folder / ".trash").glob("*"))) <= 3


def test_only_the_newest_are_kept_and_nothing_is_left_in_the_trash(folder, run):
    save_steps(folder, run, [1, 2, 3, 4], keep=2)
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4"]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def flip_bits(path):
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 256):  # not all of a file need be read
        content[place] ^= 0x10
    path.write_bytes(bytes(content))


DAMAGE = {
    "flipped bits": flip_bits,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
}


@abandons_coroutines
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_step_is_set_aside_and_the_one_before_is_used(folder, run, kind):
    saved = save_steps(folder, run, [3, 7])
    DAMAGE[kind](largest_file(folder / "7" / "state"))
    with CheckpointStore(folder, 5) as store:
        restored = store.restore(run, plan_of(run))
        assert restored.step == 3 and list(restored.quarantined) == [7]
        assert tree_checksums(restored.state) == saved[3]
        again = dataclasses.replace(restored.state, step=jnp.int32(7))
        store.save(7, again, "loop", {})  # orbax alone would refuse an older step
    assert restore(folder, run).step == 7
    assert [p.name for p in (folder.parent / "quarantine").iterdir()] == ["7.0"]


def damage(folder, step):
    os.truncate(folder / str(step) / "record" / "metadata", 10)


@abandons_coroutines
def test_runs_beside_each_other_set_damaged_steps_aside_each_in_its_own_folder(make_run, tmp_path):
    for name in ("first", "second"):
        folder = tmp_path / "bucket" / name
        run = make_run(checkpoints=Checkpoints(folder=str(folder)))
        save_steps(folder, run, [3, 7])
        damage(folder, 7)
        assert restore(folder, run).step == 3
        assert run.quarantine_folder == folder / "quarantine"
        assert [path.name for path in (folder / "quarantine").iterdir()] == ["7.0"]
        assert (folder / "quarantine" / "7.0" / "state").is_dir()
        with CheckpointStore(folder, keep=1) as store:  # the next writer takes it for no step
            store.save(9, initial_state_at(run, 9), "loop", {})
            assert store.wait() == [9] == store.steps
        assert sorted(path.name for path in folder.iterdir()) == ["9", "quarantine"]
    assert sorted(path.name for path in (tmp_path / "bucket").iterdir()) == ["first", "second"]


@abandons_coroutines
def test_a_damaged_step_takes_a_name_that_is_free(folder, run):
    aside = folder.parent / "quarantine"
    save_steps(folder, run, [3])
    for _ in range(2):
        save_steps(folder, run, [7])
        damage(folder, 7)
        restore(folder, run)
    (aside / "7.1" / "note.txt").write_text("the second")
    shutil.rmtree(aside / "7.0")  # put back, as the message advises, or looked into elsewhere
    for _ in range(2):
        save_steps(folder, run, [7])
        damage(folder, 7)
        assert restore(folder, run).step == 3
    assert sorted(path.name for path in aside.iterdir()) == ["7.0", "7.1", "7.2"]
    assert (aside / "7.1" / "note.txt").read_text() == "the second"


@abandons_coroutines
def test_processes_look_at_the_folder_again_once_all_that_is_damaged_has_left(
    folder, run, monkeypatch
):
    save_steps(folder, run, [3, 7, 9])
    for step in (7, 9):
        damage(folder, step)
    seen, meet = [], checkpoints.distributed.meet

    def listed(name, value=None):
        if "aside" in name:
            seen.append(checkpoints.complete_steps(folder))
        return meet(name, value)

    monkeypatch.setattr(checkpoints.distributed, "meet", listed)
    assert restore(folder, run).step == 3
    assert seen == [[3]]


@abandons_coroutines
def test_no_flipped_bit_passes_as_the_saved_state(folder, run):
    saved = save_steps(folder, run, [3, 7])
    files = [p for p in (folder / "7" / "state").rglob("d/*") if p.is_file()]
    caught = 0
    for path in files:
        content = path.read_bytes()
        flip_a_bit(path)
        with CheckpointStore(folder) as store:
            restored = store.restore(run, plan_of(run))
        # Some of the files hold nothing that is read.
        assert tree_checksums(restored.state) == saved[restored.step], path
        caught += restored.step == 3
        path.write_bytes(content)
    assert caught
    assert restore(folder, run).step == 7


@abandons_coroutines
@pytest.mark.parametrize("item", ["state/_METADATA", "state/manifest.ocdbt", "record/metadata"])
def test_damaged_metadata_is_caught(folder, run, item):
    save_steps(folder, run, [3, 7])
    path = folder / "7" / item
    path.write_bytes(path.read_bytes()[:7])
    assert restore(folder, run).step == 3


@abandons_coroutines
@pytest.mark.parametrize("item", ["state/_METADATA", "state/manifest.ocdbt", "record/metadata"])
def test_a_file_that_is_seen_late_is_no_damage(folder, run, item, monkeypatch):
    save_steps(folder, run, [3, 7])
    path = folder / "7" / item
    content = path.read_bytes()
    path.unlink()
    pause = types.SimpleNamespace(sleep=lambda _: path.write_bytes(content))
    monkeypatch.setattr(agreement, "time", pause)
    restored = restore(folder, run)
    assert restored.step == 7 and not restored.quarantined


def test_a_step_without_its_commit_file_does_not_count(folder, run):
    save_steps(folder, run, [3, 7])
    (folder / "7" / "commit_success.txt").unlink()
    (folder / "9").mkdir()
    (folder / "note.txt").write_text("stray")
    assert restore(folder, run).step == 3


@abandons_coroutines
def test_no_step_is_no_state_and_no_good_step_is_an_error(folder, run):
    assert restore(folder, run) is None
    save_steps(folder, run, [3])
    flip_bits(largest_file(folder / "3" / "state"))
    with pytest.raises(CheckpointError, match="could be verified.*Nothing was moved"):
        restore(folder, run)
    assert (folder / "3").is_dir()


def test_an_error_that_is_not_the_files_moves_nothing(folder, run, monkeypatch):
    saved = save_steps(folder, run, [3, 7])
    for error in (MemoryError(), PermissionError(13, "no"), ValueError("RESOURCE_EXHAUSTED: disk")):

        def fail(*args, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointStore, "_read", fail)
            with pytest.raises(type(error)):
                restore(folder, run)
    assert tree_checksums(restore(folder, run).state) == saved[7]


@abandons_coroutines
@pytest.mark.parametrize("key, value", [("note", 8), ("layers", "scan")])
def test_a_changed_record_is_damage(folder, run, key, value):
    save_steps(folder, run, [3, 7])
    path = folder / "7" / "record" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert restore(folder, run).step == 3


def test_a_step_under_another_number_is_damage(folder, run):
    save_steps(folder, run, [3, 7])
    (folder / "7").rename(folder / "9")
    assert restore(folder, run).step == 3


def test_only_complete_steps_are_listed_and_reported_once(folder, run):
    with CheckpointStore(folder, 5) as store:
        store.save(3, initial_state_at(run, 3), "loop", {})
        assert store.wait() == [3] == store.steps
        assert store.check() == [] == store.wait()
        (folder / "5").mkdir()
        assert store.steps == [3]


def test_another_models_checkpoint_is_refused_with_a_list_and_stays(folder, run):
    save_steps(folder, run, [3])
    wider = dataclasses.replace(run, model=dataclasses.replace(run.model, ffn_dim=64))
    with pytest.raises(CheckpointError, match=r"fc1/bias is \[\[32\], 'float32'\], the run has"):
        restore(folder, wider)
    other = dataclasses.replace(run, optimizer=SGD(1e-2))
    with pytest.raises(CheckpointError, match="is not in the run"):
        restore(folder, other)
    assert (folder / "3").is_dir()


def test_another_dtype_is_refused(folder, run):
    save_steps(folder, run, [3])
    record = folder / "3" / "record" / "metadata"
    content = json.loads(record.read_text())
    path = "params/model/layer_norm/scale"
    content["arrays"][path][1] = "bfloat16"
    del content["sha256"]
    record.write_text(json.dumps({**content, "sha256": _hash(content)}))
    with pytest.raises(CheckpointError, match=rf"{path} is .*bfloat16.*float32"):
        restore(folder, run)


def test_an_older_step_is_not_skipped_in_silence(folder, run):
    save_steps(folder, run, [7])
    with CheckpointStore(folder, 5) as store:
        with pytest.raises(CheckpointError, match="step 3 was not saved.*newer"):
            store.save(3, initial_state(run), "loop", {})


@abandons_coroutines
def test_a_failed_write_is_an_error_and_leaves_earlier_steps(folder, run):
    saved = save_steps(folder, run, [3])
    store = CheckpointStore(folder, 5)
    shutil.move(folder, folder.with_name("away"))
    folder.write_text("a file where the folder was")
    with pytest.raises(CheckpointError, match="could not be written.*Run.folder"):
        store.save(7, initial_state(run), "loop", {})
        store.close()
    folder.unlink()
    shutil.move(folder.with_name("away"), folder)
    assert tree_checksums(restore(folder, run).state) == saved[3]


def test_what_a_killed_process_was_writing_is_gone_before_anything_is_written(folder, run):
    save_steps(folder, run, [3])
    half = folder / "7" / "state" / "manifest.ocdbt"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    with CheckpointStore(folder, keep=2) as store:
        assert store.steps == [3] and not (folder / "7").exists()
        store.save(7, initial_state_at(run, 7), "loop", {})
    assert sorted(path.name for path in folder.iterdir()) == ["3", "7"]
