"""The corpus on disk, written as a stream and all or nothing, and the batches made from it."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evospec.errors import EvoSpecError
from evospec.training import corpus as corpus_module
from evospec.training.corpus import Corpus, Document, length_batches, rank_tokens, write_corpus
from evospec.training.corpus_writer import CorpusWriter
from evospec.training.manifest import CorpusManifest, SourceReport


def documents(*lengths: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [Document(rng.integers(0, 2**32, length), int(rng.integers(length + 1))) for length in lengths]


def manifest(*counts: int, kind: str = "on-policy") -> CorpusManifest:
    sources = [
        SourceReport.model_validate({"name": "s", "kind": kind, "records": 0, "documents": n, "tokens": 0})
        for n in counts
    ]
    return CorpusManifest(tokenizer="abc", documents=sum(counts), tokens=0, sources=tuple(sources))


def same(corpus: Corpus, expected: list[Document]) -> bool:
    return len(corpus) == len(expected) and all(
        np.array_equal(corpus[index].tokens, document.tokens) and corpus[index].answer == document.answer
        for index, document in enumerate(expected)
    )


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    kept=st.lists(st.booleans(), min_size=30, max_size=30),
    chunk=st.integers(1, 50),
)
def test_kept_documents_come_back_as_they_were(tmp_path_factory, lengths, kept, chunk) -> None:
    written = documents(*lengths)
    keep = np.array(kept[: len(written)])
    keep[-1] = True
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evospec.training.corpus_writer._COPIED_AT_ONCE", chunk)
        with CorpusWriter(folder) as writer:
            for document in written:
                writer.add(document)
            writer.commit(manifest(int(keep.sum())), keep)
    corpus = Corpus(folder, "abc")
    assert same(corpus, [document for document, stays in zip(written, keep, strict=True) if stays])
    assert sorted(path.name for path in folder.iterdir()) == [
        "answers.npy",
        "manifest.json",
        "offsets.npy",
        "tokens.npy",
    ]
    assert np.load(folder / "tokens.npy").dtype == np.uint32
    np.save(folder / "again.npy", np.load(folder / "tokens.npy"))
    assert (folder / "again.npy").read_bytes() == (folder / "tokens.npy").read_bytes()


def test_a_corpus_of_another_tokenizer_is_refused(tmp_path) -> None:
    write_corpus(documents(5, 6), tmp_path, {"rows": 3}, tokenizer="abc")
    assert Corpus(tmp_path, "abc").manifest.settings == {"rows": 3}
    with pytest.raises(EvoSpecError, match=r"another target \(its tokenizer: abc, this target's: xyz\)"):
        Corpus(tmp_path, "xyz")
    write_corpus(documents(5), tmp_path, {})
    with pytest.raises(EvoSpecError, match="its tokenizer: unknown"):
        Corpus(tmp_path, "xyz")


def test_the_manifest_is_readable_json(tmp_path) -> None:
    write_corpus(documents(5, 6), tmp_path, {}, tokenizer="abc")
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert (content["documents"], content["tokens"], content["tokenizer"]) == (2, 11, "abc")
    assert "\n  " in (tmp_path / "manifest.json").read_text()


def write_half(folder: Path) -> None:
    with CorpusWriter(folder) as writer:
        writer.add(documents(7)[0])
        raise KeyboardInterrupt


def test_nothing_is_left_of_a_run_that_fails(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []
    with pytest.raises(EvoSpecError, match="no training corpus"):
        Corpus(tmp_path / "c")


def test_a_crash_between_two_files_leaves_no_corpus_that_reads_as_whole(tmp_path, monkeypatch) -> None:
    write_corpus(documents(5, 6), tmp_path, {})
    rename = Path.replace

    def crash(path: Path, aim: Path) -> Path:
        if path.name == "answers.npy":
            raise KeyboardInterrupt
        return rename(path, aim)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(documents(6, 5), tmp_path, {})
    with pytest.raises(EvoSpecError, match="no training corpus"):
        Corpus(tmp_path)


def test_a_failed_run_leaves_an_earlier_corpus_whole(tmp_path) -> None:
    first = documents(5, 6)
    write_corpus(first, tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path)
    assert same(Corpus(tmp_path), first)


def test_what_a_killed_run_left_is_replaced(tmp_path) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "tokens.npy").write_bytes(b"half")
    (tmp_path / "tokens.npy").write_bytes(b"moved, but without a manifest")
    written = documents(5)
    assert same(write_corpus(written, tmp_path, {}), written)
    assert not (tmp_path / ".partial").exists()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 64 KiB: the system's own write error, as a full disk gives it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_no_corpus_and_names_the_folder(tmp_path) -> None:
    with pytest.raises(EvoSpecError, match=rf"cannot write to {tmp_path}: .*make room"):
        write_corpus(documents(*[1_000] * 40), tmp_path, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_fills_at_the_end_leaves_an_earlier_corpus_whole(tmp_path) -> None:
    first = documents(5)
    write_corpus(first, tmp_path, {})
    with pytest.raises(EvoSpecError, match="cannot write to"):
        write_corpus(documents(*[1] * 9_000), tmp_path, {})  # tokens fit, their offsets don't
    assert same(Corpus(tmp_path), first)
    assert not (tmp_path / ".partial").exists()


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path) -> None:
    (tmp_path / "c").write_text("")
    with pytest.raises(EvoSpecError, match="cannot write to"):
        write_corpus(documents(5), tmp_path / "c", {})


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "answers.npy", "manifest.json"])
def test_damaged_files_are_refused(tmp_path, name) -> None:
    write_corpus(documents(50, 60), tmp_path, {})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(EvoSpecError, match=r"corpus"):
        Corpus(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(EvoSpecError, match="no training corpus"):
        Corpus(tmp_path)


def test_files_of_two_corpora_are_refused(tmp_path) -> None:
    write_corpus(documents(50, 60), tmp_path / "a", {})
    write_corpus(documents(50, 61), tmp_path / "b", {})
    (tmp_path / "b" / "tokens.npy").replace(tmp_path / "a" / "tokens.npy")
    with pytest.raises(EvoSpecError, match="damaged"):
        Corpus(tmp_path / "a")


def test_an_old_manifest_is_refused_by_name(tmp_path) -> None:
    write_corpus(documents(50), tmp_path, {})
    (tmp_path / "manifest.json").write_text('{"source": "written by the target itself"}')
    with pytest.raises(EvoSpecError, match="not a corpus manifest of this release"):
        Corpus(tmp_path)


def test_answer_frequencies_count_answers_and_nothing_else(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 50)
    written = [Document(rng.integers(0, 40, n), int(rng.integers(n + 1))) for n in lengths]
    expected = np.zeros(64, dtype=np.int64)
    for document in written:
        for token in document.tokens[document.answer :]:
            expected[token] += 1
    corpus = write_corpus(written, tmp_path, {})
    for at_once in (1, 100, 1 << 22):
        monkeypatch.setattr(corpus_module, "_COUNTED_AT_ONCE", at_once)
        assert np.array_equal(corpus.answer_frequencies(64), expected)


@pytest.mark.parametrize(("kind", "expected"), [("on-policy", [0, 0, 5]), ("chat", [4, 3, 5])])
def test_frequencies_are_those_of_the_targets_own_text_if_there_is_any(tmp_path, kind, expected) -> None:
    with CorpusWriter(tmp_path) as writer:
        for token, length in enumerate((4, 3, 5)):
            writer.add(Document(np.full(length, token), 0))
        sources = (*manifest(2, kind="text").sources, *manifest(1, kind=kind).sources)
        writer.commit(manifest(3).model_copy(update={"sources": sources}))
    assert Corpus(tmp_path).answer_frequencies(3).tolist() == expected


def test_ranks_are_by_frequency_then_id() -> None:
    assert rank_tokens(np.array([0, 3, 5, 3, 0, 9])).tolist() == [5, 2, 1, 3]


LENGTHS = st.lists(st.integers(1, 700), max_size=120).map(np.array)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 4_000), seed=st.integers(0, 100))
def test_batches_hold_each_document_once_and_keep_the_budget(lengths, budget, seed) -> None:
    batches = list(length_batches(lengths, budget, np.random.default_rng(seed)))
    held = np.concatenate([np.zeros(0, dtype=np.int64), *batches])
    assert sorted(held.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS.filter(len), budget=st.integers(1, 4_000), seed=st.integers(0, 100))
def test_lengths_in_a_batch_are_alike(lengths, budget, seed) -> None:
    """Batches are consecutive in lengths that were moved by less than 16: their spreads add up."""
    batches = list(length_batches(lengths, budget, np.random.default_rng(seed)))
    spread = sum(int(lengths[batch].max() - lengths[batch].min()) for batch in batches)
    assert spread <= lengths.max() - lengths.min() + 16 * (len(batches) + 1)


@pytest.mark.parametrize("seed", range(3))
def test_padding_is_a_small_part_of_a_usual_corpus(seed) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(5, 0.8, 5_000).astype(np.int64), 10, 640)
    batches = list(length_batches(lengths, 16_384, rng))
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded <= 1.1 * lengths.sum()
    assert len(batches) <= 1.2 * lengths.sum() / 16_384


def test_batches_come_in_another_order_each_time() -> None:
    lengths = np.arange(1, 500)
    rng = np.random.default_rng(0)
    first, second = ([int(batch.min()) for batch in length_batches(lengths, 2_000, rng)] for _ in range(2))
    assert first != second
    assert first != sorted(first)
