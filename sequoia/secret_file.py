"""Files that hold one secret."""

from __future__ import annotations

from pathlib import Path

LIMIT_BYTES = 4096


class SecretFileError(ValueError):
    """A file that holds no secret; the message never says what it holds."""


def read_secret(path: Path) -> str:
    """The secret in a file, without the white space around it.

    Raises:
        SecretFileError: the file cannot be read, or holds nothing, too much, or no printable ASCII.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}") from error
    if len(data) > LIMIT_BYTES:
        raise SecretFileError(f"{path}: holds more than {LIMIT_BYTES} bytes")
    secret = data.strip()
    if not secret:
        raise SecretFileError(f"{path}: is empty")
    if not all(0x21 <= byte <= 0x7E for byte in secret):
        raise SecretFileError(f"{path}: holds other characters than printable ASCII without spaces")
    return secret.decode("ascii")
