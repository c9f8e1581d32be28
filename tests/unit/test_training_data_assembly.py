"""From files to a corpus: what documents look like, what is left out, and what the manifest says."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from evospec.errors import EvoSpecError, UnsupportedModelError
from evospec.models.target import Target
from evospec.training.assembly import AssemblyPlan, CorpusBuilder
from evospec.training.conversations import RolloutPlan
from evospec.training.corpus import Corpus, Document
from evospec.training.data import TrainingData, read_training_data
from evospec.training.encoding import Encoder
from evospec.training.pipeline import prepare_corpus
from evospec.training.records import Conversation
from evospec.training.sources import find_sources
from tests.tiny import tiny_target, tiny_tokenizer

END, USER, ASSISTANT = 256, 258, 259
PLAN = RolloutPlan(rows=4, question_tokens=8, answer_tokens=24, minutes=10.0, conversations=4)


def prose(words: int, seed: int) -> str:
    """Random words: no two documents of it are near-duplicates."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(words))


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


def encoder(longest: int = 64, shortest: int = 4) -> Encoder:
    return Encoder(tiny_tokenizer(), frozenset({END}), longest, shortest)


def ids(text: str) -> list[int]:
    return list(tiny_tokenizer().encode(text, add_special_tokens=False))


def turns(*contents: str, first: str = "user") -> Conversation:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages = tuple({"role": roles[index % 2], "content": content} for index, content in enumerate(contents))
    return Conversation(messages, "chats.jsonl:7")


def build(target: Target, paths: list[Path], folder: Path, **plan: int) -> Corpus:
    with CorpusBuilder(target, folder, AssemblyPlan(**plan)) as builder:
        builder.read(find_sources(paths), lambda tokens, share: None)
        return builder.finish({})


def test_text_is_cut_in_documents_that_are_learnt_whole() -> None:
    text = prose(40, 0)
    documents = list(encoder(longest=64).texts([text, "short"]))
    assert [len(document.tokens) for document in documents] == [64, 64, 64, 47, 5]
    assert np.concatenate([document.tokens for document in documents[:-1]]).tolist() == ids(text)
    assert {document.answer for document in documents} == {1}


def test_text_begins_with_the_tokenizers_own_first_token() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|start|>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", bos)]
    )
    documents = list(Encoder(tokenizer, frozenset(), 32, 4).texts([prose(12, 0)]))
    assert [len(document.tokens) for document in documents] == [32, 32, 10]
    assert all(document.tokens[0] == bos for document in documents)
    assert [token for document in documents for token in document.tokens[1:]] == ids(prose(12, 0))


def test_a_conversation_is_tokenised_as_in_serving() -> None:
    (document,) = encoder().conversations([turns("Why?", "So it is.")])
    prompt = [USER, *ids("Why?"), END, ASSISTANT]
    assert document.tokens.tolist() == [*prompt, *ids("So it is."), END]
    assert document.answer == len(prompt)


def test_the_last_answer_that_fits_is_the_one_that_counts() -> None:
    conversations = [
        turns("Why?", "So.", "Really?", "Yes, it is."),
        turns("Why?", "So.", "Really?", "Yes, it is.", "Thanks"),
        turns("Why?", "So it is.", "x" * 60, "Yes, it is."),
        turns("Why?", "a" * 100),
        turns("x" * 80, "Yes, it is."),
        turns("Nobody answers"),
        turns("Nothing was asked", first="assistant"),
    ]
    made = encoder()
    documents = list(made.conversations(conversations))
    answers = [bytes_of(document) for document in documents]
    # Shortened conversations come behind the others of their batch.
    assert answers == ["Yes, it is.<|end|>", "Yes, it is.<|end|>", "a" * 57, "So it is.<|end|>"]
    assert all(len(document.tokens) <= 64 for document in documents)
    assert (made.counts.records, made.counts.long, made.counts.unanswered) == (7, 1, 2)


def bytes_of(document: Document) -> str:
    return str(tiny_tokenizer().decode(document.tokens[document.answer :]))


def test_what_the_template_writes_behind_the_turn_is_not_learnt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|end|>\n")
    (document,) = Encoder(tokenizer, frozenset({END}), 64, 4).conversations([turns("Why?", "So it is.")])
    assert document.tokens[-1] == END
    assert document.tokens[document.answer - 2 : document.answer].tolist() == [*ids("\n"), ASSISTANT]


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        (None, UnsupportedModelError, "no chat template: it learns from kind text only"),
        ("{{ raise_exception('no system turns') }}", EvoSpecError, r"chats\.jsonl:7: .*no system turns"),
        (
            "{{ messages[-1].content }}{% if add_generation_prompt %}<think>{% endif %}",
            UnsupportedModelError,
            "renders an answer differently",
        ),
    ],
)
def test_templates_that_cannot_be_used_are_named(template, error, message) -> None:
    made = Encoder(with_template(template), frozenset({END}), 64, 4)
    with pytest.raises(error, match=message):
        list(made.conversations([turns("Why?", "So.")]))


def test_many_batches_give_the_same_documents_as_one_by_one() -> None:
    texts = [prose(1 + seed % 30, seed) for seed in range(1_300)]
    together = [document.tokens.tolist() for document in encoder().texts(texts)]
    apart = [document.tokens.tolist() for text in texts for document in encoder().texts([text])]
    assert together == apart


def test_a_corpus_holds_all_sources_and_says_what_was_left_out(target, tmp_path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(prose(80, 0) + "\n")
    (folder / "copy.txt").write_text(prose(80, 0).upper() + "\n")
    (folder / "edited.txt").write_text(prose(80, 0).replace("a", "b", 2) + "\n")
    (folder / "loop.txt").write_text("again and " * 30)
    (folder / "tiny.txt").write_text("tiny")
    (folder / "image.bin").write_bytes(b"\0\1")
    chats = write_lines(
        tmp_path / "chats.jsonl",
        {"prompt": "Tell me.", "answer": prose(30, 1)},
        {"prompt": "Tell me.", "answer": "No."},
        {"messages": [{"role": "user", "content": "Hm"}], "prompt": "Hm", "answer": "Hm"},
        {"prompt": prose(200, 2), "answer": prose(30, 3)},
    )
    corpus = build(target, [folder, chats], tmp_path / "corpus")
    text, chat = corpus.manifest.sources
    assert (text.name, text.kind, text.records, text.documents) == ("texts", "text", 5, 1)
    assert text.dropped.model_dump(exclude_defaults=True) == {
        "short": 1,
        "degenerate": 1,
        "duplicate": 1,
        "near_duplicate": 1,
        "files": 1,
    }
    assert (chat.name, chat.kind, chat.records, chat.documents) == ("chats.jsonl", "chat", 4, 1)
    assert chat.dropped.model_dump(exclude_defaults=True) == {"short": 2, "long": 1}
    assert corpus.manifest.tokenizer == target.fingerprint.tokenizer
    assert corpus.manifest.documents == len(corpus) == 2
    assert corpus.manifest.tokens == corpus.token_count == text.tokens + chat.tokens
    assert text.share + chat.share == pytest.approx(1.0, abs=1e-3)
    assert str(tmp_path) not in (tmp_path / "corpus" / "manifest.json").read_text()
    assert bytes_of(corpus[1]) == prose(30, 1) + "<|end|>"


def test_documents_of_one_text_that_follow_each_other_are_kept_in_order(target, tmp_path) -> None:
    text = prose(3_000, 0)
    (tmp_path / "a.txt").write_text(text)
    corpus = build(target, [tmp_path / "a.txt"], tmp_path / "corpus")
    assert np.concatenate([corpus[index].tokens for index in range(len(corpus))]).tolist() == ids(text)
    assert corpus.lengths().max() <= target.max_length


@pytest.mark.parametrize(("weights", "share"), [((1, 1), 0.5), ((1, 3), 0.25), ((3, 1), 0.75)])
def test_weights_set_the_shares_by_tokens(target, tmp_path, weights, share) -> None:
    for name, words, seed in (("a", 40_000, 1), ("b", 20_000, 2)):
        (tmp_path / f"{name}.txt").write_text(prose(words, seed))
    listing = tmp_path / "mix.yaml"
    listing.write_text(f"- {{path: a.txt, weight: {weights[0]}}}\n- {{path: b.txt, weight: {weights[1]}}}\n")
    corpus = build(target, [listing], tmp_path / "corpus", longest=100)
    first, second = corpus.manifest.sources
    assert first.share == pytest.approx(share, abs=0.005)
    assert first.share + second.share == pytest.approx(1.0)
    assert min(first.dropped.weight, second.dropped.weight) == 0
    assert max(first.dropped.weight, second.dropped.weight) > 100
    rows = {tuple(corpus[index].tokens.tolist()) for index in range(len(corpus))}
    assert len(rows) == len(corpus)  # nothing is repeated


def test_what_the_target_writes_is_the_last_source_and_yields_to_the_users(target, tmp_path) -> None:
    (tmp_path / "a.txt").write_text(prose(60, 0))
    own = [Document(np.array(ids(prose(60, seed))), 1) for seed in (0, 1, 2)]
    with CorpusBuilder(target, tmp_path / "c", AssemblyPlan()) as builder:
        builder.read(find_sources([tmp_path / "a.txt"]), lambda tokens, share: None)
        builder.write(own, weight=2.0)
        corpus = builder.finish({"note": "x"})
    text, written = corpus.manifest.sources
    assert (written.kind, written.documents, written.dropped.duplicate) == ("on-policy", 2, 1)
    assert (text.share, written.share) == pytest.approx((1 / 3, 2 / 3), abs=1e-4)
    assert corpus.on_policy() == slice(1, 3)
    assert corpus.manifest.settings["note"] == "x"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "tiny", r"a\.txt: no document is left of 1 read \(1 too short\)"),
        ("a.txt", "again and " * 30, r"no document is left of 1 read \(1 degenerate loops\)"),
        ("a.txt", "", r"a\.txt is empty"),
        ("a.jsonl", '{"text": ""}\n', r"no document is left of 1 read \(blank\)"),
        ("a.jsonl", '{"prompt": "x", "answer": "y"}\n', r"no document is left of 1 read \(1 too short\)"),
    ],
)
def test_a_source_that_gives_nothing_is_an_error_and_leaves_nothing(
    target, tmp_path, name, content, message
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(EvoSpecError, match=message):
        build(target, [tmp_path / name], tmp_path / "corpus")
    assert not list((tmp_path / "corpus").iterdir())


def test_a_split_that_nothing_has_is_named(target, tmp_path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": prose(20, 0), "split": "eval"})
    data = read_training_data([path], split="train")
    with pytest.raises(EvoSpecError, match=r"is empty: nothing to read with split 'train'"):
        prepare_corpus(target, data, PLAN, tmp_path / "c", lambda share, note: None)


def test_reading_reports_tokens_and_share(target, tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n".join(prose(20, ord(name) + n) for n in range(2_000)))
    seen: list[tuple[int, float]] = []
    with CorpusBuilder(target, tmp_path / "c", AssemblyPlan(longest=100)) as builder:
        builder.read(find_sources([tmp_path / "a.txt", tmp_path / "b.txt"]), lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert len(seen) > 10
    assert seen[-1][1] == 1.0
    assert any(0.4 < share < 0.6 for _, share in seen)


def test_with_no_data_the_target_writes_everything(target, tmp_path) -> None:
    notes: list[str] = []
    corpus = prepare_corpus(
        target, read_training_data([]), PLAN, tmp_path, lambda _, note: notes.append(note)
    )
    (source,) = corpus.manifest.sources
    assert (source.kind, source.name, source.weight, source.share) == ("on-policy", "target", None, 1.0)
    assert source.documents == len(corpus) > 0
    assert "written" in notes[-1]


def test_prompts_texts_and_own_text_come_together(target, tmp_path) -> None:
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "What is the capital of France?"})
    (tmp_path / "a.txt").write_text(prose(60, 0))
    data = read_training_data([prompts, tmp_path / "a.txt"])
    corpus = prepare_corpus(target, data, PLAN, tmp_path / "c", lambda share, note: None)
    kinds = [source.kind for source in corpus.manifest.sources]
    assert kinds == ["prompts", "text", "on-policy"]
    asked = [USER, *ids("What is the capital of France?"), END, ASSISTANT]
    written = [corpus[index] for index in range(len(corpus))][corpus.on_policy()]
    assert any(document.tokens[: document.answer].tolist() == asked for document in written)


def test_without_weight_the_target_writes_nothing(target, tmp_path) -> None:
    (tmp_path / "a.txt").write_text(prose(60, 0))
    data = read_training_data([tmp_path / "a.txt"], on_policy_weight=0)
    corpus = prepare_corpus(target, data, PLAN, tmp_path / "c", lambda share, note: None)
    assert [source.kind for source in corpus.manifest.sources] == ["text"]
    assert corpus.on_policy() == slice(1, 1)


def test_a_corpus_without_any_document_is_refused(target, tmp_path) -> None:
    with CorpusBuilder(target, tmp_path / "c", AssemblyPlan()) as builder:
        builder.read(TrainingData().sources, lambda tokens, share: None)
        with pytest.raises(EvoSpecError, match="no document is left"):
            builder.finish({})
