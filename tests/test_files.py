"""Addresses of buckets are no paths: they are refused before anything is made of them."""

from pathlib import Path

import pytest

from xformer.cli.main import main
from xformer.data.mixture import Mixture
from xformer.data.pipeline import PreparedData, TextData, read_tokenizer
from xformer.data.prepare import PrepareOptions, prepare
from xformer.data.tasks import SequenceClassificationData
from xformer.training.start import Pretrained

BUCKET = "gs://bucket/folder"
TOKENIZER = Path(__file__).parent / "tokenization" / "fixtures" / "xglm"
OPTIONS = PrepareOptions(length=8)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: TextData((BUCKET,), "tokenizer", 8), "TextData.files"),
        (
            lambda: SequenceClassificationData(("a", BUCKET), "tokenizer", 8),
            "SequenceClassificationData.files",
        ),
        (lambda: Pretrained(BUCKET), "Pretrained.path"),
        (lambda: read_tokenizer(TextData(("a",), BUCKET, 8)), "tokenizer"),
        (lambda: prepare(["a"], "tokenizer", BUCKET, options=OPTIONS), "out"),
        (lambda: prepare([BUCKET], TOKENIZER, "out", options=OPTIONS), "files"),
        (lambda: prepare(["a"], BUCKET, "out", options=OPTIONS), "tokenizer"),
    ],
)
def test_a_bucket_where_none_is_read_is_refused_by_key(make, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{key} must be a path, got '{BUCKET}'; mount the bucket"):
        make()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://bucket/folder", "must be a path, got 's3://bucket/folder'; mount the bucket"),
        ("gs://bucket", r"must be a folder in a bucket .gs://BUCKET/FOLDER., got 'gs://bucket'"),
        ("gs://bucket/", "must be a folder in a bucket"),
    ],
)
def test_other_addresses_of_prepared_corpora_are_refused(address, message):
    with pytest.raises(ValueError, match=f"PreparedData.path {message}"):
        PreparedData(address)
    with pytest.raises(ValueError, match=rf"Mixture.sources\['en'\] {message}"):
        Mixture({"en": address})


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["eval", BUCKET], "RUN"),
        (["export", "runs/first", BUCKET], "OUT"),
        (["predict", "runs/first", "rows.csv", "--out", BUCKET], "OUT"),
        (["prepare", "a.txt", "--tokenizer", "a", "--length", "8", "--out", BUCKET], "OUT"),
    ],
)
def test_a_bucket_on_the_command_line_is_refused(arguments, key, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert f"{key} must be a path, got '{BUCKET}'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
