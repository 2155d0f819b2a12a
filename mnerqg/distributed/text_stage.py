"""The text stage of bulk tagging: sentences to pieces, in Ray Data tasks."""

from threading import Lock

import pyarrow as pa

from mnerqg.archive.counts import model_raised
from mnerqg.archive.jsonlines import LINE_ERROR
from mnerqg.archive.reading import text_values
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.inputs.prepared import ROW_ERROR, TEXTS, texts_to_arrow
from mnerqg.inputs.text import EncodedText, TextEncoder, TextEncoderSource, shared_text_encoder

_BROKEN = "the text is not valid UTF-8"


class EncodeTexts:
    """Adds the windows of every post's text, and what is wrong with its row.

    Args:
        columns: of the archive.
        source: of the model's text encoder.
        windows: of a text that are read at most.
    """

    def __init__(self, columns: ColumnsConfig, source: TextEncoderSource, windows: int) -> None:
        self._columns = columns
        self._source = source
        self._windows = windows

    def __call__(self, rows: pa.Table) -> pa.Table:
        texts, broken = text_values(rows[self._columns.text])
        with _ONE_AT_A_TIME:
            encoder = shared_text_encoder(self._source)
            read = [self._read(encoder, text or "") for text in texts]
        lines = rows[LINE_ERROR].to_pylist() if LINE_ERROR in rows.column_names else [None] * rows.num_rows
        errors = [
            "; ".join(filter(None, (line, _BROKEN if is_broken else None, error))) or None
            for line, is_broken, (_, error) in zip(lines, broken, read, strict=True)
        ]
        rows = rows.append_column(ROW_ERROR, pa.array(errors, pa.string()))
        return rows.append_column(TEXTS, texts_to_arrow([windows for windows, _ in read]))

    def _read(self, encoder: TextEncoder, text: str) -> tuple[list[EncodedText], str | None]:
        """The windows of a text, and what was raised on the way to them; then the post is read as if it had no text."""
        try:
            return encoder.windows(text, self._windows), None
        except Exception as error:
            return encoder.windows("", 1), model_raised(error)


# Where Ray fuses this stage into the model's actor, two of its threads call it at the same time. Tokenizers are for one
# thread each.
_ONE_AT_A_TIME = Lock()
