"""Columns of tables by their usual names."""

from collections.abc import Sequence

from devil.errors import DataError

KEY_NAMES = ("key", "image_key", "__key__")
BYTES_NAMES = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
FILE_NAMES = ("file_name", "filename", "file", "image", "image_path", "path")
CAPTION_NAMES = ("captions", "caption", "texts", "text")


def find_column(
    names: Sequence[str], usual: Sequence[str], given: str | None, *, place: str, kind: str
) -> str:
    """The column that was asked for, or the first of the usual ones that is there.

    Args:
        names: of the columns that there are.
        usual: names to look for.
        given: what the user says; None: nothing.
        place: the table, for messages.
        kind: `key`, `image` or `caption`: the option is named `--source.KIND-column`.

    Raises:
        DataError: there is none.
    """
    found = [name for name in ((given,) if given else usual) if name in names]
    if not found:
        raise DataError(
            f"{place} has no column {given or ' or '.join(usual)} but {', '.join(names) or 'none'};"
            f" name the one with each row's {kind} with --source.{kind}-column."
        )
    return found[0]
