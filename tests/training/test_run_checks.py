"""What a run refuses before anything is read: head, objective, data and model that do not fit."""

import argparse
import dataclasses

import pytest

from xformer.cli.run_folder import other_data
from xformer.data.pipeline import PairData, PreparedData, TextData
from xformer.data.tasks import MultipleChoiceData, SequenceClassificationData
from xformer.layers.heads import (
    REGRESSION,
    CausalLM,
    MaskedLM,
    MultipleChoice,
    NextSentence,
    SequenceClassification,
)
from xformer.models.squeezebert_config import SqueezeBertConfig
from xformer.models.xglm import XGLMConfig
from xformer.objectives import (
    ChoiceSelection,
    Classification,
    MaskedTokens,
    NextToken,
    SentencePairs,
)
from xformer.optim import AdamW
from xformer.training.config import Run

MODEL = SqueezeBertConfig(hidden_size=16, embedding_size=16, num_attention_heads=4)
FILES = {"files": ("x",), "tokenizer": "t", "length": 16}
LABELLED = SequenceClassificationData(**FILES)


def run(**fields):
    values = {
        "model": MODEL,
        "head": SequenceClassification(),
        "objective": Classification(),
        "train_data": LABELLED,
        "optimizer": AdamW(1e-3),
        "steps": 1,
        "batch_size": 8,
        "folder": "run",
    }
    return Run(**{**values, **fields})


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"train_data": MultipleChoiceData(**FILES)},
            r"goes with heads\.MultipleChoice, got .*set",
        ),
        (
            {"head": MultipleChoice(), "objective": ChoiceSelection()},
            r"SequenceClassificationData goes with heads\.SequenceClassification.*set Run\.head",
        ),
        (
            {"validation_data": TextData(**FILES)},
            r"SequenceClassification learns from data of its task, with labels, got TextData; set "
            r"Run\.validation_data",
        ),
        (
            {"head": NextSentence(), "objective": SentencePairs()},
            r"goes with heads\.SequenceClassification, got heads\.NextSentence",
        ),
        (
            {
                "head": NextSentence(),
                "objective": SentencePairs(),
                "train_data": PreparedData("x"),
            },
            r"NextSentence learns from PairData, got PreparedData; set Run\.train_data",
        ),
        (
            {"objective": MaskedTokens()},
            r"Run\.objective MaskedTokens needs Run\.head to be one of",
        ),
        (
            {
                "head": SequenceClassification(("value",), REGRESSION),
                "objective": Classification(label_smoothing=0.1),
            },
            r"Classification\.label_smoothing must be 0 for .*'regression', got 0\.1",
        ),
        (
            {
                "head": MaskedLM(),
                "objective": MaskedTokens(join_documents=True),
                "train_data": PairData(**FILES),
            },
            r"MaskedTokens\.join_documents must be False for PairData",
        ),
        ({"head": CausalLM()}, r"Run\.head must be one of .* for SqueezeBertConfig, got CausalLM"),
        (
            {"train_data": dataclasses.replace(LABELLED, length=513)},
            r"Data\.length=513 must be at most SqueezeBertConfig\.max_position_embeddings=512",
        ),
        (
            {"validation_data": LABELLED, "eval_batches": 3},
            r"Run\.eval_batches must be None for a task",
        ),
        (
            {"folder": "gs://bucket/run"},
            r"Run\.folder must be a path, got 'gs://bucket/run'; mount",
        ),
        (
            {"sample_prompts": ("a",)},
            r"Run\.sample_prompts .* ConditionalGeneration, got SequenceClassification",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_key(fields, message):
    with pytest.raises(ValueError, match=message):
        run(**fields)


def test_pairs_are_no_rows_of_running_text():
    model = XGLMConfig(d_model=16, ffn_dim=32, num_layers=1, attention_heads=2)
    with pytest.raises(
        ValueError, match=r"CausalLM learns from PreparedData, TextData or a Mixture, got Pair"
    ):
        run(model=model, head=CausalLM(), objective=NextToken(), train_data=PairData(**FILES))


def test_what_does_fit_is_taken():
    assert not run().scores_text
    assert run(validation_data=LABELLED).validation_data == LABELLED
    text = run(head=MaskedLM(), objective=MaskedTokens(), train_data=TextData(**FILES))
    assert text.scores_text


def test_start_is_part_of_the_identity():
    from xformer.training.start import Pretrained

    assert "start" not in run().identity()  # as runs recorded it before there were starts
    assert run(start=Pretrained("a")).identity()["start"]["path"] == "a"


def test_other_files_are_read_like_the_runs_own(tmp_path):
    found = other_data(run(folder=str(tmp_path), validation_data=LABELLED), ["a.csv", "b.csv"])
    assert found.files == ("a.csv", "b.csv")
    assert found.tokenizer == str(tmp_path / "tokenizer")
    (tmp_path / "manifest.json").write_text("{}")
    assert other_data(run(), [str(tmp_path)]) == PreparedData(str(tmp_path))
    prepared = run(head=MaskedLM(), objective=MaskedTokens(), train_data=PreparedData("p"))
    with pytest.raises(ValueError, match="give one folder that `xformer prepare` wrote, not a.csv"):
        other_data(prepared, ["a.csv"])


def test_predictions_need_a_task(monkeypatch):
    from xformer.cli import predict

    text = run(head=MaskedLM(), objective=MaskedTokens(), train_data=TextData(**FILES))
    monkeypatch.setattr(predict, "read_run", lambda args: text)
    args = argparse.Namespace(files=["a"], out="o", batch_size=None, run="r")
    with pytest.raises(ValueError, match=r"trained on TextData, which is no task"):
        predict.run(args)
