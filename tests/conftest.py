"""What every test runs with: eight simulated CPU devices, strict numerics, a clean gin."""

import atexit
import functools
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

# What programs keep between runs goes where nobody finds it again.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="xformer-cache-")
# Both must be set before JAX is first imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import gin
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def _leave_fields_unchecked(register):
    """Exempts the constructors of pytree dataclasses from the run-time type check.

    Tree operations rebuild them with anything in the fields: shapes under `eval_shape`, one more
    axis under `vmap`, booleans in a mask. Their methods stay checked.
    """

    @functools.wraps(register)
    def registered(nodetype, *args, **kwargs):
        nodetype.__no_type_check__ = True
        return register(nodetype, *args, **kwargs)

    return registered


jax.tree_util.register_dataclass = _leave_fields_unchecked(jax.tree_util.register_dataclass)

ROOT = Path(__file__).resolve().parents[1]
REFERENCES = {"torch": "2.13.0", "transformers": "4.57.6", "seqeval": "1.2.2"}


def _missing_references():
    missing = []
    for package, wanted in REFERENCES.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found.split("+")[0] != wanted:
            missing.append(f"{package}=={wanted} (found {found})")
    return missing


def pytest_collection_modifyitems(items):
    missing = _missing_references()
    if not missing:
        return
    skip = pytest.mark.skip(reason="needs " + ", ".join(missing) + ": requirements/reference.txt")
    for item in items:
        if item.get_closest_marker("reference"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def clean_gin():
    """No test sees another's bindings."""
    gin.clear_config()
    yield
    gin.clear_config()


def _parity_folder() -> Path:
    beside = ROOT.parent / "shared" / "parity"
    return beside if beside.is_dir() else ROOT / "tests" / "fixtures" / "parity"


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    """The recorded reference cases: the full set beside the checkout, else the part in the tree."""
    return _parity_folder()


def pytest_generate_tests(metafunc):
    """Runs a test marked `parity(id=REGEX)` once for each recorded case, as `parity_case`.

    With `grads=True` only the cases that have recorded gradients are meant. A test of which the
    part in the tree has no case is skipped there.
    """
    marker = metafunc.definition.get_closest_marker("parity")
    if marker is None:
        return
    folder = _parity_folder()
    cases = json.loads((folder / "index.json").read_text())["cases"]
    chosen = [case for case in cases if re.fullmatch(marker.kwargs["id"], case["id"])]
    if marker.kwargs.get("grads"):
        chosen = [case for case in chosen if case.get("grad_params")]
    assert chosen or ROOT in folder.parents, f"no recorded case matches {marker.kwargs['id']}"
    metafunc.parametrize("parity_case", chosen, ids=[case["id"] for case in chosen])


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Drops the compiled programs of a module at its end.

    Each maps memory of its own, and Linux allows a process some 65,000 maps: all tests together
    would pass that.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def untyped():
    """Switches the type check of the tests off, to see what a user is told."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def quick_compilation():
    """Leaves out the compiler's expensive passes, for small programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
