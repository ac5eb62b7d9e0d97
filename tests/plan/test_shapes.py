"""The shapes of batches beside batches that were read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from xformer.configurables import load
from xformer.data.pipeline import PreparedData, open_batches, read_tokenizer
from xformer.plan import shapes
from xformer.plan.shapes import batch_shapes

RUNS = Path(__file__).parents[2] / "configs" / "runs"
TOKENIZERS = Path(__file__).parents[1] / "tokenization" / "fixtures"
WORDS = "The with statement is used to wrap the execution of a block of code."

TEXTS = [{"text": " ".join([WORDS] * 8)}] * 40
ROWS = {
    "finetune_classification": {"text": WORDS, "label": "mail"},
    "finetune_multi_label": {"text": WORDS, "labels": ["loops", "raises"]},
    "finetune_regression": {"text": WORDS, "value": 1.5},
    "finetune_pairs": {"text": WORDS, "claim": WORDS, "label": "true"},
    "finetune_token_classification": {"tokens": WORDS.split(), "tags": ["O"] * len(WORDS.split())},
    "finetune_question_answering": {
        "question": "What?",
        "context": WORDS,
        "answers": {"text": ["with"], "answer_start": [4]},
    },
    "finetune_multiple_choice": {
        "context": WORDS,
        "question": "Which?",
        "choices": ["one", "two", "three", "four"],
        "label": 1,
    },
    "finetune_sequence_to_sequence": {"signature": WORDS, "words": WORDS},
}
FAMILIES = {
    "pretrain_bigbird": ("TextData", "bigbird"),
    "pretrain_bigbird_decoder": ("TextData", "bigbird"),
    "pretrain_umt5": ("TextData", "umt5"),
    "pretrain_squeezebert": ("PairData", "squeezebert"),
    "finetune_classification": ("SequenceClassificationData", "squeezebert"),
    "finetune_multi_label": ("SequenceClassificationData", "bigbird"),
    "finetune_regression": ("SequenceClassificationData", "squeezebert"),
    "finetune_pairs": ("SequenceClassificationData", "bigbird"),
    "finetune_token_classification": ("TokenClassificationData", "bigbird"),
    "finetune_question_answering": ("QuestionAnsweringData", "bigbird"),
    "finetune_multiple_choice": ("MultipleChoiceData", "squeezebert"),
    "finetune_sequence_to_sequence": ("SequenceToSequenceData", "umt5"),
}


def read_run(name, folder):
    """A run of the repository, on a small file of its kind of rows."""
    kind, family = FAMILIES[name]
    rows = TEXTS if name not in ROWS else [{**ROWS[name], "id": i} for i in range(20)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(
        RUNS / f"{name}.gin",
        [f'train/{kind}.files=("{path}",)', f'{kind}.tokenizer="{TOKENIZERS / family}"'],
    ).run


@pytest.mark.parametrize("tokenizer", ["there", "elsewhere"])
@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_are_those_of_batches(name, tokenizer, tmp_path, monkeypatch):
    run = read_run(name, tmp_path)
    batches = open_batches(
        run.train_data,
        batch_size=run.batch_size,
        seed=0,
        transform=run.objective.transform(read_tokenizer(run.train_data)),
        head=run.head,
    )
    batch = next(batches)
    batches.close()
    if tokenizer == "elsewhere":

        def missing(data):
            raise FileNotFoundError("no tokenizer")

        monkeypatch.setattr(shapes, "read_tokenizer", missing)
    found = batch_shapes(run)
    optional = {"token_type_ids"}  # a tokenizer may leave them out, and they are small
    assert {name: (one.shape, one.dtype) for name, one in found.items() if name in batch} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }
    assert set(found) - set(batch) <= optional


def test_rows_of_a_corpus_elsewhere_have_the_length_that_is_given():
    run = load(RUNS / "quickstart.gin").run
    assert batch_shapes(run, 96)["input_ids"].shape == (run.batch_size, 96)


def test_corpora_in_buckets_are_not_looked_at():
    run = replace(load(RUNS / "quickstart.gin").run, train_data=PreparedData("gs://bucket/rows"))
    assert batch_shapes(run, 96)["input_ids"].shape == (run.batch_size, 96)
    with pytest.raises(ValueError, match="gs://bucket/rows is not here, .* pass --length"):
        batch_shapes(run)


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("quickstart", None, "nothing says how long its rows are: pass --length"),
        ("quickstart", 1, "--length must be at least 2, got 1"),
        ("pretrain_umt5", 96, "--length=96 is for prepared corpora .* have 256 tokens; leave it"),
    ],
)
def test_lengths_that_are_missing_or_too_many_are_refused(name, length, message):
    run = load(RUNS / f"{name}.gin").run
    with pytest.raises(ValueError, match=message):
        batch_shapes(run, length)
