"""Fixtures shared by all tests: S3 over HTTP, a local Ray cluster, a small model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from moto.server import ThreadedMotoServer

from mnerqg.io import storage
from tests.servers import (
    FaultyProxy,
    ScriptedServer,
    ceph_environment,
    ceph_gateway,
    ceph_missing,
    create_bucket,
    faults,
)

if TYPE_CHECKING:
    from mnerqg.tagger import Tagger

# Ray's workers are nice to other processes (15) and stand still where a machine does other things, too. All clusters of
# the tests take it from here.
os.environ.update(RAY_worker_niceness="0")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What needs a GPU is skipped, visibly, where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than such small matrices gain by them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each text that a tokenizer is given."""
    from mnerqg.inputs.text import TextEncoder

    tokenize, lengths = TextEncoder._tokenize, list[int]()

    def counted(encoder: TextEncoder, text: str) -> object:
        lengths.append(len(text))
        return tokenize(encoder, text)

    monkeypatch.setattr(TextEncoder, "_tokenize", counted)
    return lengths


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of a moto server; the AWS environment of this process and its children points to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        storage.s3_client.cache_clear()
        yield endpoint
    storage.s3_client.cache_clear()
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> str:
    """The URI of a fresh, empty bucket."""
    return create_bucket()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.http.shutdown()
    scripted.http.server_close()


@pytest.fixture
def s3_server(
    s3_endpoint: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ScriptedServer]:
    """The scripted server in the place of S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    storage.s3_client.cache_clear()
    yield server
    storage.s3_client.cache_clear()


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[None]:
    """A local Ray cluster of 4 logical CPUs; its workers see the S3 server of `s3_endpoint`."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=0,
            object_store_memory=200_000_000,
            include_dashboard=False,
            log_to_driver=True,
        )
        ray.data.DataContext.get_current().execution_no_progress_timeout_s = 300
        yield
        ray.shutdown()


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a cluster here, although something is wrong that can be seen without one, fails."""
    import ray

    def init(*_: object, **__: object) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with seeded random weights; needs neither a hub nor the demo extra.

    Its thresholds are so low that random weights, too, answer with entities and regions.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from mnerqg.config import Config, DecodeConfig, ModelConfig, TrainConfig
    from mnerqg.inputs.text import TextEncoder, load_tokenizer
    from mnerqg.model.build import build_pretrained
    from mnerqg.model.checkpoint import save_model
    from mnerqg.queries import load_queries

    folder = tmp_path_factory.mktemp("tiny")
    encoder = folder / "encoder"
    encoder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    words = ["person", "location", "organization", "other", "the", "in", "of", "and", "name", "city"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (encoder / "vocab.txt").write_text("\n".join([*pieces, *words]) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(encoder / "vocab.txt")).save_pretrained(encoder)
    torch.manual_seed(7)
    bert = BertConfig(
        vocab_size=len(pieces) + len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    BertModel(bert, add_pooling_layer=False).save_pretrained(encoder)
    config = Config(
        queries="keyword",
        model=ModelConfig(
            encoder=str(encoder),
            max_length=64,
            backbone="resnet10t",
            width=32,
            heads=4,
            pyramid_width=32,
            pyramid_depth=1,
            image_side=64,
        ),
        decode=DecodeConfig(span_threshold=0.012, match_threshold=0.4, region_threshold=0.0197),
        train=TrainConfig(precision="fp32", gpus_per_worker=0),
    )
    model = build_pretrained(config.model, 4)
    text_encoder = TextEncoder(
        tokenizer=load_tokenizer(str(encoder)), queries=load_queries(config.queries), max_length=64
    )
    save_model(folder / "model", model=model, text_encoder=text_encoder, config=config)
    return folder / "model"


@pytest.fixture(scope="session")
def talkative(tiny_model: Path) -> "Tagger":
    """The small model with thresholds that let its random weights say much."""
    from mnerqg.config import DecodeConfig
    from mnerqg.tagger import Tagger

    loaded = Tagger.load(tiny_model, device="cpu")
    decode = DecodeConfig(span_threshold=0.005, match_threshold=0.1, region_threshold=0.005)
    return Tagger(
        model=loaded.model,
        text_encoder=loaded.text_encoder,
        config=loaded.config.model_copy(update={"decode": decode}),
        model_id=loaded.model_id,
    )


@pytest.fixture
def faulty_s3(s3_endpoint: str) -> Iterator[FaultyProxy]:
    """A proxy that spoils 5 % of the requests to the S3 server."""
    with faults(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def ceph_endpoint() -> Iterator[str]:
    """The URL of a real S3 server, a Ceph RADOS gateway; see `ceph_s3` for the environment that goes with it."""
    if (missing := ceph_missing()) is not None:
        pytest.skip(missing)
    with ceph_gateway() as endpoint:
        yield endpoint


@pytest.fixture
def ceph_s3(ceph_endpoint: str) -> Iterator[str]:
    """The URI of a fresh, empty bucket of the Ceph gateway, to which the AWS environment points."""
    with ceph_environment(ceph_endpoint):
        yield create_bucket()
