"""What can be set of a model and its training: every setting with its type, default and meaning.

Sections are frozen and validated when they are built. `config_files` builds them from YAML and the command line;
`config_jobs` has what can be set of the jobs that use a model.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mnerqg.config_types import (
    CountOrRange,
    Many,
    NonNegativeFloat,
    Pair,
    Place,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)


class ModelConfig(Section):
    """The network, which is Figure 2 of the paper."""

    encoder: Place = "bert-base-uncased"
    """A text encoder that reads both ways (of BERT's, RoBERTa's, MPNet's, DeBERTa's, ModernBERT's family ...) and has a
    fast tokenizer: hub name, directory, or `package:NAME/PATH` inside an installed package."""
    encoder_dropout: Probability | None = None
    """Overrides the encoder's own hidden and attention dropout; null keeps what its config says."""
    encoder_attention: Literal["sdpa", "eager"] = "sdpa"
    """The encoder's attention kernel; one that does not have it runs with the other one, and the log says so. On a CPU
    in bf16 eager takes half the time of sdpa, in fp32 as much. To answer on a GPU sdpa is taken where there is one."""
    max_length: Annotated[int, Field(ge=32, le=512)] = 128
    """Pieces of query, sentence and the tokenizer's own around and between them; only the sentence is cut [chosen]."""
    backbone: str = "darknet53"
    """Any timm feature backbone with maps at strides 8, 16 and 32."""
    backbone_weights: Place | None = None
    """Pretrained weights: a timm state dict, a Darknet `.weights` file, or `package:NAME` with one such file in it;
    null starts at random."""
    frozen_backbone_stages: Annotated[int, Field(ge=-1)] = 0
    """The stem and this many stages are not trained; -1 freezes the whole backbone."""
    frozen_backbone_statistics: bool = True
    """BatchNorm of the backbone uses its stored statistics in training too."""
    pyramid_width: PositiveInt = 512
    """Channels of its 1x1 convolutions at stride 32, half of them at 16 and a quarter at 8; YOLOv3 has 512."""
    pyramid_depth: Annotated[int, Field(ge=0)] = 2
    """Pairs of 1x1 and 3x3 convolutions a scale; YOLOv3 has 2."""
    width: PositiveInt = 512
    """d, the width of text and picture features after projection."""
    heads: PositiveInt = 8
    """Attention heads of the cross-modality attention [chosen]."""
    dropout: Probability = 0.3
    """Of the encoder's output before it is projected to `width`."""
    image_side: PositiveInt = 256
    """Side of the letterboxed canvas, a multiple of 32."""
    anchors: Many[Pair[PositiveFloat]] = (
        (352, 294), (369, 169), (209, 263), (204, 132), (124, 205), (82, 121), (137, 71), (55, 58), (29, 26),
    )  # fmt: skip
    """Nine anchors (width, height) at `anchor_side` scale, three a scale from the coarsest grid on [FA-VG]."""
    anchor_side: PositiveInt = 416
    """Side of the square canvas in whose pixels the anchors are given; YOLOv3's is 416."""
    match_hidden: PositiveInt | None = None
    """Width of the hidden layer of the match head (Li et al. 2019); null is eq. 5 as printed."""
    query_map: bool = False
    """Map q through two layers of Linear, BatchNorm and ReLU before it meets the picture, as FA-VG does. The paper does
    not mention them."""
    query_gradient: Probability = 1.0
    """The share of the grounding's gradient that goes through q into H' and the text encoder; FA-VG's is 0. The whole
    of it drowns the tagger's [chosen]."""
    query_alone: bool = False
    """q is of the query read by itself, as it always is for phrases and in FA-VG. In the paper the query has read the
    sentence behind it, and so q says whether that names one of the type: the confidences then learn from the text what
    the picture should tell them [chosen]."""
    region_existence: bool = False
    """Tell the existence state H_g, which by eq. 2 reaches start and end, how sure the grounding is of the query's best
    box. The confidences do not learn from it. Part of variants/aligned.yaml, with which a tagger reads pictures
    (docs/model.md) [chosen]."""
    inputs: Literal["text_picture", "text", "picture"] = "text_picture"
    """What of a post is looked at: text alone is the paper's -Text, and picture, which leaves only the queries
    to be read and only their boxes to be answered, is FA-VG in our tables (`model.heads` says how far it is so)."""
    picture: Literal["whole", "region"] = "whole"
    """region: the picture is cut to its best weak box beforehand, which makes the tagger the second of two stages
    (MNER-VG). Only prepared datasets with weak boxes (jobs/label.py) can then be read."""
    tagger: Literal["mrc", "bio", "crf"] = "mrc"
    """mrc answers queries by spans. bio and crf are the baselines that label the words of the text instead
    (BERT, BERT-CRF): no queries, no picture, no boxes."""
    grounding: bool = True
    """false builds no query grounding: for those who want no regions, and for -Text and MNER-VG. The paper's
    "w/o QG loss" is another thing, `loss.grounding_weight: 0`."""

    @property
    def answers_entities(self) -> bool:
        """Whether there are heads for entities; only FA-VG has none."""
        return self.inputs != "picture"

    @property
    def answers_spans(self) -> bool:
        """Whether entities are pairs of a start and an end, not runs of word labels; existence goes with them."""
        return self.answers_entities and self.tagger == "mrc"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grounding and self.inputs == "text":
            raise ValueError("grounding is true, but inputs is text; without a picture it must be false")
        if self.region_existence and not (self.grounding and self.inputs == "text_picture"):
            raise ValueError(
                "region_existence is true; then grounding must be true and inputs must be text_picture, or no region "
                "and no existence is there"
            )
        if self.inputs == "picture" and not self.grounding:
            raise ValueError("grounding is false, but inputs is picture, which answers nothing else")
        if self.picture == "region" and (self.grounding or self.inputs != "text_picture"):
            raise ValueError(
                "picture is region; then grounding must be false, for the boxes lie in the whole picture, and inputs "
                "must be text_picture"
            )
        if self.tagger != "mrc" and self.inputs != "text":
            raise ValueError(f"tagger is {self.tagger}; then inputs must be text")
        if self.image_side % 32:
            raise ValueError(f"image_side is {self.image_side}; it must be a multiple of 32")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; it must be a multiple of heads ({self.heads})")
        if len(self.anchors) != 9:
            raise ValueError(f"anchors has {len(self.anchors)} entries; it must have 9, three a scale")
        return self


class LossConfig(Section):
    """Weights of the joint loss, eq. 6.

    A weight of 0 takes the loss away and leaves the module where it is, so that it learns nothing: the paper's
    ablations "w/o QG loss" and "w/o ED loss". What such a module says is not an answer and is not shown as one.
    """

    box_weight: NonNegativeFloat = 5.0
    """Weight of L_bbox against L_object inside L_QG [FA-VG]."""
    grounding_weight: NonNegativeFloat = 1.0
    """Multiplies ω_f L_QG; in the paper 1, and 0 in "w/o QG loss"."""
    existence_weight: NonNegativeFloat = 1.0
    """λ1; in the paper 1, and 0 in "w/o ED loss"."""
    span_weight: NonNegativeFloat = 2.0
    """λ2; in the paper 2."""
    span_mean: Literal["words", "queries"] = "words"
    """Over what L_start and L_end are means: over all words, or over the queries of the posts. Over words they hardly
    weigh, for a batch has some thirty times more of these [chosen]."""
    positive_weight: PositiveFloat = 1.0
    """Weight of the words where an entity starts or ends, and of the pairs that are an entity, against all others in
    L_ESP. They are rare, and so their scores stay low: at thresholds of 0.5 precision was far above recall [chosen]."""
    match_weight: NonNegativeFloat = 1.0
    """Of L_match inside L_ESP. The released code of Li et al. 2019 has 0.1 where start and end have 1."""
    match_candidates: Probability = 0.5
    """L_match is taken over the pairs of gold starts and gold ends, and of starts and ends with a score above this.
    Decoding knows thresholds down to 0.05 [chosen]."""
    balance: Literal["dynamic", "constant"] = "dynamic"
    """ω_f: the clamped ratio of running losses [chosen], or the constant 1."""
    balance_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.98
    """Of the running means of the losses whose ratio ω_f is: the share that a step keeps [chosen]."""
    balance_min: PositiveFloat = 0.1
    """ω_f is never below this [chosen]."""
    balance_max: PositiveFloat = 10.0
    """ω_f is never above this [chosen]."""
    best_background: bool = False
    """Add to L_object the plain BCE of the most confident candidate of each pair that shows nothing, by which that pair
    is answered. Other negatives are weighted by the square of their score, which hardly lowers one of 0.2 [chosen]."""
    ignore_iou: Probability = 0.5
    """Anchors of the assigned cell with a centred IoU above this are neither positive nor negative [chosen]."""
    box_targets: Literal["largest", "all"] = "largest"
    """Of several gold boxes of a query: the largest, or all of them. The paper has one region a query and does not
    say which of several it is [chosen]."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.balance_min > self.balance_max:
            raise ValueError(
                f"balance_min is {self.balance_min}; it must not exceed balance_max ({self.balance_max})"
            )
        return self


class DecodeConfig(Section):
    """How scores become entities and regions.

    With a trained model those thresholds are stored that `train.fit_thresholds` chose; where it chooses none, these.
    """

    span_threshold: Probability = 0.5
    """Score above which a piece is a start, or an end."""
    match_threshold: Probability = 0.5
    """Score above which a start and an end belong to one entity."""
    region_threshold: Probability = 0.5
    """Confidence of a box from which on it is a region."""
    overlap: Literal["flat", "across_types"] = "flat"
    """flat: no two entities overlap; across_types: they may when their types differ, as in the paper, which answers
    each query by itself."""
    regions: Literal["one", "several"] = "one"
    """A query is answered by its most confident box, or by all that remain above the threshold after NMS, of its
    hundred most confident ones [chosen]."""
    nms_iou: Probability = 0.5
    """With several regions: of two of a query that overlap by more the less confident one is dropped [chosen]."""

    def at(self, threshold: float) -> Self:
        """The same with another threshold for start, end and match."""
        return self.model_copy(update={"span_threshold": threshold, "match_threshold": threshold})


class AugmentConfig(Section):
    """Augmentation of training pictures; boxes move alike [chosen]."""

    flip: bool = True
    """Mirror every second picture, left to right."""
    colour: bool = True
    """Change brightness, contrast and saturation at random."""
    affine: bool = True
    """Rotate, shear, scale and shift at random."""
    drop_picture: Probability = 0.1
    """Share of training posts whose picture is withheld, so that posts without one are in distribution."""


class TrainConfig(Section):
    """The training run."""

    epochs: PositiveInt = 20
    """Times that every training post is seen."""
    posts_per_step: PositiveInt = 8
    """Posts a step over all workers together."""
    lr: PositiveFloat = 5e-5
    """Learning rate of everything above encoder and backbone."""
    encoder_lr: NonNegativeFloat | None = None
    """null: the same as lr."""
    backbone_lr: NonNegativeFloat | None = None
    """null: the same as lr."""
    warmup: Probability = 0.1
    """Share of all steps with a rising learning rate; then linear decay to zero."""
    weight_decay: NonNegativeFloat = 0.01
    """Of AdamW, for matrices only: not for biases, norms and the tables of labels."""
    clip_norm: PositiveFloat = 1.0
    """Length to which the gradient of a step is cut back."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 is autocast; on a CPU without AVX-512 and a GPU before NVIDIA's Ampere, where torch only imitates it, it is
    fp32."""
    max_posts: PositiveInt | None = None
    """Train on the first so many posts of the split; null: on all."""
    max_valid_posts: PositiveInt | None = None
    """Choose the best epoch on the first so many posts of the validation split; null: on all."""
    fit_thresholds: bool = True
    """After each epoch `decode.span_threshold` and `match_threshold` become the one of ten values, from 0.05 to 0.5,
    with the best F1 on the validation posts; and then, of models that answer with boxes, too, `decode.region_threshold`
    the one of ten, from 0.05 to 0.9, with the best GMNER F1 (the one of all regions with `decode.regions: several`).
    Of equals it is the nearest to the setting. Where none is better the settings stay, as they do of models without
    starts and ends (FA-VG, BERT, BERT-CRF).
    At 0.5 precision is far above recall: an entity needs start, end and match above it, and a model of 1,000 posts had
    no region above 0.5 although half of its best boxes were right. GMNER counts the regions of right entities: those of
    types that the text does not name cost it nothing [chosen]."""
    check_pictures: Literal["never", "last", "always"] = "last"
    """After which epochs the validation posts are scored with the pictures of other posts and with none, too
    (f1_shuffled and f1_none in metrics.jsonl): a model that reads pictures is the worse for it. It takes the time of
    two more validations [chosen]."""
    start_from: Place | None = None
    """URI of a model directory of the same network, whose weights training begins with (transfer)."""
    boxes: Literal["manual", "weak", "manual_where_present"] = "manual"
    """Whose boxes are learned. Weak ones are written by jobs/label.py."""
    min_weak_score: Probability = 0.2
    """Weak boxes below this score are not learned from, nor is their absence. Of a labeller that had learned 400
    posts 76 % of the boxes from 0.2 on were right, and 95 % of less than half as many from 0.5 on [chosen]."""
    boxed_share: Probability = 1.0
    """Share of the posts with manual boxes whose boxes are used, drawn by their id."""
    phrases_per_post: PositiveInt = 8
    """Of a picture with phrases so many are asked in each epoch, drawn anew."""
    seed: int = 0
    """Of the new weights, of the order of the posts and of what is drawn at random."""
    workers: CountOrRange = 1
    """Data-parallel workers, or an elastic (min, max) range."""
    gpus_per_worker: NonNegativeFloat = 1
    """0 trains on the CPU."""
    cpus_per_worker: PositiveFloat = 1
    """Keep CPUs of the cluster free beside the workers: Ray Data decodes and augments on them."""
    threads_per_worker: PositiveInt | None = None
    """torch threads of a worker; null: as many as cpus_per_worker."""
    autoscaling: bool = False
    """The cluster grows by itself: do not refuse to start because it is too small now."""
    minutes_between_checkpoints: PositiveFloat = 10.0
    """Within an epoch, beside the one at its end: so much is lost with a worker, or when an elastic range takes one
    more [chosen]."""
    tensorboard: bool = False
    """After each epoch the figures of metrics.jsonl are written for TensorBoard, too, to the folder tensorboard/ of the
    run. It takes the extra: pip install 'mnerqg[tensorboard]'."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Lost workers after which the run is given up; -1: never. Preemptions are not counted."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers is {self.workers}; the first of (min, max) must not be the larger")
        return self


class Config(Section):
    """Everything that defines a model and its training."""

    queries: Place = "keyword_annotation"
    """One of the paper's query styles, or the path of a YAML of one's own queries."""
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    decode: DecodeConfig = DecodeConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()

    @property
    def answers_boxes(self) -> bool:
        """Whether the model answers with boxes: it has a grounding head, and one that has learned from its loss."""
        return self.model.grounding and self.loss.grounding_weight > 0

    @property
    def answers_existence(self) -> bool:
        """Whether the model says if a text names an entity: as `answers_boxes`, of the existence head."""
        return self.model.answers_spans and self.loss.existence_weight > 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.inputs == "picture" and not self.answers_boxes:
            raise ValueError(
                "loss.grounding_weight is 0, but model.inputs is picture, which learns nothing else; give it a weight"
            )
        return self
