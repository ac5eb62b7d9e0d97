"""Names of topologies."""

import importlib.util
import math
from types import SimpleNamespace

import pytest

from xformer.plan import gpu_target, topology
from xformer.plan.topology import CHIPS, Topology


@pytest.mark.parametrize(
    ("name", "slices", "chips", "shown"),
    [
        ("v5e:16x16", 1, 256, "v5e:16x16"),
        ("v5p:4x4x8", 1, 128, "v5p:4x4x8"),
        ("TPU7x:4x4x8", 1, 128, "tpu7x:4x4x8"),
        ("v6e:4x8", 3, 96, "3 x v6e:4x8"),
        ("h100:8", 1, 8, "h100:1x8"),
        ("h100:4x8", 1, 32, "h100:4x8"),
    ],
)
def test_a_name_says_how_many_chips_there_are(name, slices, chips, shown):
    topology = Topology.parse(name, slices)
    assert (topology.chips, topology.name) == (chips, shown)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "written like one of .*v5e:4x4.*, got 'v5e'"),
        ("v5e:16*16", "written like one of"),
        ("v5litepod:16x16", "one of v3, .*; did you mean 'v5e'"),
        ("ironwood:4x4x4", "did you mean 'tpu7x'"),
        ("a100:8x8", "must be one of v3, v4, v5e, v5p, v6e, tpu7x, h100, got 'a100:8x8'"),
        ("v5p:16x16", "v5p has topologies of 3 sides, such as v5p:4x4x4"),
        ("v5e:0x4", "topologies of 2 sides"),
        ("v5e:16x32", "at most 256 chips, got 'v5e:16x32' with 512; use more slices"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        Topology.parse(name)


def test_no_slices_are_refused():
    with pytest.raises(ValueError, match="at least 1 slice, got 0"):
        Topology.parse("v5e:4x4", 0)


def test_memory_is_shared_by_the_devices_of_a_chip():
    assert Topology.parse("tpu7x:2x2x1").hbm_bytes == 94.75 * 2**30
    assert Topology.parse("v5e:2x2").hbm_bytes == 15.75 * 2**30


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_figures_of_chips_are_in_their_units(chip):
    assert 1e13 < chip.flops_per_s < 1e16
    assert 1e10 < chip.hbm_bytes < 1e12
    assert 1e11 < chip.hbm_bytes_per_s < 1e14
    assert chip.network_bytes_per_s < chip.link_bytes_per_s < chip.hbm_bytes_per_s
    assert math.isfinite(chip.most) and chip.devices in (1, 2)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("v5e:4x4", "libtpu", "plan"), ("h100:8", "jax_cuda12_plugin", "cuda")],
)
def test_a_missing_compiler_is_said_how_to_install(name, package, extra, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda one, *rest: None if one == package else found(one)
    )
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'xformer-jax\[{extra}\]'"):
        Topology.parse(name).devices()


def test_a_slice_of_gpus_is_a_host():
    topology = Topology.parse("h100:8", 3)
    assert (topology.chips, topology.name) == (24, "3 x h100:1x8")
    with pytest.raises(
        ValueError, match="is a host, got 2 slices of 'h100:3x8': .* h100:1x8 for 2"
    ):
        Topology.parse("h100:3x8", 2)


def test_the_figures_of_a_gpu_are_those_of_its_chip():
    chip = CHIPS["h100"]
    assert gpu_target.H100["device_memory_size"] == chip.hbm_bytes
    assert gpu_target.H100["memory_bandwidth"] == chip.hbm_bytes_per_s


def test_a_description_names_every_figure():
    text = gpu_target.description({"core_count": 132, "clock_rate_ghz": 1.98}, (9, 0))
    assert "cuda_compute_capability { major: 9 minor: 0 }" in text
    assert "core_count: 132 clock_rate_ghz: 1.98 }" in text


@pytest.fixture
def asked(monkeypatch):
    """Topologies of GPUs that are asked for, without the plugin; those of no hosts are refused."""
    options = []

    def describe(**given):
        options.append(given)
        if given["topology"] == "1x9x8":
            raise RuntimeError("INVALID_ARGUMENT: no.\nMore.")
        return SimpleNamespace(devices=[1, 2])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topology.topologies, "get_topology_desc", describe)
    return options


def test_gpus_are_described_by_published_figures_or_by_a_file(asked, tmp_path):
    path = tmp_path / "gpu.txtpb"
    path.write_text("a description")
    assert Topology.parse("h100:2x8").devices() == [1, 2]
    assert Topology.parse("h100:8").devices(str(path)) == [1, 2]
    assert Topology.parse("h100:1x8", 3).devices() == [1, 2]
    assert [one["topology"] for one in asked] == ["1x2x8", "1x1x8", "1x3x8"]
    assert "core_count: 132" in asked[0]["target_config"]
    assert asked[1]["target_config"] == "a description"


def test_what_xla_says_of_gpus_that_it_refuses_is_passed_on(asked):
    with pytest.raises(ValueError, match="XLA has no topology h100:9x8: INVALID_ARGUMENT: no.$"):
        Topology.parse("h100:9x8").devices()
