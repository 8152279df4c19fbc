"""From any dataset to (instruction, response) pairs: files, layouts, turns, sources."""

from selectit_hf.formats import sources
from selectit_hf.formats.fingerprints import fingerprint, survey
from selectit_hf.formats.media import check_media, with_contents
from selectit_hf.formats.readers.arrow_types import not_floats
from selectit_hf.formats.readers.failures import FOREIGN
from selectit_hf.formats.readers.files import write_arrow
from selectit_hf.formats.readers.streams import write_stream
from selectit_hf.formats.rows import (
    READING,
    STATUSES,
    Pair,
    RowReader,
    Turns,
    check_batch,
    pair_hash,
    worst,
)
from selectit_hf.formats.sources import Source
from selectit_hf.formats.splits import first_rows
from selectit_hf.formats.survey import (
    REMEDIES,
    Survey,
    check_ranking,
    check_space,
    look,
    of_statuses,
    space_needed,
)
from selectit_hf.formats.training.forms import Trainable
from selectit_hf.formats.writing import check_writable, writer

__all__ = [
    "FOREIGN",
    "READING",
    "REMEDIES",
    "STATUSES",
    "Pair",
    "RowReader",
    "Source",
    "Survey",
    "Trainable",
    "Turns",
    "check_batch",
    "check_media",
    "check_ranking",
    "check_space",
    "check_writable",
    "fingerprint",
    "first_rows",
    "look",
    "not_floats",
    "of_statuses",
    "pair_hash",
    "sources",
    "space_needed",
    "survey",
    "with_contents",
    "worst",
    "write_arrow",
    "write_stream",
    "writer",
]
