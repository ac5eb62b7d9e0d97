"""`xformer generate` with model folders: prompts from everywhere, texts in every form."""

import io
import json
import shutil
from pathlib import Path

import pytest

from xformer import (
    BigBirdConfig,
    BigBirdTokenizer,
    FlaxBigBirdForCausalLM,
    FlaxUMT5ForConditionalGeneration,
    FlaxXGLMForCausalLM,
    T5Tokenizer,
    UMT5Config,
    XGLMConfig,
    XGLMTokenizer,
)
from xformer.cli.main import main
from xformer.cli.out_file import GrowingFile
from xformer.generation.config import GenerationConfig
from xformer.generation.decoding import Beams
from xformer.generation.writer import Writer

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIXTURES = Path(__file__).parents[1] / "tokenization" / "fixtures"
SHORT = ("--max-new-tokens", "6")
WRITE = Writer.write


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = XGLMTokenizer.from_pretrained(FIXTURES / "xglm")
    config = XGLMConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        d_model=16,
        ffn_dim=24,
        num_layers=1,
        attention_heads=2,
        init_std=0.8,
    )
    FlaxXGLMForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    tokenizer = T5Tokenizer.from_pretrained(FIXTURES / "umt5")
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        initializer_factor=6.0,
    )
    FlaxUMT5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def output(capsys):
    def output(*arguments):
        capsys.readouterr()
        code = main(["generate", *map(str, arguments)])
        out = capsys.readouterr()
        assert code == 0, out.err
        return out.out

    return output


def test_every_source_of_prompts_gives_the_same(causal, output, tmp_path, monkeypatch):
    plain = output(causal, "The", "Some words", *SHORT, "--json")
    lines = [json.loads(line) for line in plain.splitlines()]
    assert [line["prompt"] for line in lines] == ["The", "Some words"]
    (tmp_path / "prompts.txt").write_text("The\n\nSome words\n")
    assert output(causal, "--file", tmp_path / "prompts.txt", *SHORT, "--json") == plain
    for where in ((), ("--file", "-")):
        monkeypatch.setattr("sys.stdin", io.StringIO("The\nSome words\n"))
        assert output(causal, *where, *SHORT, "--json") == plain
    text = output(causal, "The", "Some words", *SHORT)
    assert text == "".join(f"{line['prompt']}{line['continuation']}\n\n" for line in lines)
    assert output(causal, "The", "Some words", *SHORT, "--stream") == text


def test_rows_of_a_file_keep_their_fields_and_come_in_batches(causal, output, tmp_path):
    rows = [{"id": number, "prompt": text} for number, text in enumerate("abcde")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    common = ("--file", tmp_path / "rows.jsonl", "-o", out, *SHORT)
    assert output(causal, *common, "--batch-size", 2) == f"{out}: 5 continuations\n"
    two = [json.loads(line) for line in out.read_text().splitlines()]
    assert [
        {**row, "continuation": line["continuation"]} for row, line in zip(rows, two, strict=True)
    ] == two
    output(causal, *common)
    assert [json.loads(line) for line in out.read_text().splitlines()] == two


def test_weights_are_kept_as_the_flag_says(causal, output, tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(Writer, "write", lambda self, *a: written.append(self) or WRITE(self, *a))
    (tmp_path / "rows.txt").write_text("The\n")
    for weights in ("float32", "int8", "bfloat16"):
        more = ("--file", tmp_path / "rows.txt", "-o", tmp_path / f"{weights}.jsonl")
        output(causal, *more, *SHORT, "--weights", weights)
    kernels = [w.params["model"]["layers"]["0"]["fc1"]["kernel_OI"].dtype.name for w in written]
    assert kernels == ["float32", "int8", "bfloat16"]
    assert [w.module.execution.dtype for w in written] == ["float32", "float32", "bfloat16"]
    with pytest.raises(SystemExit):
        main(["generate", str(causal), "The", "--weights", "int4"])
    assert "invalid choice: 'int4'" in capsys.readouterr().err


def test_beams_come_best_first_with_their_scores(causal, output):
    beams = ("--num-beams", 3, "--num-return-sequences", 2, "--json")
    lines = [json.loads(line) for line in output(causal, "The", *SHORT, *beams).splitlines()]
    assert len(lines) == 2 and lines[0]["score"] >= lines[1]["score"]


def test_options_change_what_is_written(causal, output):
    longer = (causal, "The", "--max-new-tokens", 24, "--json")
    plain = output(*longer)
    others = [
        ("--num-beams", 4),
        ("--num-beams", 4, "--length-penalty", -3),
        ("--repetition-penalty", 0.05),  # for repetition
        ("--repetition-penalty", 0.05, "--no-repeat-ngram-size", 1),
        ("--temperature", 3),
        ("--temperature", 3, "--seed", 1),
        ("--temperature", 3, "--top-k", 4),
        ("--temperature", 3, "--top-p", 0.3),
        ("--temperature", 3, "--min-p", 0.3),
    ]
    made = {plain, *(output(*longer, *options) for options in others)}
    assert len(made) == 1 + len(others)


def test_an_encoder_decoder_prints_its_answer_alone(answering, output):
    line = json.loads(output(answering, "The value", *SHORT, "--json"))
    assert output(answering, "The value", *SHORT) == f"{line['continuation']}\n\n"
    assert output(answering, "The value", *SHORT, "--stream") == f"{line['continuation']}\n\n"


@pytest.fixture
def with_settings(causal, tmp_path):
    """Makes a copy of the folder that says how it generates."""

    def with_settings(**settings):
        folder = tmp_path / "model"
        shutil.copytree(causal, folder)
        GenerationConfig(**settings).save_pretrained(folder)
        return folder

    return with_settings


def test_rules_of_the_folder_are_kept(causal, output, with_settings):
    tokenizer = XGLMTokenizer.from_pretrained(causal)
    plain = json.loads(output(causal, "The", *SHORT, "--json"))["continuation"]
    banned = tokenizer.encode(plain, add_special_tokens=False)
    folder = with_settings(suppress_tokens=banned)
    ruled = json.loads(output(folder, "The", *SHORT, "--json"))["continuation"]
    assert not {*tokenizer.encode(ruled, add_special_tokens=False)} & {*banned}


LONG = "--max-new-tokens 24"


@pytest.mark.parametrize(
    "settings, flags, same",
    [
        ({"max_new_tokens": 24}, "", ""),
        ({"do_sample": True, "temperature": 3.0}, LONG, "--temperature 3"),
        ({"do_sample": True, "temperature": 3.0, "top_k": 4}, LONG, "--temperature 3 --top-k 4"),
        ({"top_p": 0.3}, f"{LONG} --temperature 3", "--temperature 3 --top-p 0.3"),
        ({"do_sample": True, "min_p": 0.3}, f"{LONG} --temperature 0", ""),
        ({"num_beams": 4, "length_penalty": -3.0}, LONG, "--num-beams 4 --length-penalty -3"),
        ({"length_penalty": -3.0}, f"{LONG} --num-beams 4", "--num-beams 4 --length-penalty -3"),
        ({"num_beams": 4}, f"{LONG} --num-beams 1", ""),
        ({"repetition_penalty": 0.05}, LONG, "--repetition-penalty 0.05"),
    ],
)
def test_what_is_not_given_is_as_the_folder_says(
    causal, output, with_settings, settings, flags, same
):
    expected = output(causal, "The", "--json", *f"{LONG} {same}".split())
    assert output(with_settings(**settings), "The", "--json", *flags.split()) == expected


def test_early_stopping_of_the_folder_holds_for_beams(causal, output, with_settings, monkeypatch):
    made, write = [], Writer.write
    monkeypatch.setattr(
        Writer, "write", lambda self, *rest: made.append(self) or write(self, *rest)
    )
    folder = with_settings(early_stopping="never", length_penalty=2.0, max_length=9)
    output(folder, "The", "a longer prompt", "--num-beams", 2)
    assert made[0].decoding.beams == Beams(2, 2.0, "never")
    longest = len(XGLMTokenizer.from_pretrained(folder).encode("a longer prompt"))
    assert made[0].max_new_tokens == 9 - longest


@pytest.mark.parametrize(
    "content, room",
    [('{"max_length": 20}', 20), ('{"max_length": null}', 64), ('{"top_k": 5}', 64)],
)
def test_the_default_length_holds_where_the_folder_says_it(causal, output, tmp_path, content, room):
    folder = shutil.copytree(causal, tmp_path / "folder")
    (folder / "generation_config.json").write_text(content)
    prompt = len(XGLMTokenizer.from_pretrained(folder).encode("The")) if room == 20 else 0
    expected = output(causal, "The", "--json", "--max-new-tokens", room - prompt)
    assert output(folder, "The", "--json") == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--file", "x.txt"], "give PROMPTs or --file, not both"),
        (["--stream", "--json"], "--stream prints text: leave out --json and -o"),
        (["--json", "-o", "x"], "-o writes JSON lines and prints none: leave out --json"),
        (["--stream", "--batch-size", "2"], "one text at a time: leave out --batch-size"),
        (["--stream", "--num-beams", "2"], "not the best of --num-beams 2 nor"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--num-beams", "0"], "--num-beams must be at least 1, got 0"),
        (["--num-return-sequences", "2"], "--num-return-sequences 2 needs --num-beams 2 or more"),
        (["--length-penalty", "2"], "--length-penalty is for beams: give --num-beams above 1"),
        (["--top-k", "2"], "--top-k is for drawn tokens: give --temperature above 0"),
        (["--seed", "2", "--temperature", "0"], "--seed is for drawn tokens: give --temperature"),
        (["--temperature", "2", "--num-beams", "3"], r"(--temperature 2) or searched for (--num-b"),
        (["--temperature", "nan"], "--temperature must not be negative, got nan"),
        (["--temperature", "inf"], "--temperature must be finite, got inf"),
        (["--num-beams", "2", "--length-penalty", "nan"], "--length-penalty must be finite, got"),
        (["--min-new-tokens", "9", *SHORT], "--min-new-tokens 9 must not be above --max-new-tok"),
        (["--gin.Execution.dtype=1"], "is a model folder: --gin.Execution.dtype=1 has no effect"),
    ],
)
def test_what_does_not_go_together_is_refused_before_weights_are_read(
    causal, capsys, tmp_path, arguments, message
):
    shutil.copy(causal / "config.json", tmp_path)
    assert main(["generate", str(tmp_path), "The", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, arguments, message",
    [
        ({"num_beams": 2}, ["--temperature", "2"], "give --temperature 0 or --num-beams 1"),
        ({"num_beams": 2}, ["--stream"], "not the best of --num-beams 2 nor"),
        ({"max_length": 2}, [], "max_length=2 leaves no room after a prompt of"),
    ],
)
def test_flags_and_the_folder_have_to_agree(with_settings, capsys, settings, arguments, message):
    assert main(["generate", str(with_settings(**settings)), "The", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("line, message", [("{", "rows.jsonl:1 is not JSON"), ("{}", ":1 must be")])
def test_malformed_rows_are_refused(causal, capsys, tmp_path, line, message):
    (tmp_path / "rows.jsonl").write_text(line)
    assert main(["generate", str(causal), "--file", str(tmp_path / "rows.jsonl")]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def work(causal, tmp_path):
    """Five prompts, and the command that continues two at a time into a file."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("".join(f"{word}\n" for word in ("The", "a", "value", "of", "words")))
    flags = ("--file", prompts, "-o", out, "--batch-size", 2, "--temperature", 3, *SHORT)
    return out, [str(one) for one in ("generate", causal, *flags)]


@pytest.fixture
def interrupted(monkeypatch):
    """Interrupts what writes at the given batch, and counts the batches that are computed."""
    write, batches = Writer.write, []

    def interrupted(at):
        batches.clear()

        def counted(*arguments):
            batches.append(None)
            if len(batches) == at:
                raise KeyboardInterrupt
            return write(*arguments)

        monkeypatch.setattr(Writer, "write", counted)
        return batches

    return interrupted


def test_an_interrupted_file_keeps_its_batches_and_is_gone_on_with(work, interrupted, capsys):
    out, command = work
    assert main(command) == 0
    whole = out.read_text()
    out.unlink()
    interrupted(at=3)
    assert main(command) == 130
    (partial,) = out.parent.glob("*.partial")
    assert not out.exists() and whole.startswith(partial.read_text())
    assert f"{partial}: 4 lines are done; the same command goes on" in capsys.readouterr().err
    partial.write_text(partial.read_text()[:-5])  # killed within a line: its batch is made again
    batches = interrupted(at=None)
    assert main(command) == 0
    assert f"{partial}: going on behind 2 lines" in capsys.readouterr().err
    assert len(batches) == 2 and out.read_text() == whole
    assert not [*out.parent.glob("*.partial")]


def test_what_was_complete_but_for_its_name_is_not_computed_again(work, interrupted):
    out, command = work
    interrupted(at=3)
    assert main(command) == 130
    (partial,) = out.parent.glob("*.partial")
    batches = interrupted(at=None)
    assert main(command) == 0
    out.rename(partial)
    batches.clear()
    assert main(command) == 0
    assert not batches and len(out.read_text().splitlines()) == 5


@pytest.mark.parametrize("change", [("--seed", "1"), ("--max-new-tokens", "5")])
def test_another_command_does_not_go_on_with_a_file(work, interrupted, change):
    out, command = work
    interrupted(at=3)
    assert main(command) == 130
    batches = interrupted(at=None)
    assert main([*command, *change]) == 0
    assert len(batches) == 3 and [*out.parent.glob("*.partial")]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(capsys, tmp_path):
    for out, message in [(tmp_path, "-o must name a file"), (tmp_path / "a/b", "is no folder")]:
        assert main(["generate", "nowhere", "The", "-o", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_file_is_written_by_one_process(tmp_path):
    def files():
        return GrowingFile(tmp_path / "out", "a")

    with files() as file:
        with pytest.raises(FileExistsError, match="another process is writing"):
            files().__enter__()
        file.add(["one"])
    assert (tmp_path / "out").read_text() == "one\n"
    with pytest.raises(KeyboardInterrupt), files():
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing was made: nothing stays


def test_prompts_that_cannot_be_read_are_refused_by_name(causal, capsys, tmp_path, monkeypatch):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.txt").write_text("\n \n")
    for name, message in [
        ("bytes.txt", "bytes.txt is not UTF-8 text"),
        ("empty.txt", "there is no prompt in "),
        ("none.txt", "none.txt: No such file"),
    ]:
        assert main(["generate", str(causal), "--file", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["generate", str(causal)]) == 2
    assert "there is no prompt in standard input" in capsys.readouterr().err
    assert main(["generate", str(tmp_path), "a"]) == 2
    assert "is no run folder (it has no config.gin) and no model f" in capsys.readouterr().err


def test_prompts_that_outgrow_the_positions_are_refused_before_any_is_continued(tmp_path, capsys):
    tokenizer = BigBirdTokenizer.from_pretrained(FIXTURES / "bigbird")
    config = BigBirdConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=20, is_decoder=True,
        attention_type="original_full",
    )  # fmt: skip
    FlaxBigBirdForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["a", "words " * 9, "b"]
    assert main(["generate", str(tmp_path), *texts, "--max-new-tokens", "17"]) == 2
    message = capsys.readouterr().err
    assert "the prompt 'words words" in message and "tokens, too many with 17 new ones" in message
    assert "max_position_embeddings=20" in message
    assert main(["generate", str(tmp_path), "a", "--max-new-tokens", "5"]) == 0


@pytest.fixture(scope="module")
def answering_run(tmp_path_factory):
    """The folder of a run that has learned to say what it is told."""
    place = tmp_path_factory.mktemp("answering_run")
    words = ("red", "green", "blue")
    rows = [{"source": f"say {word}", "target": word} for word in words]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = str(FIXTURES / "umt5")
    settings = {
        "Run.model": "@UMT5Config()",
        "Run.head": "@heads.ConditionalGeneration()",
        "Run.objective": "@TextToText()",
        "Run.train_data": "@SequenceToSequenceData()",
        "Run.optimizer": "@AdamW()",
        "AdamW.learning_rate": 1e-2,
        "Run.steps": 40,
        "Run.batch_size": 8,
        "Run.folder": repr(str(place / "run")),
        "SequenceToSequenceData.files": (str(place / "rows.jsonl"),),
        "SequenceToSequenceData.tokenizer": repr(tokenizer),
        "SequenceToSequenceData.length": 8,
        "SequenceToSequenceData.target_length": 6,
        "UMT5Config.vocab_size": len(T5Tokenizer.from_pretrained(tokenizer)),
        "UMT5Config.dropout_rate": 0.0,
        "UMT5Config.d_model": 32,
        "UMT5Config.d_kv": 8,
        "UMT5Config.d_ff": 32,
        "UMT5Config.num_layers": 1,
        "UMT5Config.num_heads": 4,
    }
    lines = [f"{key} = {value}\n" for key, value in settings.items()]
    (place / "run.gin").write_text("".join(lines))
    assert main(["train", "--gin_file", str(place / "run.gin"), "--plain"]) == 0
    return place / "run"


def test_a_run_of_an_encoder_decoder_answers(answering_run, output, tmp_path, monkeypatch):
    assert output(answering_run, "say red", *SHORT) == "red\n\n"
    assert output(answering_run, "say red", "say blue", *SHORT, "--stream") == "red\n\nblue\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("say green\r\n\nsay blue\n"))
    out = tmp_path / "out.jsonl"
    output(answering_run, "--file", "-", "-o", out, *SHORT, "--num-beams", 2)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.pop("score") < 0 for line in lines] == [True, True]
    assert lines == [{"prompt": f"say {w}", "continuation": w} for w in ("green", "blue")]
