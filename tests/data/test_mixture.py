"""Mixtures of five synthetic languages of very different sizes."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from xformer.data.manifest import read_manifest
from xformer.data.mixture import Mixture, Temperature, UniMax, Weights
from xformer.data.pipeline import PreparedData, open_batches, read_tokenizer
from xformer.data.prepare import PrepareOptions, prepare

NAMES = ("input_ids", "segment_ids", "position_ids")
# Documents of each language, and letters of its words; 0 takes words of English, which are less
# tokens a character.
LANGUAGES = {"big": (400, 3), "words": (80, 0), "mid": (40, 5), "small": (6, 4), "tiny": (1, 2)}
LENGTH = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory, write_rows, tokenizer_folder, texts):
    """A prepared folder for each language, by name."""
    place = tmp_path_factory.mktemp("languages")
    english = [word for word in " ".join(texts).split() if word.isalpha() and len(word) > 5]
    found = {}
    for number, (name, (documents, letters)) in enumerate(LANGUAGES.items()):
        draw = random.Random(number)

        def word(draw=draw, letters=letters):
            alphabet = "abcdefghijklmnopqrstuvwxyz"
            return "".join(draw.choices(alphabet, k=letters)) or draw.choice(english)

        written = [" ".join(word() for _ in range(60)) for _ in range(documents)]
        file = write_rows(place / f"{name}.jsonl", written)
        options = PrepareOptions(length=LENGTH, shard_bytes=20_000)
        prepare([file], tokenizer_folder, place / name, options=options, workers=1)
        found[name] = str(place / name)
    return found


@pytest.fixture(scope="module")
def rows(folders):
    """Bytes of a row -> its language and number."""
    found = {}
    for name, folder in folders.items():
        batches = open_batches(PreparedData(folder), batch_size=1, seed=0, epochs=1)
        for number, batch in enumerate(batches):
            found[key(batch, 0)] = (name, number)
    sizes = {name: read_manifest(Path(folder)).counts.rows for name, folder in folders.items()}
    assert len(found) == sum(sizes.values()), "rows must tell their language"
    return found


@pytest.fixture(scope="module")
def sizes(folders):
    return {name: read_manifest(Path(folder)).counts for name, folder in folders.items()}


def key(batch, i):
    return b"".join(batch[name][i].tobytes() for name in NAMES)


def take(config, count=10**9, start=None, **options):
    batches = open_batches(config, **({"batch_size": 8, "seed": 3} | options))
    if start is not None:
        batches.restore(start)
    taken = [batch for batch, _ in zip(batches, range(count), strict=False)]
    batches.close()
    return taken


def read(batches, rows):
    """Language and number of every row, in order."""
    return [
        rows[key(batch, i)]
        for batch in batches
        for i in range(len(batch["input_ids"]))
        if batch["segment_ids"][i].any()
    ]


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in NAMES)


def numbers(found, language):
    return [number for name, number in found if name == language]


def unimax(characters, budget, epochs):
    """As the paper writes it down: the smallest first, each an even share of what is left."""
    amounts = {}
    for i, name in enumerate(sorted(characters, key=characters.get)):
        amounts[name] = min(budget / (len(characters) - i), epochs * characters[name])
        budget -= amounts[name]
    return amounts


def test_languages_differ_in_size_and_in_characters_of_a_row(sizes):
    rows = sorted(one.rows for one in sizes.values())
    assert rows[-1] > 300 * rows[0]
    density = [one.characters / one.rows for one in sizes.values()]
    assert max(density) > 1.3 * min(density)


@pytest.mark.parametrize("epochs", [2, 3])
def test_unimax_gives_the_published_shares_and_keeps_the_cap(folders, rows, sizes, epochs):
    config = Mixture(folders, UniMax(), max_epochs=epochs)
    steps = 250 * epochs
    found = read(take(config, steps=steps), rows)
    assert len(found) == steps * 8  # and no more: the stream ends
    characters = {name: one.characters for name, one in sizes.items()}
    counts = {name: len(numbers(found, name)) for name in folders}
    amounts = {name: counts[name] * characters[name] / sizes[name].rows for name in folders}
    wanted = unimax(characters, sum(amounts.values()), epochs)
    capped = [name for name in folders if wanted[name] > 0.999 * epochs * characters[name]]
    assert {"tiny", "small"} <= set(capped) < set(folders)
    for name in folders:
        assert amounts[name] == pytest.approx(wanted[name], rel=0.01)
    for name in capped:
        assert sorted(numbers(found, name)) == sorted(epochs * list(range(sizes[name].rows)))


def test_a_corpus_is_read_through_before_its_next_epoch(folders, rows, sizes):
    config = Mixture(folders, UniMax(), max_epochs=3)
    found = read(take(config, steps=500), rows)
    for name in ("mid", "small", "tiny"):
        size, seen = sizes[name].rows, numbers(found, name)
        epochs = [seen[begin : begin + size] for begin in range(0, len(seen), size)]
        assert len(epochs) == 3
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch)
        if name == "mid":
            assert epochs[0] != sorted(epochs[0]) and epochs[0] != epochs[1][: len(epochs[0])]


def test_corpora_of_one_size_have_orders_of_their_own(write_rows, tokenizer_folder, tmp_path):
    words = [f"{number}" for number in range(1000, 1600)]
    sources = {}
    for name, order in (("first", words), ("second", words[::-1])):
        file = write_rows(tmp_path / f"{name}.jsonl", [" ".join(order)])
        options = PrepareOptions(length=LENGTH)
        prepare([file], tokenizer_folder, tmp_path / name, options=options, workers=1)
        sources[name] = str(tmp_path / name)
    orders = []
    for path in sources.values():
        batches = open_batches(PreparedData(path), batch_size=1, seed=0, epochs=1)
        known = {key(batch, 0): number for number, batch in enumerate(batches)}
        rows = [key(batch, i) for batch in take(Mixture(sources), 2 * len(known)) for i in range(8)]
        orders.append([known[row] for row in rows if row in known][: len(known)])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(orders[0])))
    assert orders[0] != orders[1]


def test_unshuffled_corpora_are_read_in_order(folders, rows, sizes):
    config = Mixture(folders, shuffle=False)
    found = read(take(config, 300), rows)
    for name in folders:
        seen = numbers(found, name)
        assert seen == [i % sizes[name].rows for i in range(len(seen))]


def test_mixtures_without_a_cap_have_no_end_and_the_asked_shares(folders, rows, sizes):
    weights = Weights({"big": 0.1, "words": 0.0, "mid": 0.5, "small": 0.3, "tiny": 0.1})
    found = read(take(Mixture(folders, weights), 512), rows)
    assert len(found) == 4096
    for name, weight in weights.weights.items():
        assert len(numbers(found, name)) == pytest.approx(4096 * weight, abs=6)
    batches = open_batches(Mixture(folders, weights), batch_size=8, seed=3)
    assert batches.batches is None
    # Without a cap the run's length decides nothing.
    same(take(Mixture(folders, weights), 4), take(Mixture(folders, weights), 4, steps=4))


def test_proportional_and_temperature_shares(folders, rows, sizes):
    total = sum(one.rows for one in sizes.values())
    plain = read(take(Mixture(folders), 512), rows)
    flat = read(take(Mixture(folders, Temperature(5.0, measure="rows")), 512), rows)
    powers = {name: one.rows**0.2 for name, one in sizes.items()}
    for name, one in sizes.items():
        assert len(numbers(plain, name)) == pytest.approx(4096 * one.rows / total, abs=6)
        share = powers[name] / sum(powers.values())
        assert len(numbers(flat, name)) == pytest.approx(4096 * share, abs=6)


def test_a_cap_holds_for_every_weighting(folders, rows, sizes):
    weights = Weights(dict.fromkeys(folders, 0.2))
    found = read(take(Mixture(folders, weights, max_epochs=1), steps=100), rows)
    for name in ("small", "tiny"):
        assert sorted(numbers(found, name)) == list(range(sizes[name].rows))
    with pytest.raises(ValueError, match=r"Mixture.max_epochs=1 is too low for Run.steps=10000 "):
        take(Mixture(folders, weights, max_epochs=1), 1, steps=10_000)
    with pytest.raises(ValueError, match="Mixture.max_epochs needs the number of batches"):
        take(Mixture(folders, weights, max_epochs=1), 1)


def test_a_pass_reads_every_corpus_whole_and_mixed(folders, rows, sizes):
    config = Mixture(folders, UniMax(), max_epochs=1)
    batches = take(config, epochs=1, batch_size=7)
    found = read(batches, rows)
    assert sorted(found) == sorted(rows.values())
    for name in folders:
        assert numbers(found, name) == list(range(sizes[name].rows))
    assert len(batches) == -(-len(found) // 7)
    missing = 7 * len(batches) - len(found)
    assert missing and not batches[-1]["segment_ids"][-missing:].any()
    begin = [name for name, _ in found[: len(found) // 4]]
    assert {"big", "words", "mid"} <= set(begin)
    rare = Mixture({name: folders[name] for name in ("small", "tiny")})
    twice = read(take(rare, epochs=2), rows)
    for name in rare.sources:
        assert numbers(twice, name) == 2 * list(range(sizes[name].rows))


@pytest.mark.parametrize("capped", [False, True])
def test_batches_do_not_depend_on_processes_workers_or_where_they_resume(folders, capped):
    config = Mixture(folders, UniMax(), max_epochs=2) if capped else Mixture(folders)
    steps = 400 if capped else None
    whole = take(config, 30, steps=steps)
    shares = [
        take(config, 30, steps=steps, process_index=index, process_count=2) for index in (0, 1)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        for index, part in enumerate(parts):
            same([part], [{name: np.split(batch[name], 2)[index] for name in NAMES}])
    working = Mixture(folders, config.weighting, config.max_epochs, workers=2)
    same(take(working, 12, steps=steps), whole[:12])
    for number in (1, 7, 29):
        same(take(config, 30 - number, {"batch": number}, steps=steps), whole[number:])
    assert not np.array_equal(
        take(config, 1, steps=steps, seed=4)[0]["input_ids"], whole[0]["input_ids"]
    )


def test_a_capped_mixture_can_be_resumed_at_its_end(folders):
    config = Mixture(folders, UniMax(), max_epochs=1)
    whole = take(config, steps=50)
    assert len(whole) == 50
    same(take(config, start={"batch": 49}, steps=50), whole[49:])
    assert take(config, start={"batch": 50}, steps=50) == []


def test_iterator_says_what_was_read_of_each_corpus(folders, rows, sizes):
    batches = open_batches(Mixture(folders, UniMax(), max_epochs=2), batch_size=8, seed=3, steps=90)
    assert all(one["rows"] == one["epochs"] == 0 for one in batches.sources().values())
    taken = []
    for batch in batches:
        taken.append(batch)
        if len(taken) in (1, 50, 90):
            found = read(taken, rows)
            counts = {name: len(numbers(found, name)) for name in folders}
            assert batches.sources() == {
                name: {
                    "rows": count,
                    "share": count / len(found),
                    "epochs": count / sizes[name].rows,
                }
                for name, count in counts.items()
            }
    assert batches.sources()["tiny"]["epochs"] == 2.0
    plain = open_batches(PreparedData(folders["tiny"]), batch_size=8, seed=3)
    assert plain.sources() == {}
    passed = open_batches(Mixture(folders), batch_size=7, seed=3, epochs=1)
    list(passed)
    assert {one["epochs"] for one in passed.sources().values()} == {1.0}


class Draw:
    """Puts a random number into each row."""

    def __call__(self, row, rng):
        return {**row, "draw": rng.integers(2**62, size=1)}

    def describe(self):
        return {"name": "draw"}


def test_a_transform_has_chance_of_its_own_at_every_place(folders, rows):
    config = Mixture(folders, Weights({"big": 0.5, **dict.fromkeys(list(folders)[1:], 0.125)}))
    whole = take(config, 40, transform=Draw())
    draws = np.concatenate([batch["draw"][:, 0] for batch in whole])
    assert len(set(draws)) == 320, "a row draws anew in every epoch"
    assert len(set(numbers(read(whole, rows), "tiny"))) < len(numbers(read(whole, rows), "tiny"))
    small = take(config, 80, batch_size=4, transform=Draw())
    np.testing.assert_array_equal(np.concatenate([batch["draw"][:, 0] for batch in small]), draws)


def test_fingerprint_has_all_that_decides_the_batches(folders, tmp_path):
    def fingerprint(config, **options):
        return open_batches(config, **({"batch_size": 8, "seed": 3} | options)).fingerprint

    plain = fingerprint(Mixture(folders))
    assert json.loads(json.dumps(plain)) == plain
    moved = {name: shutil.copytree(path, tmp_path / name) for name, path in folders.items()}
    same_data = Mixture({name: str(path) for name, path in moved.items()}, workers=2)
    assert fingerprint(same_data, steps=100) == plain
    fewer = {name: path for name, path in folders.items() if name != "mid"}
    renamed = {name.replace("mid", "middle"): path for name, path in folders.items()}
    turned = dict(reversed(folders.items()))
    capped = Mixture(folders, UniMax(), max_epochs=2)
    others = [
        fingerprint(Mixture(fewer)),
        fingerprint(Mixture(renamed)),
        fingerprint(Mixture(turned)),
        fingerprint(Mixture(folders, Temperature(2.0))),
        fingerprint(Mixture(folders, shuffle=False)),
        fingerprint(Mixture(folders, shuffle=False), seed=4),
        fingerprint(Mixture(folders), batch_size=4),
        fingerprint(Mixture(folders), epochs=1),
        fingerprint(capped, steps=100),
        fingerprint(capped, steps=101),
    ]
    texts = {json.dumps(one, sort_keys=True) for one in [plain, *others]}
    assert len(texts) == 11


def test_corpora_that_do_not_go_together_are_refused(
    folders, tmp_path, corpus_file, tokenizer_folder
):
    def refused(message, **sources):
        with pytest.raises(ValueError, match=message):
            take(Mixture({**folders, **{name: str(path) for name, path in sources.items()}}), 1)

    options = PrepareOptions(length=32)
    prepare([corpus_file], tokenizer_folder, tmp_path / "wide", options=options, workers=1)
    refused("must be of one length: 'big' has 16, 'wide' has 32", wide=tmp_path / "wide")
    other = Path(tokenizer_folder).with_name("bigbird")
    options = PrepareOptions(length=LENGTH)
    prepare([corpus_file], other, tmp_path / "other", options=options, workers=1)
    refused(
        r"must be of one tokenizer: 'big' has \w{12}, 'other' has \w{12}", other=tmp_path / "other"
    )
    copy = shutil.copytree(folders["mid"], tmp_path / "copy")
    refused("different corpora, but 'mid' and 'copy' hold the same rows", copy=copy)
    with pytest.raises(FileNotFoundError, match="nowhere must be a corpus"):
        take(Mixture({**folders, "other": "nowhere"}), 1)
    shard = next(copy.glob("rows-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="copy/rows-00000.arrayrecord must have"):
        take(Mixture({"copy": str(copy)}), 1)


def test_tokenizer_is_that_of_the_corpora(folders):
    wanted = read_tokenizer(PreparedData(folders["big"])).fingerprint()
    assert read_tokenizer(Mixture(folders)).fingerprint() == wanted


_PROGRAM = """
import resource, sys
from xformer.data import rows
from xformer.data.mixture import Mixture
from xformer.data.pipeline import open_batches

hard = int(sys.argv[1])
rows._OTHER_FILES = 60
resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
sources = dict(path.split("=") for path in sys.argv[2:])
print(sum(len(batch["input_ids"]) for batch in open_batches(
    Mixture(sources), batch_size=1, seed=0, epochs=1
)))
"""


def test_more_shards_than_files_may_be_open_are_read(
    programs, write_rows, tokenizer_folder, tmp_path
):
    lines = [f"{number} {number + 1}" for number in range(2000)]
    file = write_rows(tmp_path / "rows.jsonl", lines)
    options = PrepareOptions(length=LENGTH, shard_bytes=500)
    made = prepare([file], tokenizer_folder, tmp_path / "many", options=options, workers=1)
    assert len(made.manifest.shards) > 80
    (tmp_path / "program.py").write_text(_PROGRAM)
    arguments = tmp_path / "program.py", "4096", f"many={tmp_path / 'many'}"
    output, _ = programs.start(*arguments).communicate(timeout=60)
    assert output.split()[-1] == str(made.manifest.counts.rows)
    arguments = tmp_path / "program.py", "100", f"many={tmp_path / 'many'}"
    output, _ = programs.start(*arguments).communicate(timeout=60)
    assert f"have {len(made.manifest.shards)} files open, as shards stay so" in output
