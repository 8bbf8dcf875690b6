"""Read label files: text with one label per line, or JSON in several forms."""

import ast
import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

from models.load.errors import ModelError, first_line

log = logging.getLogger(__name__)

_MOST_BYTES = 32 << 20
# Keys that other tools use for labels in JSON files: transformers, timm, dataset descriptions.
_KEYS = ("id2label", "label2id", "label_names", "labels", "class_names", "classes", "names", "class_to_idx")
# Under these keys, the direction of a map is known: from index to name, or from name to index.
_BY_INDEX, _BY_NAME = ("id2label",), ("label2id", "class_to_idx")
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def read_labels(path: Path) -> tuple[str, ...]:
    """Read the labels from a file, in class order.

    A text file has one label per line; trailing blank lines are ignored. A JSON file has a list, or a map
    from index to name or from name to index. Logs a warning about duplicate labels. Raises ModelError if the
    file is neither; the message says what is wrong and where.
    """
    path = path.expanduser()
    text = _decoded(path, read_bytes(path)).strip("\ufeff")
    if text.lstrip().startswith(("[", "{")) or path.suffix.lower() == ".json":
        labels = _of_json(text, path)
    else:
        labels = _of_lines(text, path)
    if not labels:
        raise ModelError(f"{path} contains no labels; write one per line, in class order")
    twice = [label for label, times in Counter(labels).items() if times > 1]
    if twice:
        log.warning("%s has duplicate labels: %s", path, ", ".join(map(repr, twice[:5])))
    return labels


def of_collection(content: object, where: str, key: str | None = None) -> tuple[str, ...]:
    """Return the labels from a list, or from a map from index to name or from name to index. ``key`` is the
    JSON key of the collection, which may determine the direction of a map. Raises ModelError for anything
    else; ``where`` names the source in the message."""
    if isinstance(content, Mapping):
        return _of_map(content, where, key)
    if isinstance(content, Sequence) and not isinstance(content, str):
        return tuple(_label(name, index, where) for index, name in enumerate(content))
    raise ModelError(
        f'{where} is neither a list of labels nor a map; expected is for example ["cat", "dog"], '
        '{"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}'
    )


def read_bytes(path: Path) -> bytes:
    """Read a label file. Raises ModelError if it cannot be read or is longer than 32 MiB."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(
                f"{path} is {path.stat().st_size} bytes long, which is too long for a label file"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"the label file {str(path)!r} does not exist") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise ModelError(f"the label file {path} cannot be read: {reason}") from error


def _decoded(path: Path, content: bytes) -> str:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), None)
    if encoding is None and b"\0" in content:
        # UTF-16 without a byte-order mark: in Latin text, every other byte is 0.
        zeros = [content[start::2].count(0) for start in (0, 1)]
        if max(zeros) < len(content) / 5:
            raise ModelError(f"{path} is not a text file with labels; write one per line, in UTF-8")
        encoding = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise ModelError(f"{path} is not readable as {encoding}: {first_line(error)}") from error
        text = content.decode("cp1252", errors="replace")
        log.warning(
            "%s is not UTF-8 and is read as Latin-1 (Windows-1252); if labels look wrong, convert it: "
            "iconv -f ENCODING -t UTF-8",
            path,
        )
    odd = next((sign for sign in text if ord(sign) < 32 and sign not in "\t\n\r\f"), None)
    if odd is not None or "\ufffd" in text:
        raise ModelError(f"{path} is not a text file with labels; write one per line, in UTF-8")
    return text


def _of_lines(text: str, path: Path) -> tuple[str, ...]:
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line:
            raise ModelError(
                f"line {number} of {path} is blank, but each line must have a label, in class order; "
                "remove the line or fill it in"
            )
    numbered = [re.fullmatch(r"(\d{1,9})\s*[:,;\t]\s*(.+)", line) for line in lines]
    if len(lines) > 1 and all(numbered):
        pairs = [(match[1], match[2]) for match in numbered if match]
        if {int(number) for number, _ in pairs} == set(range(len(lines))):
            return _of_map(dict(pairs), str(path))
    return tuple(_label(line, index, str(path)) for index, line in enumerate(lines))


def _of_json(text: str, path: Path) -> tuple[str, ...]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            # A Python literal, like the widely copied file of ImageNet labels.
            with warnings.catch_warnings(action="ignore"):  # about invalid escapes in text that is not Python
                content = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            if path.suffix.lower() != ".json":
                return _of_lines(text, path)
            raise ModelError(f"{path} is not readable JSON: {first_line(error)}") from error
    found = None
    if isinstance(content, Mapping):
        for key in _KEYS:
            if isinstance(content.get(key), Mapping | Sequence) and not isinstance(content[key], str):
                content, found = content[key], key
                break
    return of_collection(content, str(path), found)


def _of_map(content: Mapping[Any, Any], where: str, key: str | None = None) -> tuple[str, ...]:
    if key in _BY_NAME or (key not in _BY_INDEX and _is_by_name(content)):
        pairs = [(_index(index, where), name) for name, index in content.items()]
    else:
        pairs = [(_index(index, where), _name(value)) for index, value in content.items()]
    names: dict[int, str] = {}
    for index, name in pairs:
        label = _label(name, index, where)
        if index in names:
            raise ModelError(f"{where} has two labels for index {index}: {names[index]!r} and {label!r}")
        names[index] = label
    missing = next((index for index in range(len(names)) if index not in names), None)
    if missing is not None:
        raise ModelError(
            f"{where} has {len(names)} labels but none for index {missing}; indices must run from 0 to "
            f"{len(names) - 1}"
        )
    return tuple(names[index] for index in range(len(names)))


def _is_by_name(content: Mapping[Any, Any]) -> bool:
    """Whether a map is from names to indices. Its values are then integers, or strings of digits while not
    all of its keys are."""
    values = list(content.values())
    return all(type(value) is int for value in values) or (
        all(map(_is_index, values)) and not all(map(_is_index, content))
    )


def _label(name: object, index: int, where: str) -> str:
    """Validate and strip a label. Raises ModelError for control characters and lone surrogates, which JSON
    escapes can produce: they could move a terminal's cursor, or could not be encoded in a response."""
    if not isinstance(name, str) or not name.strip():
        raise ModelError(f"{where}: label {index} is {name!r}, but must be text that is not blank")
    odd = next((sign for sign in name.strip() if category(sign) in ("Cc", "Cs") and sign != "\t"), None)
    if odd is not None:
        raise ModelError(f"{where}: label {index} has the control character {odd!r}; remove it")
    return name.strip()


def _is_index(value: object) -> bool:
    return type(value) is int or (
        isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}\s*", value) is not None
    )


def _index(key: object, where: str) -> int:
    if _is_index(key):
        return int(key)  # type: ignore[call-overload]
    raise ModelError(
        f"{where} has the key {key!r}, which is not an index; map indices to names or names to indices, "
        'for example {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}'
    )


def _name(value: object) -> object:
    """Return the name in a map's value: the last element of a list such as ["n01440764", "tench"] (ImageNet's
    class index), or a number as text."""
    if isinstance(value, int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple) and value and all(isinstance(part, str) for part in value):
        return value[-1]
    return value
