"""The folder of compiled programs: private, in parts, optional, and of no effect on results."""

import os
import stat
import subprocess
import sys

import jax
import pytest

from xformer.cli import compiled_programs, main

PROGRAM = """
import jax, jax.numpy as jnp
from xformer.cli.compiled_programs import keep
keep()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name.rpartition("/")[2]))
print(float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(7.0))).hex())
print(found.count("cache_hits") > 0)
"""


@pytest.fixture
def compute(tmp_path):
    """Runs a small program, and gives its result, whether it was found, and what stderr says."""

    def run(**changes):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        environment = kept | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)} | changes
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        value, found = done.stdout.split()
        return value, found == "True", done.stderr

    return run


def programs(folder):
    return [path for path in folder.rglob("jit_*") if path.is_file()]


def test_programs_are_found_again_in_a_private_folder(compute, tmp_path):
    value, found, noise = compute()
    assert not found and not noise
    assert compute() == (value, True, "")
    (folder,) = (tmp_path / "xformer" / "compiled").iterdir()
    for part in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(part.stat().st_mode) == 0o700
    assert programs(folder)


def test_damaged_programs_are_compiled_again(compute, tmp_path):
    value, _, _ = compute()
    kept = [path for path in programs(tmp_path) if path.name.endswith("-cache")]
    for path in kept:
        path.write_bytes(path.read_bytes()[:10])
    assert kept and compute()[:2] == (value, False)


def test_folder_that_others_may_use_is_not_used(compute, tmp_path):
    compute()
    (folder,) = (tmp_path / "xformer" / "compiled").iterdir()
    folder.chmod(0o750)
    _, found, noise = compute()
    assert not found and noise == (
        f"{folder}: others may use it (chmod 700); programs are compiled anew\n"
    )


def test_folder_that_cannot_be_made_is_no_error(compute, tmp_path):
    (tmp_path / "xformer").write_text("a file")
    _, found, noise = compute()
    assert not found and noise.endswith("; programs are compiled anew\n")


def test_user_without_a_home_is_no_error(monkeypatch, capsys):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiled_programs.Path, "home", home)
    told = jax.config.values["jax_compilation_cache_dir"]  # by a command that ran here before
    jax.config.update("jax_compilation_cache_dir", None)
    compiled_programs.keep()
    assert jax.config.values["jax_compilation_cache_dir"] is None
    jax.config.update("jax_compilation_cache_dir", told)
    assert capsys.readouterr().err == (
        "~/.cache: Could not determine home directory.; programs are compiled anew\n"
    )


@pytest.mark.parametrize(
    "settings",
    [{"JAX_ENABLE_COMPILATION_CACHE": "false"}, {"JAX_COMPILATION_CACHE_DIR": "elsewhere"}],
)
def test_settings_of_jax_come_first(compute, tmp_path, settings):
    if "JAX_COMPILATION_CACHE_DIR" in settings:
        settings = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "elsewhere")}
    compute(**settings)
    assert not (tmp_path / "xformer").exists()
    assert bool(programs(tmp_path)) is ("JAX_COMPILATION_CACHE_DIR" in settings)


def test_processors_have_parts_of_their_own(monkeypatch):
    folders = set()
    for processor in ("flags : sse avx", "flags : sse"):
        monkeypatch.setattr(compiled_programs, "_processor", processor.strip)
        folders.add(compiled_programs._folder())
    assert len(folders) == 2


@pytest.mark.parametrize("command", ["train", "show-config"])
def test_commands_that_compile_keep_what_they_compile(monkeypatch, command):
    called = []
    monkeypatch.setattr(compiled_programs, "keep", lambda: called.append(True))
    assert main.main([command, "--gin_file", "there/is/none.gin"]) == 2
    assert bool(called) is (command == "train")
    assert jax.config.jax_enable_compilation_cache
