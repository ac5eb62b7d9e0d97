"""The direction of imports, who may import what, what `import xformer` costs, stray paths."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xformer
import xformer.outputs

ROOT = Path(__file__).resolve().parents[1]

# From low to high. A file imports from lower tiers and from its own package.
TIERS = [
    {"dims", "field_types", "files", "hub", "outputs"},
    {"buckets", "distributed", "layers", "kernels"},
    {"partitioning"},
    {"models"},
    {"losses", "metrics", "optim", "tokenization"},
    {"data"},
    {"objectives"},
    {"generation"},
    {"pretrained"},
    {"training"},
    {"plan"},
    {"bindings"},
    {"config_text"},
    {"configurables"},
    {"cli"},
    {"__main__"},
]
RANK = {unit: rank for rank, tier in enumerate(TIERS) for unit in tier}
FAMILIES = {"umt5", "bigbird", "squeezebert", "xglm"}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "xformer").rglob("*.py"))
}


def is_within(module, package):
    return module == package or module.startswith(package + ".")


def imported(path):
    """Yields what a file imports: for `from package import name` the module that it means."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the absolute name"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                known = name in FILES or not is_within(name, "xformer")
                yield name if known else node.module


IMPORTS = {module: set(imported(path)) for module, path in FILES.items()}


def importers(package):
    """The units of xformer that import a package or a part of it."""
    return {
        module.split(".")[1]
        for module, names in IMPORTS.items()
        if any(is_within(name, package) for name in names)
    }


def test_every_unit_has_a_rank():
    units = {module.split(".")[1] for module in FILES if "." in module}
    assert units <= RANK.keys(), "new units belong in TIERS, where their imports put them"


@pytest.mark.parametrize("module", [module for module in FILES if "." in module])
def test_imports_point_downwards(module):
    unit = module.split(".")[1]
    others = {name.split(".")[1] for name in IMPORTS[module] if name.startswith("xformer.")}
    others = (others & RANK.keys()) - {unit}
    assert {other for other in others if RANK[other] >= RANK[unit]} == set()


def test_modules_form_no_cycle():
    graph = {
        module: {name for name in names & FILES.keys() if name not in (module, "xformer")}
        for module, names in IMPORTS.items()
        if module != "xformer"
    }
    assert {*graphlib.TopologicalSorter(graph).static_order()} >= graph.keys()


def family(module):
    """The family that a file of models belongs to; None for those of all families."""
    name = module.removeprefix("xformer.models.").split("_")[0].split(".")[0]
    return name if is_within(module, "xformer.models") and name in FAMILIES else None


def test_families_do_not_import_one_another():
    own = [module for module in FILES if family(module)]
    assert {family(module) for module in own} == FAMILIES
    crossing = [
        (module, name)
        for module in own
        for name in IMPORTS[module]
        if family(name) not in (None, family(module))
    ]
    assert not crossing


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("gin", {"configurables"}),
        ("flax.linen", {"layers", "models"}),
        ("orbax", {"training"}),
        ("grain", {"data"}),
        ("pyarrow", {"data"}),
        ("sklearn", {"metrics"}),
        ("scipy", {"metrics"}),
        ("nervaluate", {"metrics"}),
        ("pickle", set()),
        ("torch", set()),
        ("transformers", set()),
        ("tensorflow", set()),
    ],
)
def test_package_is_imported_only_where_it_belongs(package, allowed):
    assert importers(package) <= allowed


def test_importing_xformer_loads_nothing_heavy():
    code = "import sys, xformer; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({"jax", "flax", "gin", "numpy", "matplotlib"})


def test_every_public_name_is_listed_and_reachable(monkeypatch):
    for name in set(xformer.__all__) - {"__version__"}:
        monkeypatch.delitem(vars(xformer), name, raising=False)  # as if never asked for
        assert name in dir(xformer)
        assert getattr(xformer, name).__name__ == name.replace("UMT5Tok", "T5Tok")  # T5's own
    assert set(xformer.outputs.__all__) <= set(xformer.__all__)


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'xformer' has no attribute 'Nonesuch'"):
        _ = xformer.Nonesuch


def test_type_checkers_see_the_public_names():
    """The imports under TYPE_CHECKING cover the table of lazy names."""
    seen = set()
    for node in ast.walk(ast.parse(FILES["xformer"].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("xformer"):
            for alias in node.names:
                seen |= set(xformer.outputs.__all__) if alias.name == "*" else {alias.name}
    assert seen == set(xformer.__all__) - {"__version__"}


def test_no_file_names_a_place_on_somebodys_machine():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("lists the files with git")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    place = re.compile(r"(?<![\w.:/-])/(work|root|home|opt|mnt|tmp|Users)/\w")
    found = []
    for name in filter(None, names.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # binary, or deleted and not committed yet
        found += [f"{name}: {line.strip()}" for line in text.splitlines() if place.search(line)]
    assert found == []
