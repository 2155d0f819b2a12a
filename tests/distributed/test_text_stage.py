import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from mnerqg.archive.jsonlines import LINE_ERROR
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.distributed.text_stage import EncodeTexts
from mnerqg.inputs.prepared import ROW_ERROR, TEXTS, texts_from_arrow
from mnerqg.model.files import check_model


def stage(model: Path, windows: int = 1) -> EncodeTexts:
    return EncodeTexts(ColumnsConfig(), check_model(str(model)).text_encoder, windows)


def test_texts_are_read_as_the_model_reads_them(tiny_model: Path) -> None:
    texts = ["the city of Names", None, "", "in " * 200, "👩🏽‍🚀 in 🇵🇹"]
    rows = stage(tiny_model, 3)(pa.table({"text": texts}))
    from mnerqg.model.checkpoint import load_model

    encoder = load_model(str(tiny_model)).text_encoder
    assert texts_from_arrow(rows[TEXTS], texts) == [encoder.windows(text or "", 3) for text in texts]
    assert rows[ROW_ERROR].null_count == len(texts)


def test_what_is_wrong_with_a_row_itself(tiny_model: Path) -> None:
    text = pa.array([b"Ada", b"\xff", b"\xff"]).view(pa.string())
    rows = stage(tiny_model)(pa.table({"text": text, LINE_ERROR: ["no JSON", None, "cut"]}))
    assert rows[ROW_ERROR].to_pylist() == [
        "no JSON",
        "the text is not valid UTF-8",
        "cut; the text is not valid UTF-8",
    ]


def test_threads_of_one_actor_may_begin_at_the_same_time(tiny_model: Path) -> None:
    """Before, two of them imported transformers at once, which then lacked what it has."""
    code = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "import pyarrow as pa\n"
        "from pathlib import Path\n"
        "from tests.distributed.test_text_stage import stage\n"
        "encode, together = stage(Path(sys.argv[1])), Barrier(4)\n"
        "def work(_):\n"
        "    together.wait()\n"
        "    return encode(pa.table({'text': ['Ada in the city'] * 500})).num_rows\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    assert list(pool.map(work, range(4))) == [500] * 4\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, str(tiny_model)], cwd=root, check=True)
