"""What a policy says of itself: its idea, its source, what it needs, its options."""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

from penstock import policies
from penstock.ir.policy import Accounted, Counts, Paper, Policy

__all__ = ["described", "listed"]


def listed() -> Iterator[str]:
    """A line for each policy: its name and what it does."""
    for name in policies.names():
        document = sys.modules[policies.load(name).__module__].__doc__ or ""
        yield document.strip().splitlines()[0] if document else name


def described(name: str) -> str:
    """A policy in full. Raises `UsageError` if there is none of that name."""
    policy = policies.load(name)
    usual = policy()
    parts = [inspect.getdoc(sys.modules[policy.__module__]) or name, _source(policy.paper)]
    if policy.needs:
        parts.append(f"Needs: {', '.join(sorted(policy.needs))}.")
    if isinstance(usual, Accounted):
        parts.append(_counted(usual.counts))
    given = fields(policy)  # type: ignore[arg-type]
    if given:
        meanings = _meanings(policy)
        lines = (_option(one, meanings.get(one.name, "")) for one in given)
        parts.append(f"Options, as in {name}:{given[0].name}=VALUE,...:\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _source(paper: Paper | None) -> str:
    if paper is None:
        return "Source: ours."
    address = f"\n        {paper.address}" if paper.address else ""
    return f"Source: {paper.title}. {paper.authors}. {paper.venue} {paper.year}.{address}"


def _counted(counts: Counts) -> str:
    """What accounting=paper leaves out of the budget."""
    words = {"workspace": "workspace", "slack": "the allocator's slack", "state": "model state"}
    left = [word for what, word in words.items() if not getattr(counts, what)]
    return f"Under accounting=paper a budget does not count {', '.join(left) or 'less than ours'}."


def _option(option: Field[Any], meaning: str) -> str:
    words = policies.words_of(option.type)
    kind = "|".join(words) or getattr(option.type, "__name__", str(option.type))
    default = "" if option.default is MISSING else f", default {option.default}"
    return f"  {option.name}  ({kind}{default}){f'  {meaning}' if meaning else ''}"


def _meanings(policy: type[Policy]) -> dict[str, str]:
    """By option, the comment on its line: the file is the documentation."""
    try:
        source = inspect.getsource(policy)
    except OSError:
        return {}
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", source, re.MULTILINE))
