"""The process that starts again with huge pages, and the pages that it then asks for."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from xformer.cli import huge_pages
from xformer.cli.main import main

START = "import os, sys; from xformer.cli import huge_pages; huge_pages.use();"
SAY = "print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), os.getpid())"
FAULTS = """
import resource
import jax, jax.numpy as jnp

@jax.jit
def program(x):
    for _ in range(3):
        x = jnp.sin(x @ x)
    return x.sum()

x = jnp.full((3000, 3000), 1e-3)
jax.block_until_ready(program(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    jax.block_until_ready(program(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def started(program, *arguments, **environment):
    """What a program prints, and the number of its process."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    printed = process.communicate()[0].strip()
    assert process.returncode == 0
    return printed, process.pid


def can_ask():
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    is_known = enabled.exists() and "[madvise]" in enabled.read_text()
    return is_known and platform.libc_ver()[0] == "glibc"


needs_pages = pytest.mark.skipif(
    not can_ask(), reason="no glibc, or the system has huge pages for none or for all"
)


@needs_pages
def test_a_process_starts_again_once_as_it_was():
    printed, number = started(
        START + SAY, "one", "--two=3", GLIBC_TUNABLES="glibc.malloc.perturb=0"
    )
    expected = "glibc.malloc.perturb=0:glibc.malloc.hugetlb=1"
    assert printed == f"['one', '--two=3'] {expected} {number}"


def test_what_a_user_says_of_huge_pages_stays():
    printed, _ = started(START + SAY, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert "glibc.malloc.hugetlb=0 " in printed


@needs_pages
def test_programs_ask_for_few_pages():
    with_huge, _ = started(START + FAULTS)
    without, _ = started(FAULTS)
    assert int(without) > max(20_000, 10 * int(with_huge))


@pytest.mark.parametrize(
    "asked, device, expected",
    [
        ("cpu", "nvidia0", True),
        ("cpu,cuda", None, True),
        ("cuda,cpu", None, False),
        ("", None, True),
        ("", "accel0", False),
    ],
)
def test_processes_of_accelerators_are_left_alone(asked, device, expected, monkeypatch, tmp_path):
    if device:
        (tmp_path / device).touch()
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr(huge_pages, "_DEVICES", tmp_path)
    assert huge_pages._is_for_cpus() is expected


def test_only_processes_of_commands_that_compute_start_again(monkeypatch, capsys):
    uses = []
    monkeypatch.setattr(huge_pages, "use", lambda: uses.append(1))
    missing = ["--gin_file", "none.gin"]
    assert main(["train", *missing]) == main(["show-config", *missing], is_process=True) == 2
    assert not uses
    assert main(["train", *missing], is_process=True) == 2
    assert uses == [1] and "none.gin" in capsys.readouterr().err


@needs_pages
def test_a_process_that_cannot_start_again_goes_on():
    broken = "import sys; sys.executable = '/nowhere/python';"
    printed, number = started(broken + START + SAY)
    assert printed == f"[] None {number}"
