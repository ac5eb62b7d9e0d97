"""Sources with targets: rows, what is too long, what is read off written tokens."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from xformer.data.tasks import SequenceToSequenceData, Task
from xformer.data.tokenizer import load_tokenizer
from xformer.layers.heads import CausalLM, ConditionalGeneration
from xformer.losses import IGNORED

FIXTURES = Path(__file__).parents[2] / "tokenization" / "fixtures"
UMT5 = str(FIXTURES / "umt5")
HEAD = ConditionalGeneration()
ROWS = [{"source": "it is red", "target": "red"}, {"source": "so?", "target": "not a colour"}]


def opened(files, length=16, labelled=True, **fields):
    return SequenceToSequenceData(files, UMT5, length, **fields).open(HEAD, labelled=labelled)


def tokens(row, ids="input_ids", mask="attention_mask"):
    return row[ids][row[mask] == 1].tolist()


def test_rows_have_the_source_the_shifted_target_and_labels(write):
    task = opened(write(ROWS), target_length=12)
    tokenizer = load_tokenizer(UMT5, fast=True)
    assert isinstance(task, Task) and task.rows == 2
    for index, example in enumerate(ROWS):
        row = task.row(index)
        assert all(one.dtype == np.int32 for one in row.values())
        assert row["input_ids"].shape == (16,) and row["labels"].shape == (12,)
        assert tokens(row) == tokenizer(example["source"])["input_ids"]
        target = tokenizer(example["target"])["input_ids"]
        assert target[-1] == tokenizer.eos_token_id
        padding = [IGNORED] * (12 - len(target))
        assert row["labels"].tolist() == target + padding
        read = tokens(row, "decoder_input_ids", "decoder_attention_mask")
        assert read == [tokenizer.pad_token_id, *target[:-1]]


def test_a_prefix_stands_before_every_source(write):
    task = opened(write(ROWS), prefix="colour: ", length=24)
    expected = load_tokenizer(UMT5, fast=True)("colour: it is red")["input_ids"]
    assert tokens(task.row(0)) == expected


def test_padding_rows_score_nothing(write):
    task = opened(write(ROWS))
    row, padding = task.row(0), task.padding_row()
    assert {k: (v.shape, v.dtype) for k, v in row.items()} == {
        k: (v.shape, v.dtype) for k, v in padding.items()
    }
    assert padding["attention_mask"].sum() == padding["decoder_attention_mask"].sum() == 0
    assert (padding["labels"] == IGNORED).all()


LONG = [*ROWS, {"source": "word " * 30, "target": "w"}, {"source": "w", "target": "word " * 30}]


def test_long_texts_are_cut_before_their_end_token_and_counted(write):
    task = opened(write(LONG), target_length=8)
    tokenizer = load_tokenizer(UMT5, fast=True)
    whole = tokenizer("word " * 30)["input_ids"]
    assert tokens(task.row(2)) == [*whole[:15], tokenizer.eos_token_id]
    assert task.row(3)["labels"].tolist() == [*whole[:7], tokenizer.eos_token_id]
    assert task.too_long == {"sources_too_long": 1, "targets_too_long": 1}
    assert task.fingerprint().items() >= task.too_long.items()
    whole_texts = [{"text": row["target"]} for row in LONG]
    scores = task.metrics(whole_texts)
    assert scores["exact_match"] == 1.0 and scores["targets_too_long"] == 1.0
    assert "targets_too_long" not in opened(write(ROWS)).metrics(whole_texts[:2])


def test_a_text_of_the_most_tokens_is_whole(write):
    size = len(load_tokenizer(UMT5, fast=True)("word " * 30)["input_ids"])
    task = opened(write(LONG), length=size)
    assert set(task.too_long.values()) == {0} and len(tokens(task.row(2))) == size


def test_long_examples_are_left_out_and_counted(write):
    task = opened(write(LONG[2:3] + ROWS), too_long="leave_out")
    assert task.rows == 2 and task.too_long["sources_too_long"] == 1
    found = task.predictions({"sequences": np.zeros((2, 4), np.int32)})
    assert [one["id"] for one in found] == [1, 2]
    assert task.metrics([{"text": row["target"]} for row in ROWS])["exact_match"] == 1.0
    with pytest.raises(ValueError, match="all 1 examples are too long; set SequenceToSequenceData"):
        opened(write(LONG[2:3]), too_long="leave_out")


def test_long_examples_are_refused_by_name(write):
    message = r"1 of 3 examples are too long, the first .*rows.jsonl:1: \d+ tokens, and the most "
    with pytest.raises(ValueError, match=message + r"are 16; set SequenceToSequenceData\.length"):
        opened(write(LONG[2:3] + ROWS), too_long="refuse")


def test_predictions_are_texts_up_to_the_end_token(write):
    task = opened(write([{**ROWS[0], "name": "a"}, {**ROWS[1], "name": "b"}]), id="name")
    tokenizer = load_tokenizer(UMT5, fast=True)
    ids = np.full((2, 12), 7, np.int32)
    for row, text in zip(ids, ("red", "not a colour"), strict=True):
        written = [tokenizer.pad_token_id, *tokenizer(text)["input_ids"]]
        row[: len(written)] = written
    found = task.predictions({"sequences": ids})
    assert found == [{"id": "a", "text": "red"}, {"id": "b", "text": "not a colour"}]
    scores = task.metrics(found)
    assert scores["exact_match"] == 1.0 and scores["chrf"] == pytest.approx(100.0)
    assert {"bleu", "rouge1", "rouge2", "rougeL"} <= scores.keys()


def written(*texts):
    return [{"text": text} for text in texts]


def test_references_count_in_scores_and_leave_the_rows_as_they_are(write):
    files = write([{**ROWS[0], "all": ["dark red", "it is red"]}, {**ROWS[1], "all": []}])
    plain, several = opened(files), opened(files, references="all")
    for index in range(2):
        for name, value in plain.row(index).items():
            np.testing.assert_array_equal(several.row(index)[name], value)
    assert several.fingerprint() == plain.fingerprint()
    found = written("dark red", "not a colour")
    assert plain.metrics(found)["exact_match"] == 0.5
    scores = several.metrics(found)
    assert scores["exact_match"] == scores["rougeLsum"] == 1.0
    assert scores["chrf"] == pytest.approx(100.0)
    assert several.metrics(written("red", "x"))["exact_match"] == 0.5  # the target is right too


@pytest.mark.parametrize("is_table", [False, True])
def test_a_target_column_with_a_list_is_learned_by_its_first_text(write, tmp_path, is_table):
    texts = [["red", "dark red"], ["so", "thus", "hence"]]
    files = write([{"source": "a", "target": one} for one in texts])
    if is_table:
        files = (str(tmp_path / "rows.csv"),)
        with open(*files, "w", newline="") as file:
            cells = [["a", json.dumps(one)] for one in texts]
            csv.writer(file).writerows([["source", "target"], *cells])
    task = opened(files, references="target")
    plain = opened(write([{"source": "a", "target": one[0]} for one in texts], "plain.jsonl"))
    for index in range(2):
        np.testing.assert_array_equal(task.row(index)["labels"], plain.row(index)["labels"])
    assert task.metrics(written("dark red", "hence"))["exact_match"] == 1.0
    assert opened(files, labelled=False, references="target").rows == 2


@pytest.mark.parametrize(
    ("value", "references", "message"),
    [
        (
            ["a", "b"],
            None,
            "column 'target' holds a list; if all .*Data.references = 'target' .the first",
        ),
        ([], "target", r"column 'target' must hold at least one text, got \[\]"),
        (["a", " "], "target", "column 'target' must not hold empty texts"),
        ([1], "target", "column 'target' must hold a list of texts, got int 1"),
        ("a", "target", "column 'target' must hold JSON"),
    ],
)
def test_right_texts_that_cannot_be_used_are_named(write, value, references, message):
    with pytest.raises(ValueError, match=rf"rows.jsonl:1: {message}"):
        opened(write([{"source": "a", "target": value}]), references=references)


def test_rouge_takes_stems_where_that_is_asked_for(write):
    files = write([{"source": "a", "target": "cats"}])
    assert opened(files).metrics(written("cat"))["rouge1"] == 0.0
    assert opened(files, rouge_stemming=True).metrics(written("cat"))["rouge1"] == 1.0


def test_ids_of_large_vocabularies_stay_whole(write):
    task = opened(write(ROWS[:1]))
    seen = []
    task._read = lambda outputs: seen.append(outputs["sequences"]) or [{}]
    task.predictions({"sequences": np.array([[2**24 + 1]], np.int32)})
    assert seen[0].tolist() == [[2**24 + 1]]


def test_only_the_metrics_that_are_asked_for_are_computed_and_needed(write, monkeypatch):
    files = write(ROWS)
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    task = opened(files, metrics=("exact_match",))
    assert task.metrics([{"text": "red"}, {"text": ""}]) == {"exact_match": 0.5}
    opened(files, labelled=False)
    with pytest.raises(ModuleNotFoundError, match=r"need sacrebleu; .*xformer-jax\[eval\]"):
        opened(files, metrics=("bleu",))


def test_files_without_targets_are_only_predicted(write):
    task = opened(write([{"source": "it is red"}]), labelled=False)
    assert set(task.row(0)) == set(task.padding_row()) == {"input_ids", "attention_mask"}
    found = task.predictions({"sequences": np.zeros((1, 3), np.int32)})
    with pytest.raises(ValueError, match="metrics need labels"):
        task.metrics(found)


def test_generation_changes_no_fingerprint_and_lengths_do(write):
    files = write(ROWS)
    plain = opened(files).fingerprint()
    settings = {"num_beams": 4, "length_penalty": 0.6, "max_new_tokens": 9, "metrics": ("rouge",)}
    assert opened(files, **settings).fingerprint() == plain
    for other in ({"target_length": 9}, {"prefix": "a: "}, {"too_long": "refuse"}):
        assert json.dumps(opened(files, **other).fingerprint()) != json.dumps(plain)


def test_limits_follow_the_length():
    data = SequenceToSequenceData(("a",), "b", 32)
    assert data.most_target_tokens == data.most_new_tokens == 32
    data = SequenceToSequenceData(("a",), "b", 32, target_length=20)
    assert data.most_target_tokens == data.most_new_tokens == 20
    assert SequenceToSequenceData(("a",), "b", 32, max_new_tokens=5).most_new_tokens == 5


def test_tokenizers_that_do_not_end_texts_are_refused(write, sentencepiece):
    data = SequenceToSequenceData(write(ROWS), sentencepiece, 16)
    with pytest.raises(ValueError, match="SequenceToSequenceData.tokenizer must end texts in its"):
        data.open(HEAD)


def test_a_head_of_another_task_is_refused(write):
    with pytest.raises(ValueError, match="goes with heads.ConditionalGeneration, got heads.Causal"):
        SequenceToSequenceData(write(ROWS), UMT5, 16).open(CausalLM())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_length": 1}, "SequenceToSequenceData.target_length must be at least 2, got 1"),
        ({"max_new_tokens": 0}, "SequenceToSequenceData.max_new_tokens must be at least 1, got 0"),
        ({"num_beams": 0}, "SequenceToSequenceData.num_beams must be at least 1, got 0"),
        (
            {"length_penalty": 2.0},
            r"length_penalty=2.0 is for beams: set SequenceToSequenceData\.num",
        ),
        ({"too_long": "drop"}, r"too_long must be one of \('cut', .*, got 'drop'"),
        ({"metrics": ("bleu", "meteor")}, r"metrics must be of \(.*\), got \['meteor'\]"),
        ({"bleu_tokenizer": "flores200"}, r"bleu_tokenizer must be one of .* got 'flores200'"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SequenceToSequenceData(**{"files": ("a",), "tokenizer": "b", "length": 8, **change})
