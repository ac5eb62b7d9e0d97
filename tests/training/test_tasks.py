"""Finetuning from the command line, each head: train, evaluate, predict, export."""

import argparse
import dataclasses
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from xformer.cli.main import main
from xformer.cli.run_folder import other_data, read_run
from xformer.models.bigbird_config import BigBirdConfig
from xformer.training import inference
from xformer.training.evaluation import in_order, open_pass
from xformer.training.inference import load_trained, predict
from xformer.training.runlog import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIXTURES = Path(__file__).parents[1] / "tokenization" / "fixtures"
NAMES = [f"it is {word}" for word in ("red", "green and blue", "not a colour at all", "so")]
# Task -> data class, head, objective, further lines of the run file, rows, scores.
TASKS = {
    "single": (
        "SequenceClassificationData",
        "SequenceClassification",
        "Classification",
        ['heads.SequenceClassification.labels = ("no", "yes", "maybe")'],
        [{"text": text, "label": ("no", "yes", "maybe")[i % 3]} for i, text in enumerate(NAMES)],
        {"accuracy", "f1_macro"},
    ),
    "pairs": (
        "SequenceClassificationData",
        "SequenceClassification",
        "Classification",
        [
            'heads.SequenceClassification.labels = ("a", "b")',
            'heads.SequenceClassification.problem_type = "multi_label_classification"',
            'SequenceClassificationData.text_pair = "other"',
        ],
        [
            {"text": text, "other": "so?", "label": ["a", "b"][: i % 3]}
            for i, text in enumerate(NAMES)
        ],
        {"f1_micro", "f1_macro"},
    ),
    "regression": (
        "SequenceClassificationData",
        "SequenceClassification",
        "Classification",
        [
            'heads.SequenceClassification.labels = ("size",)',
            'heads.SequenceClassification.problem_type = "regression"',
        ],
        [{"text": text, "label": i / 2} for i, text in enumerate(NAMES)],
        {"pearson", "spearman", "mse"},
    ),
    "choice": (
        "MultipleChoiceData",
        "MultipleChoice",
        "ChoiceSelection",
        [],
        [
            {"context": t, "choices": ["one", "two", "three"], "label": i % 3}
            for i, t in enumerate(NAMES)
        ],
        {"accuracy"},
    ),
    "tags": (
        "TokenClassificationData",
        "TokenClassification",
        "TokenLabels",
        ['heads.TokenClassification.labels = ("O", "B-X", "I-X")'],
        [
            {"tokens": text.split(), "tags": ["O", "B-X", "I-X", *["O"] * 9][: len(text.split())]}
            for text in NAMES
        ],
        {"accuracy", "entity_f1"},
    ),
    "answers": (
        "QuestionAnsweringData",
        "QuestionAnswering",
        "SpanExtraction",
        ["QuestionAnsweringData.stride = 8"],
        [
            {
                "question": "what is it?",
                "context": text * 6,  # longer than a row
                "answers": {"text": [text.split()[-1]], "answer_start": [text.rfind(" ") + 1]},
            }
            for text in NAMES
        ],
        {"exact_match", "f1"},
    ),
}
SIZES = {
    "SqueezeBertConfig": {"embedding_size": 16},
    "BigBirdConfig": {"block_size": 4, "num_random_blocks": 1},
}
LENGTH = 32


def write_run(folder, family, task):
    """Writes a task's data and its run file."""
    data, head, objective, lines, rows, _ = TASKS[task]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    config = {"squeezebert": "SqueezeBertConfig", "bigbird": "BigBirdConfig"}[family]
    sizes = {"vocab_size": 2000, "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    settings = {
        "Run.model": f"@{config}()",
        "Run.head": f"@heads.{head}()",
        "Run.objective": f"@{objective}()",
        "Run.train_data": f"@{data}()",
        "Run.validation_data": f"@{data}()",
        "Run.optimizer": "@AdamW()",
        "AdamW.learning_rate": 1e-3,
        "Run.steps": 2,
        "Run.batch_size": 8,
        "Run.folder": repr(str(folder / "run")),
        f"{data}.files": (str(folder / "rows.jsonl"),),
        f"{data}.tokenizer": repr(str(FIXTURES / family)),
        f"{data}.length": LENGTH,
        **{f"{config}.{key}": value for key, value in {**sizes, **SIZES[config]}.items()},
    }
    lines = [*(f"{key} = {value}" for key, value in settings.items()), *lines]
    (folder / "run.gin").write_text("\n".join(lines) + "\n")
    return folder / "run.gin"


CASES = [
    ("squeezebert", "single"),
    ("bigbird", "pairs"),
    ("squeezebert", "regression"),
    ("bigbird", "choice"),
    ("squeezebert", "tags"),
    ("bigbird", "answers"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory):
    """A finished run on a task, moved: the task, the run folder, the model."""
    family, task = request.param
    place = tmp_path_factory.mktemp(f"{family}_{task}")
    jax.config.update("jax_disable_most_optimizations", True)
    assert main(["train", "--gin_file", str(write_run(place, family, task)), "--plain"]) == 0
    folder = (place / "run").rename(place / "moved")
    run = read_run(argparse.Namespace(run=str(folder), gin_bindings=[]))
    return task, folder, load_trained(run)


def open_again(folder, model):
    return other_data(model.run, [str(folder.parent / "rows.jsonl")]).open(model.run.head)


def test_run_is_scored_by_the_metrics_of_its_task(case, capsys):
    task, folder, _ = case
    first, *_, last = [r for r in read_metrics(folder) if r["kind"] == "validation"]
    assert TASKS[task][-1] <= last.keys() and first["step"] == 0 and last["step"] == 2
    assert "perplexity" not in last
    capsys.readouterr()
    assert main(["eval", str(folder), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.keys() >= TASKS[task][-1]
    for name in scores.keys() - {"step"}:
        assert scores[name] == pytest.approx(last[name], rel=1e-5, nan_ok=True), name
    report = (folder / "report.html").read_text()
    assert f"validation {sorted(TASKS[task][-1])[0].replace('_', ' ')} after" in report


def test_predictions_are_written_for_files_without_labels(case):
    task, folder, _ = case
    place = folder.parent
    rows = [dict(row) for row in TASKS[task][4]]
    for row in rows:
        for key in ("label", "tags", "answers"):
            row.pop(key, None)
    (place / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = place / "predictions.jsonl"
    assert main(["predict", str(folder), str(place / "new.jsonl"), "-o", str(out)]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["id"] for one in found] == [0, 1, 2, 3]
    if task == "answers":
        assert all(one["answer"] in row["context"] for one, row in zip(found, rows, strict=True))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The folder of a finished run on single labels, with unlabelled rows beside it."""
    place = tmp_path_factory.mktemp("single")
    gin_file = write_run(place, "squeezebert", "single")
    assert main(["train", "--gin_file", str(gin_file), "--gin.Run.steps=1", "--plain"]) == 0
    lines = [json.dumps({"body": text}) for text in NAMES]
    (place / "new.jsonl").write_text("\n".join(lines) + "\n")
    return place / "run"


def test_the_documented_binding_of_another_column_works(single, capsys):
    text = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text()
    line = re.search(r"^xformer (predict .*--gin.*)$", text, re.M)[1]
    command = [
        {"runs/reviews": str(single), "new.csv": str(single.parent / "new.jsonl")}.get(one, one)
        for one in shlex.split(line)
    ]
    command[command.index("-o") + 1] = str(single.parent / "found.jsonl")
    assert main(command) == 0, capsys.readouterr().err
    assert len((single.parent / "found.jsonl").read_text().splitlines()) == len(NAMES)


@pytest.mark.parametrize(
    "out, message",
    [("nowhere/o.jsonl", "there is no folder .*nowhere"), (".", "-o must name a file to write")],
)
def test_predictions_that_cannot_be_written_are_not_computed(
    single, out, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference, "load_trained", None)
    rows = str(single.parent / "rows.jsonl")
    assert main(["predict", str(single), rows, "-o", out]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_scores_that_are_not_finite_are_no_predictions(single, monkeypatch, tmp_path, capsys):
    def damaged(run):
        model = load_trained(run)
        return dataclasses.replace(model, params=jax.tree.map(lambda x: x * np.nan, model.params))

    monkeypatch.setattr(inference, "load_trained", damaged)
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(single), str(single.parent / "rows.jsonl"), "-o", str(out)]) == 2
    assert "must say finite numbers, got others for the row with id 0" in capsys.readouterr().err
    assert not out.exists()


def test_predictions_are_of_all_rows_whatever_an_evaluation_is_limited_to(single, tmp_path):
    limited = ["--gin.Run.validation_data=None", "--gin.Run.eval_batches=1", "--batch-size=1"]
    out = tmp_path / "out.jsonl"
    rows = tmp_path / "rows.jsonl"  # more than a batch of eight devices
    rows.write_text(3 * (single.parent / "rows.jsonl").read_text())
    assert main(["predict", str(single), str(rows), "-o", str(out), *limited]) == 0
    assert len(out.read_text().splitlines()) == 6 * len(NAMES)


def test_a_task_is_not_scored_in_part(single, capsys):
    assert main(["eval", str(single), "--batches", "1"]) == 2
    assert "error: --batches is not for a task" in capsys.readouterr().err


@pytest.mark.reference
def test_exported_model_says_the_same_in_transformers(case):
    import torch
    import transformers

    task, folder, model = case
    out = folder.parent / "exported"
    assert main(["export", str(folder), str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    name = f"For{TASKS[task][1]}"
    assert config["architectures"][0].endswith(name)
    theirs = getattr(transformers, f"AutoModel{name}").from_pretrained(out).eval()
    head, opened = model.run.head, open_again(folder, model)
    if labels := getattr(head, "labels", None):
        assert [theirs.config.id2label[i] for i in range(len(labels))] == list(labels)
        assert theirs.config.problem_type == getattr(head, "problem_type", None)
    rows = [opened.row(index) for index in range(opened.rows)]
    inputs = {
        key: torch.tensor(np.stack([row[key] for row in rows]), dtype=torch.long)
        for key in ("input_ids", "attention_mask", "token_type_ids")
        if key in rows[0]
    }
    with torch.no_grad():
        outputs = theirs(**inputs)
    outputs = {name: outputs[name].numpy() for name in opened.fields}
    ours = predict(model, opened)
    assert_same(ours, opened.predictions(outputs))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("it is red")["input_ids"] == model.tokenizer("it is red")["input_ids"]


def test_export_warns_of_what_transformers_does_not_know(case, caplog):
    _, folder, model = case
    if not isinstance(model.run.model, BigBirdConfig):
        pytest.skip("random_blocks is a field of BigBird alone")
    out = folder.parent / "unknown"
    fixed = "--gin.BigBirdConfig.random_blocks='fixed'"
    assert main(["export", str(folder), str(out), fixed]) == 0
    text = f"another model from {out}, or none: it does not know random_blocks='fixed'"
    assert text in caplog.text


def assert_same(ours, theirs):
    """Compares JSON values; numbers as the outputs of two implementations."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = [*ours.values()], [*theirs.values()]
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == (pytest.approx(theirs, abs=1e-4) if isinstance(ours, float) else theirs)


def test_only_a_causal_head_continues_texts(case, capsys):
    _, folder, model = case
    assert main(["generate", str(folder), "a"]) == 2
    head = type(model.run.head).__name__
    assert f"heads.CausalLM continues texts, got heads.{head}" in capsys.readouterr().err


def test_outputs_are_put_in_the_order_of_the_rows_without_padding(case):
    _, folder, model = case
    task = open_again(folder, model)
    numbers = np.random.default_rng(0).permutation(task.rows + 3)  # the last 3 are padding
    parts = [(some, dict.fromkeys(task.fields, some)) for some in np.array_split(numbers, 2)]
    for values in in_order(parts, task).values():
        np.testing.assert_array_equal(values, np.arange(task.rows))


def test_outputs_of_some_rows_alone_are_refused(case):
    _, folder, model = case
    task = open_again(folder, model)
    numbers = np.arange(task.rows - 1)
    with pytest.raises(ValueError, match=rf"all {task.rows} rows, got {task.rows - 1}"):
        in_order([(numbers, dict.fromkeys(task.fields, numbers))], task)


def test_a_pass_gives_every_row_of_a_task_once(case):
    _, folder, model = case
    task = open_again(folder, model)
    rows = np.concatenate([batch["input_ids"] for batch in open_pass(model.run, task)])
    expected = np.stack([task.row(index)["input_ids"] for index in range(task.rows)])
    np.testing.assert_array_equal(rows[: task.rows], expected)
