"""What a page says, what it carries and what it asks for, without a browser."""

import json
import re
from typing import Any

__all__ = ["asked_for", "carried", "seen"]


def seen(text: str) -> str:
    """What a person reads: the text without its tags."""
    without = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))


def carried(text: str) -> Any:
    """The data of a page, as its script reads them."""
    found = re.search(r"<script type='application/json' id='data'>(.*?)</script>", text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def asked_for(text: str) -> list[str]:
    """What a page would fetch."""
    return re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import""", text)
