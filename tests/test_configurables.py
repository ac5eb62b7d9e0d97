"""The strict layer over gin: what is refused, with which words, and what reproduces a run."""

import dataclasses
import importlib
import pickle
import re
import sys
import threading
import typing
from dataclasses import dataclass
from inspect import signature
from typing import Literal

import gin
import pytest

from xformer.configurables import TABLE, load
from xformer.field_types import conform


@dataclass(frozen=True)
class Model:
    width: int
    heads: int = 2

    def __post_init__(self):
        if self.heads == 0:
            raise ValueError("must be positive; set ToyData.path or the heads")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}; set heads")


@dataclass(frozen=True, slots=True)
class Data:
    path: str
    shuffle: bool = True
    mix: tuple["Data", ...] = ()


@dataclass(frozen=True)
class Rate:
    peak: float = 1.0


@dataclass(frozen=True)
class Sgd:
    rate: float | Rate = 0.1


@dataclass(frozen=True)
class Run:
    model: Model
    data: Data
    steps: int
    validation: Data | None = None
    optimizer: Sgd = Sgd()
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"


class Loose:
    def __init__(self, **options):
        self.options = options


@dataclass(init=False)
class Swallowing:
    size: int

    def __init__(self, **options):
        self.size = len(options)


NAMES = {"Run": Run, "Model": Model, "Data": Data, "Rate": Rate, "Sgd": Sgd}
TOY = {f"Toy{name}": f"{__name__}:{cls.__name__}" for name, cls in NAMES.items()}

PART = """
ToyModel.width = %width
width = 8
"""
RUN = """
include "models/tiny.gin"
steps = 5
ToyRun:
    model = @ToyModel()
    data = @train/ToyData()
    validation = @eval/ToyData()
    steps = %steps
    optimizer = @ToySgd()
train/ToyData.path = "a b"
eval/ToyData.path = 'c'
ToyData.shuffle = False
ToySgd.rate = @ToyRate()
ToyRate.peak = 2
"""
BUILT = Run(
    model=Model(width=8),
    data=Data("a b", shuffle=False),
    steps=5,
    validation=Data("c", shuffle=False),
    optimizer=Sgd(Rate(2.0)),
)


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A config root with one part and one run file; the current folder is above it."""
    (tmp_path / "configs" / "models").mkdir(parents=True)
    (tmp_path / "configs" / "runs").mkdir()
    (tmp_path / "configs" / "models" / "tiny.gin").write_text(PART)
    (tmp_path / "configs" / "runs" / "toy.gin").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "configs"


def load_toy(*flags, file="configs/runs/toy.gin"):
    return load(file, flags, table=TOY, root="ToyRun")


def load_text(configs, text, *flags):
    (configs / "runs" / "toy.gin").write_text(text)
    return load_toy(*flags)


# What is built


def test_load_builds_the_original_classes(configs):
    run = load_toy().run
    assert run == BUILT
    assert type(run) is Run and type(run.validation) is Data
    assert type(run.optimizer.rate.peak) is float
    assert pickle.loads(pickle.dumps(run)) == run


def test_run_file_and_flags_override_parts(configs):
    run = load_text(configs, RUN + "\nwidth = 16\nToyModel.heads = 4\n", "ToyModel.heads=8").run
    assert run.model == Model(width=16, heads=8)


def test_flags_take_gin_values_and_may_replace_a_whole_part(configs):
    run = load_toy(
        "ToyRun.prompts=('a', 'b=c')", "steps=9", "ToyRun.optimizer=@second/ToySgd()"
    ).run
    assert run.prompts == ("a", "b=c")
    assert run.steps == 9
    run = load_toy("ToyRun.validation=None", "ToyRun.steps=3").run
    assert run.validation is None and run.steps == 3  # what only these used is no mistake now


def test_macros_are_replaced_inside_containers(configs):
    text = RUN + "low = 0.5\nToyRun.rates = {'a': %low, 'b': 1}\nToyRun.prompts = (%word, 'x')\n"
    run = load_text(configs, text + "word = 'w'\n").run
    assert run.rates == {"a": 0.5, "b": 1.0} and run.prompts == ("w", "x")


def test_scopes_inherit_as_in_gin(configs):
    text = RUN.replace("data = @train/ToyData()", "data = @train/deep/ToyData()")
    text += "train/ToyData.mix = (@ToyData(),)\ntrain/deep/ToyData.shuffle = True\n"
    text = text.replace(
        "train/ToyData.mix = (@ToyData(),)", "train/ToyData.mix = (@eval/ToyData(),)"
    )
    run = load_text(configs, text).run
    assert run.data == Data("a b", shuffle=True, mix=(Data("c", shuffle=False),))


# What reproduces it


@pytest.mark.parametrize("text", ["config_text", "operative_text"])
def test_texts_alone_reproduce_the_run(configs, tmp_path, text):
    odd = ("tab\t'\"\\ €\n", "long " * 60, "")
    first = load_toy(f"ToyRun.prompts={odd!r}", "ToyRun.rates={'b': 1, 'a': -1e-05}")
    assert first.run.prompts == odd
    (tmp_path / "alone.gin").write_text(getattr(first, text))
    again = load_toy(file=tmp_path / "alone.gin")
    assert again.run == first.run
    assert getattr(again, text) == getattr(first, text)
    assert again.operative_text == first.operative_text


def test_config_text_is_golden(configs):
    assert load_toy("ToyModel.heads=4").config_text.split("\n\n") == [
        "ToyRun.model = @ToyModel()\nToyRun.data = @train/ToyData()\nToyRun.steps = 5\n"
        "ToyRun.validation = @eval/ToyData()\nToyRun.optimizer = @ToySgd()",
        "ToyModel.width = 8\nToyModel.heads = 4",
        "train/ToyData.path = 'a b'",
        "ToyData.shuffle = False",
        "eval/ToyData.path = 'c'",
        "ToySgd.rate = @ToyRate()",
        "ToyRate.peak = 2.0\n",
    ]


def test_operative_text_spells_out_defaults(configs):
    text = load_toy("ToyRun.validation=None", "ToyRun.optimizer=@s/ToySgd()").operative_text
    assert "ToySgd.rate = @ToyRate()" in text
    assert "ToyRate.peak = 2.0" in text
    assert "ToyModel.heads = 2" in text
    assert "ToyRun.dtype = 'float32'" in text
    bare = "ToyRun.model = @ToyModel()\nToyModel.width = 2\nToyRun.data = @ToyData()\n"
    bare += "ToyData.path = 'p'\nToyRun.steps = 1\n"
    text = load_text(configs, bare).operative_text
    assert "ToyRun.optimizer = @ToySgd()" in text and "ToySgd.rate = 0.1" in text


def test_sha256_is_of_the_config_text(configs):
    first, same, other = load_toy(), load_toy("ToyModel.width=8"), load_toy("ToyModel.width=4")
    assert first.sha256 == same.sha256 != other.sha256
    assert re.fullmatch("[0-9a-f]{64}", first.sha256)


def test_resolution_agrees_with_gin(configs):
    text = RUN + "eval/ToyData.shuffle = True\n"
    loaded = load_text(configs, text)
    for name, home in TOY.items():
        gin.register(name)(getattr(sys.modules[__name__], home.split(":")[1]))
    own = re.sub(r"include.*\n", "", text) + PART
    gin.parse_config(own)
    gin.finalize()
    assert gin.get_configurable("ToyRun")() == loaded.run


# Isolation


def test_loads_do_not_influence_each_other(configs):
    alone = load_toy()
    load_toy("ToyModel.width=32", "ToyRate.peak=3")
    with pytest.raises(ValueError, match="must divide"):
        load_toy("ToyModel.heads=3")
    assert load_toy() == alone


def test_no_gin_state_is_taken_or_left(configs):
    gin.register("ToyModel")(Model)
    gin.parse_config("ToyModel.heads = 4")
    gin.finalize()
    assert load_toy().run == BUILT
    assert gin.config_str() == "" and gin.operative_config_str() == ""
    assert not gin.config_is_locked()
    with pytest.raises(ValueError, match="must divide"):
        load_toy("ToyModel.heads=3")
    assert gin.config_str() == "" and not gin.config_is_locked()


def test_load_works_in_a_thread(configs):
    found = []
    thread = threading.Thread(target=lambda: found.append(load_toy().run))
    thread.start()
    thread.join()
    assert found == [BUILT]


# Untrusted files: nothing is executed, nothing outside the config root is read

HOSTILE = {
    "import": ("import toy_sentinel", "import toy_sentinel' is refused: gin files bind values"),
    "from": ("from toy_sentinel import x as y", "'from toy_sentinel import x as y' is refused"),
    "dynamic registration": (
        "from __gin__ import dynamic_registration\nimport os\nos.mkdir.path = 'sentinel'\n"
        "ToyRun.steps = @os.mkdir()",
        "dynamic_registration' is refused",
    ),
    "reference": ("ToyRun.steps = @os.system()", "no configurable is called 'os.system'"),
    "singleton": ("ToyRun.steps = @a/gin.singleton()", "no configurable is called 'gin.singleton'"),
    "macro.value": ("x/gin.macro.value = 3", "no configurable is called 'gin.macro'"),
    "constant": ("ToyRun.steps = %gin.REQUIRED", "%gin.REQUIRED, which is not defined"),
    "absolute": ('include "/etc/hostname"', "leads outside the config root"),
    "dots": ('include "models/../../secret.gin"', "leads outside the config root"),
    "dots inside": ('include "models/../models/tiny.gin"', "without '..'"),
    "link": ('include "models/link.gin"', "leads outside the config root"),
    "link folder": ('include "linked/secret.gin"', "leads outside the config root"),
    "nested include": ('include "models/nested.gin"', "only run files include others"),
    "missing include": (
        'include "models/tinny.gin"',
        "cannot read the gin file .*tinny.gin: no such",
    ),
    "folder": ('include "models"', "cannot read the gin file .*models: is a directory"),
    "bytes": ('include "models/bytes.gin"', "bytes.gin is not UTF-8 text"),
    "import in a part": ('include "models/import.gin"', "import.gin:2: 'import toy_sentinel'"),
    "two parts": (
        'include "models/other.gin"',
        "ToyModel.width is bound twice, at .*other.gin:1 and .*tiny.gin:2",
    ),
}


@pytest.mark.parametrize("line, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_refused_and_executes_nothing(configs, monkeypatch, line, message):
    root = configs.parent
    (root / "toy_sentinel.py").write_text("import os\nos.mkdir('sentinel')\nx = 1\n")
    monkeypatch.syspath_prepend(str(root))
    (root / "secret.gin").write_text("ToyRun.steps = 1\n")
    (root / "outside").mkdir()
    (root / "outside" / "secret.gin").write_text("ToyRun.steps = 1\n")
    (configs / "models" / "link.gin").symlink_to(root / "secret.gin")
    (configs / "linked").symlink_to(root / "outside")
    (configs / "models" / "nested.gin").write_text('include "models/tiny.gin"\n')
    (configs / "models" / "import.gin").write_text("\nimport toy_sentinel\n")
    (configs / "models" / "bytes.gin").write_bytes(b"steps = '\xff\xfe'\n")
    (configs / "models" / "other.gin").write_text("ToyModel.width = 4\n")
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_text(configs, line + "\n" + RUN.replace("steps = %steps", "prompts = ()"))
    assert caught.type in (ValueError, FileNotFoundError, IsADirectoryError)
    assert re.search(r"configs/\w+/\w+.gin:\d+", str(caught.value))
    assert not (root / "sentinel").exists()
    assert "toy_sentinel" not in sys.modules


def test_link_inside_the_root_is_followed(configs):
    (configs / "models" / "alias.gin").symlink_to("tiny.gin")
    assert load_text(configs, RUN.replace("tiny.gin", "alias.gin")).run == BUILT


def test_root_without_a_configs_folder_is_the_files_own(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gin").write_text(PART)
    (tmp_path / "toy.gin").write_text(RUN)
    assert load_toy(file=tmp_path / "toy.gin").run == BUILT


def test_missing_run_file_is_named(configs):
    with pytest.raises(
        FileNotFoundError, match="cannot read the gin file runs/no.gin: no such file"
    ):
        load_toy(file="runs/no.gin")


# Mistakes: added lines -> message

MISTAKES = {
    "field": ("ToyModel.hieght = 1", r"ToyModel has no field 'hieght'"),
    "field, suggested": ("ToyModel.witdh = 1", "did you mean 'width'"),
    "configurable": (
        "ToyModle.width = 1",
        "no configurable is called 'ToyModle'; did you mean 'ToyModel'",
    ),
    "block": ("ToyModel:\n  witdh = 1", "toy.gin:16: ToyModel.witdh: ToyModel has no field"),
    "empty block name": ("ToyModle:\n  width = 1", "no configurable is called 'ToyModle'"),
    "reference": ("ToySgd.rate = @ToyRat()", "called 'ToyRat'; did you mean 'ToyRate'"),
    "nested reference": ("ToyData.mix = (@ToyDta(),)", "called 'ToyDta'; did you mean 'ToyData'"),
    "no parentheses": (
        "ToyRun.data = @train/ToyData",
        r"write @train/ToyData\(\) with parentheses",
    ),
    "scope": (
        "evaal/ToyData.shuffle = True",
        "nothing uses it.*did you mean 'eval/ToyData.shuffle'",
    ),
    "reference scope": (
        "ToyRun.data = @trian/ToyData()",
        r"(?s)train/ToyData.path is bound but nothing.*trian/ToyData.path must be bound",
    ),
    "unused macro": ("lr = 1", "toy.gin:15: lr is bound but nothing uses it: no %lr is in use"),
    "macro for a field": ("peak = 1", "did you mean 'ToyRate.peak'"),
    "misspelt macro": ("stepps = 1", "did you mean 'steps'"),
    "undefined macro": (
        "ToyModel.heads = %head",
        "ToyModel.heads uses %head, which is not defined",
    ),
    "suggested macro": ("ToyModel.heads = %widht", "did you mean 'width'"),
    "circular macro": (
        "a = %b\nb = [%a]\nToyModel.heads = %a",
        "uses the macro %a, which is defined by itself",
    ),
    "circle": (
        "ToyData.mix = (@ToyData(),)",
        r"form a circle: @train/ToyData\(\) -> @train/ToyData\(\)",
    ),
    "unused class": (
        "ToyRun.optimizer = @ToySgd()\nunused/ToyRate.peak = 1.0",
        "toy.gin:16: unused/ToyRate",
    ),
    "shadowed": (
        "ToyData.path = 'd'",
        "every @ToyData.. takes it from a binding with a longer scope",
    ),
    "twice": (
        "ToyRate.peak = 3.0",
        "ToyRate.peak is bound twice, at .*toy.gin:14 and .*toy.gin:15",
    ),
    "str for int": ("ToyModel.heads = 'four'", "ToyModel.heads must be int, got str 'four'"),
    "float for int": ("ToyModel.heads = 1e5", "must be int, got float 100000.0; write 100000"),
    "bool for int": ("ToyModel.heads = True", "must be int, got bool True"),
    "bool for float": ("ToySgd.rate = True", r"must be float \| Rate, got bool True"),
    "int for str": ("eval/ToyData.path = 5", "must be str, got int 5; write '5' with the quotes"),
    "int for bool": ("eval/ToyData.shuffle = 1", "must be bool, got int 1"),
    "str for tuple": (
        "ToyRun.prompts = ('a')",
        r"must be tuple\[str, ...\], got str 'a'; write \('a',\)",
    ),
    "tuple item": ("ToyRun.prompts = ('a', 1)", "must be str, got int 1"),
    "dict item": ("ToyRun.rates = {'a': 'b'}", "ToyRun.rates must be float, got str 'b'"),
    "None": ("ToyModel.heads = None", "must be int, got None"),
    "literal": ("ToyRun.dtype = 'int8'", "must be Literal.*, got str 'int8'"),
    "wrong class": ("ToyRun.validation = @ToySgd()", r"must be Data \| None, got @ToySgd\(\)"),
    "infinite": (
        "eval/ToyRate.peak = 1e999\nToySgd.rate = @eval/ToyRate()",
        "must be float, got float inf",
    ),
    "macro of wrong type": (
        "n = 'x'\nToyModel.heads = %n",
        "ToyModel.heads must be int, got str 'x'",
    ),
    "refused value": (
        "ToyModel.heads = 3",
        r"heads=3 must divide width=8; set heads \(in ToyModel; bound: "
        r"ToyModel.width = 8 at configs/models/tiny.gin:2, "
        r"ToyModel.heads = 3 at configs/runs/toy.gin:15\)$",
    ),
    "bare word": (
        "ToyModel.heads = four",
        "toy.gin:15: 'four' is no gin value; a line reads KEY = VALUE",
    ),
    "expression": ("ToyModel.heads = 2*3", "toy.gin:15: .*a line reads KEY = VALUE"),
    "no value": ("ToyModel.heads =", "toy.gin:15: Unable to parse value"),
    "no line": ("what is this", "toy.gin:15: "),
    "open bracket": ("ToyRun.prompts = ('a',", r"toy.gin:\d+: .*EOF"),
    "indent": ("  ToyModel.heads = 3\n ToyModel.heads = 4", r"toy.gin:\d+: "),
    "deep": ("ToyRun.prompts = " + "[" * 90 + "]" * 90, "must be str, got list"),
    "very deep": ("ToyRun.prompts = " + "[" * 3000, "toy.gin"),
}


@pytest.mark.parametrize("lines, message", MISTAKES.values(), ids=MISTAKES)
def test_mistake_in_a_file_is_refused(configs, lines, message):
    text = RUN
    if lines.startswith(("ToySgd.rate", "ToyRun.data", "ToyRun.optimizer", "ToyRun.validation")):
        key = re.escape(lines.split(" ")[0].split(".")[1])
        text = re.sub(rf"^(    |ToySgd\.){key} = .*$", "#", text, flags=re.M)
    if "1e999" in lines:
        text = re.sub(r"^ToySgd.rate = .*$|^ToyRate.peak = .*$", "#", text, flags=re.M)
    if lines.startswith("eval/ToyData.path"):
        text = text.replace("eval/ToyData.path = 'c'", "#")
    with pytest.raises(ValueError, match=message) as caught:
        load_text(configs, text + lines + "\n")
    assert "toy.gin" in str(caught.value)


FLAGS = {
    "unquoted": (
        "ToyRun.dtype=bfloat16",
        r"""'bfloat16' is no gin value.*--gin.ToyRun.dtype='"bfloat16"'$""",
    ),
    "path": ("train/ToyData.path=a/b", """--gin.train/ToyData.path='"a/b"'"""),
    "empty": ("ToyModel.heads=", "'' is no gin value"),
    "no value": ("ToyModel.heads", "write --gin.KEY=VALUE"),
    "import": ("import os", "write --gin.KEY=VALUE"),
    "include": ("include='x.gin'", "include is bound but nothing uses it"),
    "two lines": ("steps=3\nToyModel.heads = 4", "must be one binding"),
    "import line": ("steps=3\nimport os", "must be one binding"),
    "field": ("ToyModel.witdh=1", "command line: ToyModel.witdh: .*did you mean 'width'"),
    "type": ("ToyModel.heads='4'", "command line: ToyModel.heads must be int, got str '4'"),
    "scope": ("evaal/ToyData.path='x'", "did you mean 'eval/ToyData.path'"),
    "macro": ("step=3", "did you mean 'steps'"),
    "refused value": (
        "ToyModel.heads=3",
        "toy.gin: heads=3 must divide .*heads = 3 at command line",
    ),
}


@pytest.mark.parametrize("flag, message", FLAGS.values(), ids=FLAGS)
def test_mistake_in_a_flag_is_refused(configs, flag, message):
    with pytest.raises(ValueError, match=message):
        load_toy(flag)


def test_refused_value_names_keys_of_other_configs_too(configs):
    with pytest.raises(
        ValueError, match=r"\(in ToyModel; bound: .*train/ToyData.path = 'a b' at conf"
    ):
        load_toy("ToyModel.heads=0")


def test_flag_given_twice_is_refused(configs):
    with pytest.raises(ValueError, match="ToyModel.heads is bound twice"):
        load_toy("ToyModel.heads=4", "ToyModel.heads=2")


def test_missing_fields_are_all_named(configs):
    with pytest.raises(
        ValueError, match="(?s)ToyRun.model must be bound.*ToyRun.data.*ToyRun.steps"
    ):
        load_text(configs, "ToyRun.prompts = ()\n")


@pytest.mark.parametrize("name, problem", [("Loose", "only config data"), ("Swallowing", "kwargs")])
def test_only_strict_dataclasses_are_configurable(configs, name, problem):
    table = {**TOY, "ToyOdd": f"{__name__}:{name}"}
    (configs / "runs" / "toy.gin").write_text(RUN + "ToyOdd.size = 1\n")
    with pytest.raises(TypeError, match=problem):
        load("configs/runs/toy.gin", table=table, root="ToyRun")


# Types


@pytest.mark.parametrize(
    "value, hint, result",
    [
        (1, float, 1.0),
        (1, int | float, 1),
        (1, float | None, 1.0),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ((1, "a"), tuple[int, str], (1, "a")),
        ([True], list[bool], [True]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        (None, int | None, None),
    ],
)
def test_conform_converts(value, hint, result):
    found = conform(value, hint)
    assert repr(found) == repr(result)  # 1 == 1.0 == True


@pytest.mark.parametrize(
    "value, hint",
    [
        (True, int),
        (True, float),
        (True, int | None),
        (1, bool),
        ("1", int),
        (1.0, int),
        (10**400, float),
        (float("nan"), float),
        ((1, 2, 3), tuple[int, int]),
        (("a",), list[str]),
        ([1] * 99 + ["a"], list[int]),
        ({1: 1}, dict[str, int]),
    ],
)
def test_conform_refuses(value, hint):
    with pytest.raises(TypeError, match="must be .*, got"):
        conform(value, hint)


# The real table


@pytest.mark.parametrize("name", TABLE)
def test_table_names_a_dataclass_without_loose_ends(name):
    module, class_name = TABLE[name].split(":")
    cls = getattr(importlib.import_module(module), class_name)
    assert cls.__dataclass_params__.frozen or cls.__dataclass_params__.unsafe_hash
    assert name.split(".")[-1] == class_name
    hints = typing.get_type_hints(cls)
    assert {one.name for one in dataclasses.fields(cls)} <= set(hints)
    assert all(one.kind is not one.VAR_KEYWORD for one in signature(cls).parameters.values())
