"""Passwords in addresses are left out of whatever is written or printed."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
"""Stands for a password."""

# A user's name ends at the first colon; a password at the last @ of the word, since people do not escape it. Digits and
# a slash after the colon are a port.
_PASSWORD = re.compile(r"(\w[\w+.-]*://[^\s/:@]*:)(?!\d+(?:/|\s|$))\S+@")
_TOKEN = re.compile(r"(\w[\w+.-]*://)[^\s/:@]+@")
_QUERY = re.compile(r"([?&](?:\w*password|passwd|pwd|\w*token|\w*secret|\w*key)=)[^\s&'\"]+", re.IGNORECASE)


def redact(text: str) -> str:
    """A text without the passwords and tokens of the addresses in it.

    Args:
        text: The text.
    """
    text = _PASSWORD.sub(rf"\1{HIDDEN}@", text)
    text = _TOKEN.sub(rf"\1{HIDDEN}@", text)
    return _QUERY.sub(rf"\1{HIDDEN}", text)


def redact_all(value: Any) -> Any:
    """A value whose texts are redacted, however deep they lie in mappings and lists.

    Args:
        value: The value.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_all(inner) for key, inner in value.items()}
    return [redact_all(inner) for inner in value] if isinstance(value, list | tuple) else value
