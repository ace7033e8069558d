"""What a study is: a frozen value with a digest over every field."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trueoracle.errors import shown
from trueoracle.spec.hub import HF, is_of_library
from trueoracle.training.recipe import DenseTraining, Frozen, Retraining, Seed
from trueoracle.trust import AROUND

__all__ = [
    "AROUND",
    "AROUND_COUNT",
    "AROUND_SHARE",
    "CANDIDATE_FILES",
    "LANGUAGE_FIELDS",
    "QUESTIONS",
    "STREAMED",
    "TEXTS",
    "DataSpec",
    "NetworkSpec",
    "PruningSpec",
    "StudySpec",
    "candidates_in_words",
]

DIGEST_FORMAT = 2
"""To be raised when the meaning of a recorded number changes though no field does."""

MOST_IMAGES = 10**9
MOST_CANDIDATES = 10**9
"""Far more than any study has, so that absurd numbers are refused before anything is built."""

STREAMED = ("imagenet", "folder")
"""Data sets that are read from image files as they are needed: too large for memory."""

TEXTS = ("text", "kjv")
"""Data sets of running text, whose task is ``next-token``."""

QUESTIONS = ("easy-vqa", "instructions", "scienceqa", "textvqa", "gqa", "pope")
"""Data sets of questions with answers, most of them about an image; their task is ``answers``."""

CANDIDATE_FILES = (".json", ".pkl")
"""The endings of files that list candidates: those of another study, or of the paper's code."""

AROUND_COUNT, AROUND_SHARE = 32, 0.1
"""The default number of such candidates, and the default share of scores that change places."""

_LARGEST = 10**18
"""The limit for a network's arguments, whose meaning only the network knows."""

Whole = Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
Real = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
Share = Annotated[float, Field(gt=0, lt=1)]


class NetworkSpec(Frozen):
    """The dense network: its architecture, and its weights where it arrives trained."""

    name: str = Field(
        description="a registered network, module:factory, hf:FOLDER or hf:ORGANISATION/NAME of "
        "transformers, timm:NAME or torchvision:NAME"
    )
    arguments: dict[str, bool | Whole | Real | str | tuple[Whole | Real | str, ...]] = Field(
        {}, description="of the network, such as {width = 20}"
    )
    weights: str | None = Field(
        None,
        description="trained weights: a .safetensors or PyTorch file, or torchvision:NAME for "
        "those of its hub; none, or the word 'none': train it",
    )
    fingerprint: str | None = Field(
        None, description="set by Study for a network given in Python: hashes of it"
    )
    files: str | None = Field(
        None, description="set for hf:…, where its files are: SHA-256 of config and weights"
    )

    @field_validator("arguments", mode="before")
    @classmethod
    def _arguments_are_plain(cls, arguments: object) -> object:
        # Checked here, because a union's own errors name each of its members.
        for name, value in arguments.items() if isinstance(arguments, Mapping) else ():
            for one in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(one, int | float | str) or (
                    not isinstance(one, str) and not abs(one) <= _LARGEST
                ):
                    raise ValueError(
                        f"{name} takes text, true or false, a number up to {_LARGEST:.0e}, or a "
                        f"list of them, got {shown(value)}"
                    )
        return arguments

    @field_validator("weights")
    @classmethod
    def _none_takes_weights_away(cls, weights: str | None) -> str | None:
        # TOML has no null, and an arm may have to remove the weights of its study.
        return None if weights == "none" else weights

    @property
    def arrives_trained(self) -> bool:
        """Whether the dense network needs no training here."""
        if is_of_library(self.name) and self.arguments.get("pretrained", True):
            return True
        return self.weights is not None or self.fingerprint is not None

    @property
    def is_fixed(self) -> bool:
        """Whether the network's inputs and outputs do not depend on the data."""
        if self.name.startswith(HF) or self.fingerprint is not None:
            return True
        return is_of_library(self.name) and self.weights is None and self.arrives_trained


class DataSpec(Frozen):
    """The data set and how its training examples are split."""

    name: str = Field("mnist-5k", description="a registered data set, or folder for one's own")
    path: str | None = Field(
        None,
        description="of folder and imagenet: where train/ and val/ with a folder a class are; of "
        "text and questions: their file or folder",
    )
    arguments: dict[str, Whole | Real] = Field(
        {}, description="of the data set: of glyphs {classes = 36, fonts = 100, noise = 0.2}"
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="resize to this height and width; none: the data set's own",
    )
    train_images: int | None = Field(
        None,
        ge=1,
        le=MOST_IMAGES,
        description="at most so many training examples, equally from each class",
    )
    test_images: int | None = Field(
        None, ge=1, le=MOST_IMAGES, description="the same of the test examples"
    )
    validation_images: int = Field(
        500,
        ge=0,
        le=MOST_IMAGES,
        description="taken from the training examples; of text and questions: at most so many",
    )
    measured_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of the training examples, equally from each class: those on which train loss "
        "is measured; imagenet's and folder's default is 0.1",
    )
    split_seed: Seed = Field(0, description="of all these draws")
    blocks: int = Field(
        20,
        ge=0,
        le=1000,
        description="deal the validation and the test examples into so many blocks, equally from "
        "each class, by each of which outcomes are recorded too, so that intervals allow for other "
        "examples; 0: none",
    )
    uint8: Literal["scale", "keep"] | None = Field(
        None,
        description="images given in Python as whole numbers from 0 to 255: divide by 255, or read "
        "them as they are; none: ask",
    )
    fingerprint: str | None = Field(
        None, description="set by Study for data given in Python: SHA-256 of every example"
    )
    tokenizer: str | None = Field(
        None,
        max_length=500,
        description="of text and questions: 'bpe:1024' or 'words' trains one on the training text, "
        "a path or name reads one; none: the network's own",
    )
    context: int | None = Field(
        None,
        ge=2,
        le=10_000_000,
        description="tokens of an example; none: 128 of text, as many as the longest of questions",
    )
    stride: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="of text: tokens from the start of one example to the start of the next; where "
        "they overlap, only new tokens count in evaluation; none: no overlap",
    )
    bos: Literal["none", "one"] | None = Field(
        None,
        description="of text and questions: each example begins with exactly one beginning-of-text "
        "token, or has none; left out: as the tokenizer does",
    )
    held_out: tuple[Share, Share] = Field(
        (0.05, 0.05),
        description="of text and questions in one part: the shares at the end that are the "
        "validation and the test split",
    )
    stretches: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="of text in one part: cut it into so many of equal size, each of which holds "
        "out its own end; none: one",
    )
    columns: dict[str, str] = Field(
        {},
        description='of JSONL: the names of its columns: {text = "body"}, or {prompt = "question", '
        'answer = "reply", image = "file"}',
    )
    image_folder: str | None = Field(
        None, description="of questions: the folder of their images; none: beside the questions"
    )
    image_tokens: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="of questions: tokens that an image takes, where the network brings no "
        "processor that says so",
    )
    test: str | None = Field(
        None,
        max_length=4096,
        description="of questions: others to test on, as NAME:PATH (pope:coco_pope_random.json)",
    )

    @property
    def is_language(self) -> bool:
        """Whether the examples are tokens, of text or of questions and answers."""
        return self.name in TEXTS + QUESTIONS

    @field_validator("blocks")
    @classmethod
    def _one_block_says_nothing(cls, count: int) -> int:
        if count == 1:
            raise ValueError("one block cannot be compared with another: expected 0, or 2 or more")
        return count

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> DataSpec:
        if sum(self.held_out) >= 1:
            raise ValueError(f"held_out = {list(self.held_out)} leaves nothing to train on")
        return self

    @model_validator(mode="after")
    def _large_sets_are_measured_in_part(self) -> DataSpec:
        if self.name in STREAMED and "measured_fraction" not in self.model_fields_set:
            # This is a default and must not count as a field that was set.
            self.__dict__["measured_fraction"] = 0.1
        return self


Kind = Literal["structured", "unstructured", "n:m", "depth"]
"""The kinds of pruning: filters, single weights, N of every M weights, whole layers."""


class PruningSpec(Frozen):
    """Which layers lose how many filters or weights, or are lost as a whole, and in which ways."""

    kind: Kind = Field(
        "structured",
        description="structured: filters, heads, units; unstructured: single weights are set to "
        "zero, and held there; n:m: so are M - N of every M consecutive input weights; depth: "
        "whole layers are taken out",
    )
    scope: Literal["layer", "row", "global"] = Field(
        "layer",
        description="unstructured: the sparsity of each layer, of each output row of a layer, or "
        "of all layers together",
    )
    layers: dict[str, Annotated[float, Field(gt=0, lt=1)] | str] = Field(
        min_length=1,
        description="layer name or pattern to pruning ratio (or sparsity): {conv1 = 0.5}; of n:m, "
        'to the pattern: {"*.mlp.*" = "2:4"}',
    )
    candidates: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] | str = Field(
        "all",
        description="all: every way to prune; a number: so many sampled without repeats; "
        "around:CRITERION: the criterion's own choice, and others drawn around it; a .json file: "
        "those that another study wrote; a .pkl file: a combination file of the paper's code",
    )
    count: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] | None = Field(
        None, description=f"around: how many candidates, its choice among them; {AROUND_COUNT}"
    )
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="around: which share of the criterion's scores changes places in each "
        f"candidate but the first; {AROUND_SHARE}",
    )
    seed: Seed = Field(0, description="of the sample")
    surgery: Literal["exact", "as-released"] = Field(
        "exact", description="as-released: the wiring of the paper's released code"
    )

    @property
    def around(self) -> str | None:
        """The criterion around whose choice candidates are drawn."""
        given = str(self.candidates)
        return given.removeprefix(AROUND) if given.startswith(AROUND) else None

    @field_validator("layers", mode="before")
    @classmethod
    def _ratios_or_patterns(cls, layers: object) -> object:
        # Checked here, because a union's own errors name each of its members.
        for name, value in layers.items() if isinstance(layers, Mapping) else ():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0 < value < 1) and not (
                isinstance(value, str) and _PATTERN.fullmatch(value)
            ):
                raise ValueError(
                    f"{name} takes a ratio between 0 and 1, or in kind 'n:m' a pattern such as "
                    f"'2:4', got {shown(value)}"
                )
        return layers

    @field_validator("candidates", mode="before")
    @classmethod
    def _all_or_a_number(cls, value: object) -> object:
        # Checked here, because a union's own errors name each of its members.
        if value == "all" or (isinstance(value, str) and value.endswith(CANDIDATE_FILES)):
            return value
        if isinstance(value, str) and value.startswith(AROUND) and value != AROUND:
            return value
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not (1 <= value <= MOST_CANDIDATES)
        ):
            raise ValueError(
                f"expected 'all', a whole number from 1 to {MOST_CANDIDATES:,}, 'around:' and a "
                f"criterion, or a .json or .pkl file, got {shown(value)}"
            )
        return value

    @model_validator(mode="after")
    def _fields_of_samples_belong_to_one(self) -> PruningSpec:
        if self.around is None:
            for name in ("count", "share"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"{name} = {value} needs candidates = 'around:CRITERION'")
            if isinstance(self.candidates, str) and self.seed != 0:
                raise ValueError(f"seed does nothing while candidates = {self.candidates!r}")
        return self

    @model_validator(mode="after")
    def _kind_fits(self) -> PruningSpec:
        kind = f"kind = {self.kind!r}"
        for name, value in self.layers.items():
            if isinstance(value, str) != (self.kind == "n:m"):
                expected = "a pattern such as '2:4'" if self.kind == "n:m" else "a ratio"
                raise ValueError(f"{kind}: {name} takes {expected}, got {value!r}")
        if self.scope != "layer" and self.kind != "unstructured":
            raise ValueError(f"scope = {self.scope!r} needs kind = 'unstructured'")
        if self.scope == "global" and len(set(self.layers.values())) > 1:
            raise ValueError("scope = 'global' takes one sparsity for all layers")
        if self.kind == "structured":
            return self
        if self.surgery != "exact":
            raise ValueError("surgery = 'as-released' needs kind = 'structured'")
        if self.candidates == "all" and self.kind != "depth":
            raise ValueError(f"{kind} needs a number of candidates to sample, or 'around:…'")
        if str(self.candidates).endswith(".pkl"):
            raise ValueError(f"{self.candidates} lists filters, which kind = 'structured' prunes")
        return self


def candidates_in_words(pruning: PruningSpec, count: int) -> str:
    """What a study's candidates are, and which part of that is random."""
    given = pruning.candidates
    if pruning.around is not None:
        share = AROUND_SHARE if pruning.share is None else pruning.share
        return (
            f"the choice of criterion {pruning.around!r} (the first), and {count - 1:,} drawn at "
            f"random around it: {share:.0%} of its scores change places (seed {pruning.seed})"
        )
    if given == "all":
        return f"all {count:,} ways to prune"
    if not isinstance(given, int):
        return f"{count:,} listed in {given}"
    if pruning.kind in ("unstructured", "n:m"):
        return (
            f"{count:,} random masks (seed {pruning.seed}), which say little of masks that a "
            "criterion would choose: pruning.candidates = 'around:wanda' draws them around such a "
            "choice"
        )
    return f"a random sample of {count:,} ways to prune (seed {pruning.seed})"


_PATTERN = re.compile(r"[1-9][0-9]{0,2}:[1-9][0-9]{0,2}")

Role = Literal["small", "short", "as-released"]
"""What an arm is for.

``small`` is the study at small scale, ``short`` a shorter retraining that reports relate to the
study's own, ``as-released`` the wiring of the paper's released code.
"""

DESCRIPTIVE = {"name", "purpose", "roles", "changed"}
"""The fields of a study that change no number and are therefore no part of its digest."""

LANGUAGE_FIELDS = {
    "data.bos",
    "data.columns",
    "data.context",
    "data.held_out",
    "data.image_folder",
    "data.image_tokens",
    "data.stretches",
    "data.stride",
    "data.test",
    "data.tokenizer",
}
"""Fields that only text and questions have."""

ADDED = {
    *LANGUAGE_FIELDS,
    "network.files",
    "data.arguments",
    "data.blocks",
    "pruning.count",
    "pruning.share",
    "dense.accumulate",
    "dense.gradient_checkpointing",
    "dense.schedule_per",
    "dense.seeds",
    "dense.steps_per_epoch",
    "dense.warmup",
    "retraining.accumulate",
    "retraining.gradient_checkpointing",
    "retraining.lora",
    "retraining.schedule_per",
    "retraining.steps_per_epoch",
    "retraining.warmup",
}
"""Fields added after digests were recorded; at its default, such a field is no part of a digest."""


class StudySpec(Frozen):
    """One dense network × one pruning × criteria × a retraining recipe × seeds.

    With ``dense.seeds`` the study is over several dense networks, each of which makes a study by
    itself (``networks``).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]*$", max_length=100)
    purpose: str = Field("", description="one line for the list of studies")
    roles: dict[str, Role] = Field({}, description="set by its arms: what each of them is for")
    changed: tuple[str, ...] = Field(
        (), description="set where fields of a user's file were changed: which, by dotted name"
    )
    task: str = Field(
        "classification",
        description="what is trained for: classification, multilabel, regression, segmentation, "
        "next-token, answers, or module:attribute of one's own",
        max_length=500,
    )
    network: NetworkSpec
    data: DataSpec = DataSpec()
    dense: DenseTraining = DenseTraining()
    pruning: PruningSpec
    criteria: tuple[str, ...] = Field(("oracle", "l1"), min_length=1)
    retraining: Retraining = Retraining()

    @field_validator("network", "data", mode="before")
    @classmethod
    def _a_name_is_short_for_a_table(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _language_brings_its_task(self) -> StudySpec:
        if "task" not in self.model_fields_set and self.data.is_language:
            # A default, as that of DataSpec.measured_fraction.
            self.__dict__["task"] = "next-token" if self.data.name in TEXTS else "answers"
        return self

    @field_validator("criteria")
    @classmethod
    def _criteria_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError(f"criteria must differ, got {list(names)}")
        return names

    @model_validator(mode="after")
    def _several_networks_are_trained_here(self) -> StudySpec:
        if self.dense.seeds is not None and self.network.arrives_trained:
            raise ValueError(
                f"dense.seeds = {list(self.dense.seeds)} trains a dense network for each, and "
                f"network {self.network.name!r} arrives trained: leave dense.seeds out"
            )
        return self

    @property
    def networks(self) -> tuple[StudySpec, ...]:
        """The study of each dense network, as ``dense.seed`` alone would make it."""
        if self.dense.seeds is None:
            return (self,)
        each = [{"seed": seed, "seeds": None} for seed in self.dense.seeds]
        return tuple(
            self.model_copy(update={"dense": self.dense.model_copy(update=one)}) for one in each
        )

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that are laid on the study, with which its name ends."""
        return tuple(self.name.split("@")[1:])

    def role(self, arm: str) -> str:
        """What an arm is for; where the arm's file does not say, its name is its role."""
        return self.roles.get(arm, arm)

    def has_role(self, role: Role) -> bool:
        """Whether one of the study's arms has ``role``."""
        return any(self.role(arm) == role for arm in self.arms)

    def without(self, role: Role) -> str:
        """The name of the study without its arms of ``role``."""
        base = self.name.partition("@")[0]
        return "@".join([base, *(arm for arm in self.arms if self.role(arm) != role)])

    @property
    def scale(self) -> Literal["small", "full"]:
        return "small" if self.has_role("small") else "full"

    @property
    def title(self) -> str:
        """The name for headings, which also says small scale in words."""
        return f"{self.name} (small scale)" if self.scale == "small" else self.name

    def leaves(self) -> dict[str, Any]:
        """The fields by dotted name, but for those that change no number.

        Tables within tables, such as arguments and ratios, count as one field.
        """
        return {
            f"{name}.{field}" if isinstance(values, Mapping) else name: value
            for name, values in self.model_dump(exclude=DESCRIPTIVE).items()
            for field, value in (values if isinstance(values, Mapping) else {name: values}).items()
        }

    def differences(self, other: StudySpec) -> dict[str, tuple[Any, Any]]:
        """The dotted fields in which two studies differ, with the values of both."""
        ours, theirs = self.leaves(), other.leaves()
        return {
            field: pair
            for field in dict.fromkeys([*ours, *theirs])
            if (pair := (ours.get(field), theirs.get(field)))[0] != pair[1]
        }

    @property
    def digest(self) -> str:
        """12 hex digits over every field that can change a number, defaults included."""
        return _digest(self._fields(exclude=DESCRIPTIVE))

    @property
    def dense_digest(self) -> str:
        """The digest of all that the dense network depends on; studies of one digest share it."""
        return _digest(self._fields(include={"task", "network", "data", "dense"}))

    @property
    def score_digest(self) -> str:
        """The digest of all that a candidate's score depends on, besides the criterion."""
        return _digest([self.dense_digest, self.pruning.surgery])

    @property
    def outcome_digest(self) -> str:
        """The digest of all that the retraining of one candidate with one seed depends on."""
        recipe = self._fields(include={"retraining"})["retraining"]
        del recipe["seeds"]
        return _digest([self.dense_digest, self.pruning.surgery, recipe])

    def _fields(self, **choice: Any) -> dict[str, Any]:
        """The fields in a digest; those that were ``ADDED`` are left out at their default."""
        fields = self.model_dump(mode="json", **choice)
        for path in ADDED:
            room, _, name = path.rpartition(".")
            owner, own = (getattr(self, room), fields.get(room)) if room else (self, fields)
            if own and getattr(owner, name) == type(owner).model_fields[name].default:
                own.pop(name, None)
        if "network" in fields and self.network.files is not None:
            fields["network"]["name"] = HF  # the files' hash says which network, wherever they lie
            fields["network"]["arguments"].pop("revision", None)
        for recipe in (fields[stage] for stage in ("dense", "retraining") if stage in fields):
            # In digests, autocast is still the field of its own that it used to be.
            precision = recipe.pop("precision")
            recipe["autocast"] = precision == "autocast"
            if precision == "bfloat16":
                recipe["precision"] = precision
        return fields

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.digest}"


def _digest(value: object) -> str:
    text = json.dumps([DIGEST_FORMAT, value], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
