"""Questions as examples: which tokens count, padding on either side, and images beside them."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tests.data.language import CHAT, LINES, llava, llava_processor, tokenizer, write_images
from trueoracle.data.conversations import (
    Conversations,
    Encoded,
    Encoder,
    PlainEncoder,
    ProcessorEncoder,
    collate,
)
from trueoracle.data.questions import Question
from trueoracle.data.tokens import IMAGE, Tokenizer, find_tokenizer
from trueoracle.errors import InputError
from trueoracle.tasks.language import IGNORED, Answers
from trueoracle.training.evaluate import add_sums

pytest.importorskip("transformers")

NAMES = [f"{i}.png" for i in range(8)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    cache = tmp_path_factory.mktemp("words")
    return find_tokenizer("words", "mine", lambda: iter(LINES), "0", cache)


def asked(images: Path | None) -> tuple[Question, ...]:
    """Eight questions with answers of different lengths."""
    return tuple(
        Question(
            ((f"the number {i} of the " * (1 + i % 3), "beside " * (i % 4) + "16"),),
            None if images is None else images / name,
        )
        for i, name in enumerate(NAMES)
    )


def read(processor: Any) -> Tokenizer:
    own = getattr(processor, "tokenizer", processor)
    begins = own("a")["input_ids"][0] == own.bos_token_id
    return Tokenizer("mine", len(own), 0, 1, 2, begins, "", "0", lambda texts: [], processor)


def shown(encoder: Encoder, question: Question) -> tuple[str, list[str]]:
    """An example's text, and its parts that count."""
    one = encoder(question)
    own = getattr(encoder.tokenizer.processor, "tokenizer", encoder.tokenizer.processor)
    parts: list[list[int]] = []
    before = False
    for token, counts in zip(one.tokens.tolist(), one.counts.tolist(), strict=True):
        if counts:
            parts[-1:] = [*(parts[-1:] if before else [*parts[-1:], []])]
            parts[-1] = [*parts[-1], token]
        before = counts
    return own.decode(one.tokens), [own.decode(part) for part in parts]


def test_a_plain_example_is_image_question_and_answer(images: Path, words: Tokenizer) -> None:
    question = Question((("the number of", "16"), ("beside", "the text")), images / NAMES[0])
    one = PlainEncoder(words, "one", 8, 4)(question)
    texts = [one for (one,) in words.encode(["the", "number", "of", "16", "beside", "text"])]
    the, number, of, sixteen, beside, text = texts
    assert one.tokens.tolist() == [1, *[IMAGE] * 4, the, number, of, sixteen, beside, the, text]
    assert one.counts.tolist() == [False] * 8 + [True, False, True, True]
    pixels = one.images["pixel_values"]
    assert pixels.shape == (3, 8, 8)
    assert -1 <= float(pixels.min()) < 0 < float(pixels.max()) <= 1
    assert torch.equal(PlainEncoder(words, "one", 8, 4).counts(question), one.counts)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [None, CHAT])
@pytest.mark.parametrize(("bos", "count"), [("one", 1), ("none", 0), (None, None)])
def test_exactly_one_beginning_or_none(
    images: Path, adds_bos: bool, template: str | None, bos: str | None, count: int | None
) -> None:
    processor = llava_processor(adds_bos=adds_bos, template=template)
    for question in (asked(images)[0], asked(None)[0]):
        one = ProcessorEncoder(read(processor), bos, None)(question)
        own = int(adds_bos or template is not None)  # by the tokenizer, by the template, by both
        assert int((one.tokens == 1).sum()) == (own if count is None else count)
        assert int((one.tokens[:1] == 1).sum()) == int((one.tokens == 1).sum())
        assert int((one.tokens == IMAGE).sum()) == (16 if question.image else 0)


def test_a_chat_counts_each_answer_and_its_end(images: Path) -> None:
    question = Question((("the text", "stands"), ("and then", "beside 17")), images / NAMES[0])
    text, counted = shown(
        ProcessorEncoder(read(llava_processor(template=CHAT)), None, None), question
    )
    places = "<image>" * 16
    assert text == (
        f"<s>USER: {places}\nthe text ASSISTANT: stands</s>USER: and then ASSISTANT: beside 17</s>"
    )
    assert counted == ["stands</s>", "beside 17</s>"]


def test_text_alone_goes_by_the_tokenizers_own_template() -> None:
    question = Question((("the text", "stands"),))
    text, counted = shown(ProcessorEncoder(read(tokenizer(template=CHAT)), None, None), question)
    assert (text, counted) == ("<s>USER: the text ASSISTANT: stands</s>", ["stands</s>"])
    text, counted = shown(ProcessorEncoder(read(tokenizer()), None, None), question)
    assert (text, counted) == ("the text\nstands</s>", ["stands</s>"])


def test_a_template_that_changes_what_was_said_is_refused() -> None:
    changing = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    encoder = ProcessorEncoder(read(tokenizer(template=changing)), None, None)
    with pytest.raises(
        InputError, match="the chat template of 'mine' changes what was said before"
    ):
        encoder(asked(None)[0])
    broken = ProcessorEncoder(read(tokenizer(template="{{ 1 / 0 }}")), None, None)
    with pytest.raises(InputError, match="the chat template of 'mine': division by zero"):
        broken(asked(None)[0])


def measured(
    network: nn.Module, encoder: Encoder, questions: tuple[Question, ...], size: int,
    side: Literal["left", "right"],
) -> dict[str, float]:  # fmt: skip
    totals: dict[str, Tensor] = {}
    task = Answers()
    with torch.no_grad():
        for start in range(0, len(questions), size):
            some = [encoder(one) for one in questions[start : start + size]]
            batch = collate(some, 0, side=side)
            add_sums(totals, task.sums(task.forward(network, batch), batch))
    return {name: float(value) for name, value in task.finish(totals).items()}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=400,
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=128,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            vocab_size=400,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=32,
            max_position_embeddings=128,
            word_embed_proj_dim=16,
        )
    )


def bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=16, n_layer=2, n_head=4))


@pytest.mark.parametrize("make", [llama, gpt2, opt, bloom, lambda: llava(400)],
                         ids=["llama", "gpt2", "opt", "bloom", "llava"])  # fmt: skip
def test_neither_batch_size_nor_side_of_padding_changes_the_loss(images: Path, make: Any) -> None:
    torch.manual_seed(0)
    network = make().eval()
    with_images = "Llava" in type(network).__name__
    processor = llava_processor() if with_images else tokenizer()
    questions = asked(images if with_images else None)
    encoder = ProcessorEncoder(read(processor), "one", None)
    found = [
        measured(network, encoder, questions, size, side)
        for side in ("right", "left")
        for size in (1, 3, 8)
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    # By hand, one answer after the other and without padding.
    total, count = 0.0, 0
    for question in questions:
        one = encoder(question)
        given = {"input_ids": one.tokens[None], **{n: v[None] for n, v in one.images.items()}}
        with torch.no_grad():
            told = network(**given).logits[0].log_softmax(-1)
        for place in one.counts.nonzero()[:, 0].tolist():
            total -= float(told[place - 1, one.tokens[place]])
            count += 1
    assert found[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_what_does_not_count_changes_nothing_and_nothing_counted_is_no_nan(images: Path) -> None:
    torch.manual_seed(0)
    network, task = llava(400), Answers()
    encoder = ProcessorEncoder(read(llava_processor()), None, None)
    batch = collate([encoder(question) for question in asked(images)], 0)
    ignored = {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}
    loss = task.loss(task.forward(network, ignored), ignored)
    loss.backward()
    assert float(loss.detach()) == 0
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert not any(bool(g.isnan().any() or g.any()) for g in gradients)
    with torch.no_grad():
        outputs = task.forward(network, batch)
    other = batch["labels"].clone()
    other[batch["attention_mask"] == 0] = 3  # of padding
    other[:, 0] = 3  # of the first token, which nothing precedes
    assert torch.equal(task.loss(outputs, {**batch, "labels": other}), task.loss(outputs, batch))


def test_a_split_of_questions(images: Path, words: Tokenizer) -> None:
    questions = asked(images)
    split = Conversations.of(questions, PlainEncoder(words, None, 8, 4), 40)
    whole = split.take(torch.arange(8)).fields
    assert split.shapes == {name: tuple(value.shape[1:]) for name, value in whole.items()}
    assert split.shapes["input_ids"] == (40,)
    before = threading.active_count()
    batches = list(split.batches(3))
    assert threading.active_count() == before
    assert [len(batch["labels"]) for batch in batches] == [3, 3, 2]
    for start, batch in zip((0, 3, 6), batches, strict=True):
        width = batch["input_ids"].shape[1]
        assert bool(batch["attention_mask"].any(0).all())  # padded to the longest of the batch
        for name, value in batch.items():
            rows = whole[name][start : start + 3]
            assert torch.equal(value, rows if name == "pixel_values" else rows[:, :width])
    (some,) = split.training_batches([torch.tensor([5, 1])], None, 0)
    assert torch.equal(some["pixel_values"], whole["pixel_values"][[5, 1]])
    chosen = split.select(torch.tensor([5, 1]))
    assert (len(chosen), chosen.vocabulary) == (2, words.vocabulary)
    digests = set()
    for one in (split, chosen, Conversations.of(questions, PlainEncoder(words, "one", 8, 4), 40)):
        digest = hashlib.sha256()
        one.add_to(digest)
        digests.add(digest.hexdigest())
    assert len(digests) == 3


def test_longer_examples_lose_their_ends() -> None:
    long = Encoded(torch.arange(1, 9), torch.tensor([False] * 4 + [True] * 4))
    short = Encoded(torch.arange(1, 4), torch.tensor([False, True, True]))
    for side in ("left", "right"):
        batch = collate([long, short], 0, 5, side)
        assert batch["input_ids"][0].tolist() == [1, 2, 3, 4, 5]
        assert batch["labels"][0].tolist() == [IGNORED] * 4 + [5]
        assert int(batch["attention_mask"].sum()) == 5 + 3


def test_images_of_different_shapes_are_refused_in_a_line() -> None:
    one = Encoded(
        torch.ones(2).long(),
        torch.tensor([False, True]),
        images={"pixel_values": torch.ones(3, 4, 4)},
    )
    two = Encoded(one.tokens, one.counts, images={"pixel_values": torch.ones(3, 4, 8)})
    with pytest.raises(InputError) as caught:
        collate([one, two], 0)
    assert str(caught.value) == (
        "the processor makes pixel_values of different shapes, [3, 4, 4] and [3, 4, 8]: "
        "data.image_size makes images alike"
    )


def test_a_damaged_image_is_named(tmp_path: Path, words: Tokenizer) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image"):
        PlainEncoder(words, None, 8, 4)(Question((("a", "b"),), tmp_path / "a.png"))


def idefics() -> tuple[Any, Any]:
    """SmolVLM's ancestor: tiles of an image have an axis of their own."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    own = tokenizer()
    own.add_special_tokens(
        {"additional_special_tokens": ["<fake_token_around_image>", "<end_of_utterance>", "<g>"]}
    )
    small = {"longest_edge": 32}
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(size=small, max_image_size=small, do_image_splitting=False),
        own,
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    vision = {**sizes, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    text = {**sizes, "model_type": "llama", "vocab_size": len(own), "pad_token_id": 0}
    config = Idefics3Config(
        image_token_id=IMAGE,
        scale_factor=2,
        vision_config=vision,
        text_config={**text, "num_attention_heads": 4, "num_key_value_heads": 2},
    )
    return processor, Idefics3ForConditionalGeneration(config)


def qwen() -> tuple[Any, Any]:
    """Qwen2-VL: patches of all images along one axis, and positions of its own."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    own = tokenizer()
    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    own.add_special_tokens({"additional_special_tokens": marks})
    image, video, start, end = own.convert_tokens_to_ids(marks)

    class ForImages(Qwen2VLProcessor):  # type: ignore[misc]
        """Without the processor of videos, which needs torchvision."""

        def __init__(self) -> None:
            self.image_processor = Qwen2VLImageProcessorPil(
                patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024, temporal_patch_size=2
            )
            self.tokenizer, self.video_processor = own, None
            self.image_token, self.video_token = marks[:2]
            self.image_token_id, self.video_token_id = image, video
            self.image_ids, self.video_ids, self.audio_ids = [image], [video], list[int]()
            self.chat_template = CHAT.replace("IMAGE", f"{marks[2]}{marks[0]}{marks[3]}")

    text = {
        "vocab_size": len(own),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4},
    }
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={**vision, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return ForImages(), Qwen2VLForConditionalGeneration(config)


@pytest.mark.slow
@pytest.mark.parametrize("make", [idefics, qwen])
def test_other_families_of_image_and_text(images: Path, make: Any) -> None:
    torch.manual_seed(0)
    processor, network = make()
    encoder = ProcessorEncoder(read(processor), None, None)
    split = Conversations.of(asked(images), encoder, 120)
    found = [
        measured(network.eval(), encoder, split.questions, size, side)
        for side in ("right", "left")
        for size in (1, 3, 8)
    ]
    for one in found[1:]:
        assert one == pytest.approx(found[0], rel=1e-5)
    task, batch = Answers(), split.take(torch.arange(2)).fields
    with torch.no_grad():
        assert task.forward(network, batch).shape[:2] == (2, 120)
