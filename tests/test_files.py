"""Addresses of buckets are no paths: they are refused before anything is made of them."""

import pytest

from xformer.cli.main import main
from xformer.data.mixture import Mixture
from xformer.data.pipeline import PreparedData, TextData
from xformer.data.tasks import SequenceClassificationData
from xformer.training.start import Pretrained

BUCKET = "gs://bucket/folder"


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: PreparedData(BUCKET), "PreparedData.path"),
        (lambda: Mixture({"en": BUCKET}), r"Mixture.sources\['en'\]"),
        (lambda: TextData((BUCKET,), "tokenizer", 8), "TextData.files"),
        (
            lambda: SequenceClassificationData(("a", BUCKET), "tokenizer", 8),
            "SequenceClassificationData.files",
        ),
        (lambda: Pretrained(BUCKET), "Pretrained.path"),
    ],
)
def test_a_bucket_in_a_config_is_refused_by_key(make, key):
    with pytest.raises(ValueError, match=f"{key} must be a path, got '{BUCKET}'; mount the bucket"):
        make()


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["eval", BUCKET], "RUN"),
        (["export", "runs/first", BUCKET], "OUT"),
        (["predict", "runs/first", "rows.csv", "--out", BUCKET], "OUT"),
    ],
)
def test_a_bucket_on_the_command_line_is_refused(arguments, key, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert f"{key} must be a path, got '{BUCKET}'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
