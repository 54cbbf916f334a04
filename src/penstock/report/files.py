"""Reports as files: refused before the run if they cannot be written, written whole after it.

The end of a file's name says what is written into it.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from penstock.errors import PenstockError, TraceError, UsageError, nearest
from penstock.ir import store
from penstock.ir.policy import Problem
from penstock.report.chrome import chrome_trace
from penstock.report.curves import brief
from penstock.report.document import Json, document, planned, run, runs_of, told_of
from penstock.report.explain import explain
from penstock.report.figures import comparison_image, curve_image, image, require_matplotlib
from penstock.session import Session
from penstock.solve.best import Outcome

__all__ = [
    "PAGES",
    "check",
    "leaving",
    "read_report",
    "save_comparison",
    "save_curve",
    "save_report",
    "save_timeline",
    "told",
]

_CHROME = (".perfetto.json", ".trace.json")
_Form: TypeAlias = Literal["png", "svg"]
_PICTURES: dict[str, _Form] = {".png": "png", ".svg": "svg"}
_ENDINGS = (".html", ".json", *_CHROME, *_PICTURES)
PAGES = (".html", ".json", *_PICTURES)
"""What a report can be that is no recording of one run."""


def leaving(paths: Sequence[Path], label: str = "") -> Callable[[Session], None] | None:
    """What a session is to call when it has ended, so that it leaves these reports; None: nothing.

    `label` says what was run.

    Raises `UsageError` unless all of them can be written. A training that has ended well, or with an
    error of its own, is not to end with one of ours because the disk has filled since: that is a
    warning.
    """
    for path in paths:
        check(path)

    def leave(session: Session) -> None:
        try:
            body = _body(session, label)
            if any(path.suffix in (".html", *_PICTURES) for path in paths):
                body["curve"] = _curve(session)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            warnings.warn(f"no report was made, by a bug of Penstock: {said}", stacklevel=2)
            return
        for path in paths:
            try:
                _write(path, _report(path, session, body))
            except OSError as error:
                warnings.warn(f"cannot write report {path}: {error.strerror}", stacklevel=2)

    return leave if paths else None


def _body(session: Session, label: str) -> Json:
    """A session's report, with what there is to say of its plan in words."""
    body = {**document(session), "label": label}
    if (found := told_of(session)) is not None:
        problem = Problem(found.schedule.trace, session.machine, body["budget"])
        body["words"] = _words(problem, found)
    return body


def _curve(session: Session) -> Json | None:
    """What other budgets would have cost; None if no step was planned."""
    if session.trace is None or session.outcome is None:
        return None
    return brief(session.trace, session.machine)


def check(path: Path, endings: Sequence[str] = _ENDINGS) -> None:
    """Raise `UsageError` unless a report can be written to `path`."""
    if not path.name.endswith(tuple(endings)):
        *others, last = endings
        hint = nearest(path.suffix, endings)
        raise UsageError(f"report {path}: its name must end in {', '.join(others)} or {last}{hint}")
    if path.suffix in _PICTURES:
        require_matplotlib()
    if path.is_dir():
        raise UsageError(f"cannot write report {path}: it is a directory; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write report {path}: there is no directory {path.parent}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UsageError(
            f"cannot write report {path}: {error.strerror}; name a directory that you may write to"
        ) from None


def told(problem: Problem, found: Outcome) -> Json:
    """The report of a plan that has not run, with what there is to say of it in words."""
    return {**planned(problem, found), "words": _words(problem, found)}


def _words(problem: Problem, found: Outcome) -> list[Json]:
    try:
        paragraphs = explain(problem, found)
    except PenstockError as error:
        return [{"title": "This plan cannot be explained", "lines": [str(error)]}]
    return [{"title": it.title, "lines": list(it.lines)} for it in paragraphs]


def save_report(path: Path, bodies: Sequence[Json], curve: Json | None) -> None:
    """Write documents of one step, each under another budget, and the curve over all budgets.

    A picture and a .json hold the first document alone.
    """
    first, *others = bodies
    _write(path, _drawn(path, [{**first, "curve": curve}, *others]))


def save_curve(path: Path, curve: Json) -> None:
    """Write the curve from budget to step time: as a page, a picture or data."""
    from penstock.report.html import page

    _write(path, _formed(path, curve, lambda: page([], curve), curve_image))


def save_comparison(path: Path, comparison: Json) -> None:
    """Write what `comparison_of` made: as a page, a picture or data."""
    from penstock.report.comparison_page import comparison_page

    _write(path, _formed(path, comparison, lambda: comparison_page(comparison), comparison_image))


def save_timeline(path: Path, problem: Problem, found: Outcome) -> None:
    """Write what a plan is predicted to cost: a Chrome trace, a picture or a document of ours."""
    if (form := _PICTURES.get(path.suffix)) is not None:
        predicted = run(problem.trace, found.timeline)
        body = {"budget": problem.budget, "predicted": predicted, "measured": None}
        _write(path, image(body, form))
    elif path.name.endswith(_CHROME):
        _write(path, _json(chrome_trace(problem.trace, {"predicted": found.timeline})))
    else:
        store.save(path, found.timeline)


def _report(path: Path, session: Session, body: Json) -> bytes:
    """A report in the form that the end of its name says."""
    if path.name.endswith(_CHROME):
        trace, runs = session.trace, runs_of(session)
        return _json({"traceEvents": []} if trace is None else chrome_trace(trace, runs))
    return _drawn(path, [body])


def _drawn(path: Path, bodies: Sequence[Json]) -> bytes:
    """Documents as a page, or the first alone as a picture or data; the first may have a `curve`."""
    from penstock.report.html import page

    first = bodies[0]
    return _formed(path, first, lambda: page(bodies, first.get("curve")), image)


def _formed(
    path: Path,
    body: Json,
    page: Callable[[], str],
    picture: Callable[[Json, _Form], bytes],
) -> bytes:
    """A page, a picture or data, as the end of the name says."""
    if path.suffix == ".html":
        return page().encode()
    if (form := _PICTURES.get(path.suffix)) is not None:
        return picture(body, form)
    return _json(body)


def _json(body: Json) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _write(path: Path, content: bytes) -> None:
    """Write a file whole: a crash leaves the old one, if any."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_report(path: Path) -> Json | None:
    """A report that was left as JSON; None if the file holds something else.

    Raises `TraceError` for a report that another version left.
    """
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):  # for those who read traces to complain about
        return None
    if not isinstance(body, dict) or body.get("penstock") != "report":
        return None
    if body.get("version") != 1:
        raise TraceError(
            f"{path} is a report of version {body.get('version')}; this Penstock reads 1: "
            "run the script again with --report"
        )
    return body


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
