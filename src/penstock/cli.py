"""The command line; `penstock --help` lists its commands."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.console import Console

from penstock.errors import PenstockError, UsageError, enough_mib, mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress, TaskID

    from penstock.ir.machine import Machine
    from penstock.ir.policy import Problem
    from penstock.ir.trace import Trace
    from penstock.leaderboard import Entry
    from penstock.sizes import Share
    from penstock.solve.best import Outcome

__all__ = ["app", "main"]

app = typer.Typer(
    name="penstock",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console(width=None if sys.stdout.isatty() else 160)  # a file has no width to fit into
_err = Console(stderr=True, highlight=False)

_SCRIPT = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
}

Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", "-b", help="Bytes on the device: 1.5GiB, 800MB, or 60% of the step's own peak."
    ),
]


def _known(asked: str | list[str] | None) -> str | list[str] | None:
    """Policies as they were asked for; a wrong one must not wait for a step to be recorded."""
    from penstock import policies

    for text in [asked] if isinstance(asked, str) else asked or ():
        policies.configured(text)
    return asked


PolicyOption = Annotated[
    str,
    typer.Option("--policy", "-p", help="Who plans: NAME or NAME:option=value.", callback=_known),
]
TierOption = Annotated[
    str | None,
    typer.Option("--tier", help="Where values go: host, disk, disk:DIRECTORY, none."),
]
MachineOption = Annotated[
    str | None,
    typer.Option(
        "--machine",
        "-m",
        help="A machine by NAME (see `penstock machines`) or FILE; default: the trace's own.",
    ),
]
StepArgument = Annotated[
    str,
    typer.Argument(
        help="A trace file, or an architecture: hf:gpt2?batch=4&seq=512, cnn:vgg16, zoo:bert, "
        "package.module:function."
    ),
]
PointsOption = Annotated[int, typer.Option(min=1, help="How many budgets the curve has.")]
ProcessesOption = Annotated[
    int | None, typer.Option(min=1, help="How many to use; default: one for each core.")
]
LimitOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="Seconds for the curve: what is not found by then is left out."),
]


def _say_version(_context: typer.Context, *, asked: bool) -> None:
    if asked:
        from importlib.metadata import version
        from platform import python_version

        typer.echo(
            f"penstock {version('penstock')} (torch {version('torch')}, Python {python_version()})"
        )
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say the version and exit.", callback=_say_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Any PyTorch training step inside the memory budget you name."""


@app.command(context_settings=_SCRIPT)
def run(
    script: Annotated[Path, typer.Argument(help="The training script.", show_default=False)],
    context: typer.Context,
    budget: Budget = None,
    policy: PolicyOption = "auto",
    tier: TierOption = None,
    host_budget: Annotated[str | None, typer.Option(help="Host memory for the host tier.")] = None,
    disk_budget: Annotated[str | None, typer.Option(help="Space for the disk tier.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write a report here: .html, .json, .png, .svg or .perfetto.json (for "
            "ui.perfetto.dev); may be given several times."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Compare checksums of all that leaves and comes back (slow).")
    ] = False,
) -> None:
    """Run an unmodified training script inside a memory budget."""
    from penstock.report.files import leaving
    from penstock.report.progress import Progress
    from penstock.script import check_script, run_script
    from penstock.session import Session

    check_script(script)
    if budget is None and (why := _gone_to_the_script(["--budget"], context.args)):
        _err.print(f"penstock: {why}", markup=False, soft_wrap=True)
    progress = Progress(_err)
    session = Session(
        budget,
        policy=policy,
        tier=tier,
        host_budget=host_budget,
        disk_budget=disk_budget,
        device=device,
        on_step=progress.step,
        on_recorded=progress.recorded,
        on_close=leaving(report or (), script.name),
        verify=verify,
        base_at_first_tensor=True,
    )
    progress.follow(session)
    raise typer.Exit(run_script(script, context.args, session))


class _ArchitectureFirst(typer.core.TyperCommand):
    """What follows a script is the script's; what follows an architecture is ours."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from penstock.source import names_an_architecture

        if args and not args[0].startswith("-") and names_an_architecture(args[0]):
            ctx.allow_interspersed_args, ctx.ignore_unknown_options = True, False
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as missing:  # our options take any text: they can only be missing
            if missing.param and (why := _gone_to_the_script(missing.param.opts, args)):
                raise UsageError(why) from None
            raise


@app.command(cls=_ArchitectureFirst, context_settings=_SCRIPT)
def trace(
    script: Annotated[
        str,
        typer.Argument(
            help="The training script; or an architecture, such as hf:gpt2?batch=4&seq=512.",
            show_default=False,
        ),
    ],
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the trace.")],
    budget: Budget = None,
    tier: TierOption = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or cuda:N. For an architecture it need not be there."),
    ] = None,
) -> None:
    """Record a step: of a script, run up to its first whole step; of an architecture, without running."""
    from penstock.ir.store import save
    from penstock.source import names_an_architecture, record

    _check_folder_of(output)
    if names_an_architecture(script):
        if context.args:
            raise UsageError(f"{script} takes no arguments, such as {context.args[0]}")
        found = record(script, device or "cpu")
        save(output, found)
        _out.print(f"{output}: {len(found.ops)} ops, {len(found.values)} values, no times")
        return
    _trace_script(Path(script), context.args, output, budget, tier, device)


def _trace_script(
    script: Path,
    arguments: list[str],
    output: Path,
    budget: str | None,
    tier: str | None,
    device: str | None,
) -> None:
    from penstock.ir.store import save
    from penstock.script import Stop, check_script, run_script
    from penstock.session import Session

    check_script(script)

    def recorded(found: "Trace") -> None:
        save(output, found.relabelled(script.stem), session.machine)
        raise Stop

    session = Session(
        budget,
        policy="keep",
        tier=tier,
        device=device,
        on_recorded=recorded,
        base_at_first_tensor=True,
    )
    code = run_script(script, arguments, session)
    if session.trace is None:
        _err.print(
            f"penstock: {script} ended before a whole step was seen, so there is no trace. "
            "A step ends when a torch.optim optimizer steps; the first one only warms up.",
            markup=False,
        )
        raise typer.Exit(code or 1)
    found = session.trace
    _out.print(f"{output}: {len(found.ops)} ops, {len(found.values)} values, {found.seconds:.4g} s")


@app.command()
def plan(
    trace: StepArgument,
    budget: Annotated[str, typer.Option("--budget", "-b", help="Bytes, or a share such as 60%.")],
    policy: PolicyOption = "auto",
    machine: MachineOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan here.")
    ] = None,
    show: Annotated[bool, typer.Option(help="List every decision.")] = False,
) -> None:
    """Plan a recorded step, and say what it will take."""
    from penstock.ir.store import save
    from penstock.ir.text import show_plan
    from penstock.report.table import forecast

    problem = _problem(trace, machine, budget)
    found = _solve(problem, policy)
    _out.print(forecast(problem.trace, problem.machine, problem.budget, found))
    if show:
        _out.print(show_plan(problem.trace, found.plan), markup=False, highlight=False)
    if output is not None:
        save(output, found.plan)
    _refuse_if_it_cannot_fit(problem, found)


@app.command()
def simulate(
    trace: StepArgument,
    plan: Annotated[
        Path | None, typer.Argument(help="A plan file; default: keep everything.")
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", "-b", help="What the step must wait for room in.")
    ] = "100%",
    machine: MachineOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the timeline here; as .perfetto.json for ui.perfetto.dev, as .png or "
            ".svg a picture of it.",
        ),
    ] = None,
) -> None:
    """Predict what a plan costs."""
    from penstock.ir.plan import Plan
    from penstock.ir.store import load_plan
    from penstock.report.files import save_timeline
    from penstock.report.table import forecast
    from penstock.solve.best import outcome

    problem = _problem(trace, machine, budget)
    chosen = Plan() if plan is None else load_plan(plan)
    found = outcome(problem, chosen)
    _out.print(forecast(problem.trace, problem.machine, problem.budget, found))
    if output is not None:
        save_timeline(output, problem, found)


@app.command()
def compare(
    trace: Annotated[
        list[str],
        typer.Argument(
            help="Trace files or architectures, one or more: step.trace, hf:gpt2?batch=4, zoo:bert.",
            show_default=False,
        ),
    ],
    budget: Annotated[
        list[str],
        typer.Option("--budget", "-b", help="One or more: bytes, or shares such as 60%."),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            "-p",
            help="Which policies, or `all`; default: all but those that solve or search for long.",
        ),
    ] = None,
    machine: Annotated[
        list[str] | None,
        typer.Option(
            "--machine",
            "-m",
            help="One or more, by NAME (see `penstock machines`) or FILE; default: each trace's own.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Keep every point here, a line of JSON each; what the file holds already is not "
            "done again.",
        ),
    ] = None,
    processes: ProcessesOption = None,
    limit: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds after which a policy's planning, or a run, is given up; default: 120, or "
            "600 for a run.",
        ),
    ] = None,
    execute: Annotated[
        bool,
        typer.Option(
            "--execute",
            help="Run them for real, one after another: architectures only, on this machine.",
        ),
    ] = False,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write a report here: .html, a page that says who is best and draws every point; "
            ".png, .svg or .json; may be given several times."
        ),
    ] = None,
) -> None:
    """Compare policies on steps, machines and budgets, by simulation or for real."""
    from itertools import product

    from penstock import policies
    from penstock.leaderboard import Case
    from penstock.leaderboard import compare as compared
    from penstock.report.comparison import comparison_of
    from penstock.report.files import PAGES, check, save_comparison
    from penstock.sizes import parse_budget
    from penstock.source import step_and_machine

    if output is not None:
        _check_folder_of(output)
    reports = report or []
    for path in reports:
        check(path, PAGES)
    asked = policies.names() if policy == ["all"] else policy or policies.quick()
    names = list(dict.fromkeys(asked))
    _known(names)
    steps, budgets = list(dict.fromkeys(trace)), list(dict.fromkeys(budget))
    for text in budgets:
        parse_budget(text)
    if execute:
        if machine:
            raise UsageError("--execute measures on this machine; leave -m out")
        from penstock.trials import execute as executed

        count = len(steps)
        with _bar() as bar:
            task = bar.add_task("running", total=count * len(budgets) * len(names))
            found = executed(
                steps,
                budgets,
                names,
                results=output,
                limit=limit or 600.0,
                told=lambda _: bar.advance(task),
            )
    else:
        machines: list[str | None] = [*dict.fromkeys(machine)] if machine else [None]
        cases = []
        for step, on in product(steps, machines):
            recorded, described = step_and_machine(step, on)
            cases.append(Case(step, on or described.device.name, recorded, described))
        count = len(cases)
        with _bar() as bar:
            task = bar.add_task("planning", total=count * len(budgets) * len(names))
            found = compared(
                cases,
                [parse_budget(text) for text in budgets],
                names,
                results=output,
                processes=processes,
                limit=limit or 120.0,
                told=lambda _: bar.advance(task),
            )
    _show_comparison(found, count, count * len(budgets))
    if reports:
        body = comparison_of(found, measured=execute)
        for path in reports:
            save_comparison(path, body)


def _show_comparison(found: "list[Entry]", cases: int, problems: int) -> None:
    from penstock.report.table import comparison, leaderboard

    if cases == 1:
        _out.print(comparison(found))
    if problems > 1:
        _out.print(leaderboard(found))


@app.command()
def curve(
    trace: StepArgument,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            "-p",
            help="Which policies; default: all but those that solve or search for long.",
            callback=_known,
        ),
    ] = None,
    machine: MachineOption = None,
    points: PointsOption = 8,
    processes: ProcessesOption = None,
    limit: LimitOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Draw it here: .html, .png or .svg; .json: its data."),
    ] = None,
) -> None:
    """The step time for each budget and policy, from the least budget to the plain step's."""
    from penstock import policies
    from penstock.report.curves import curve_of
    from penstock.report.files import PAGES, check, save_curve
    from penstock.report.table import curves
    from penstock.source import step_and_machine

    if output is not None:
        check(output, PAGES)
    step, described = step_and_machine(trace, machine)
    found = _curve(step, described, policy or policies.quick(), points, processes, limit)
    _out.print(curves(found, step.seconds))
    if output is not None:
        save_curve(output, curve_of(found, step.seconds))


@app.command()
def report(
    source: Annotated[
        str,
        typer.Argument(
            help="A trace file, an architecture such as hf:gpt2?batch=8, or a report (.json) of a "
            "run."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Where to write it: .html, a page that needs no network; .png, .svg; .json.",
        ),
    ],
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", "-b", help="Bytes, or a share such as 60%; may be repeated."),
    ] = None,
    policy: PolicyOption = "auto",
    machine: MachineOption = None,
    curve: Annotated[
        bool, typer.Option(help="Also ask all quick policies for the curve over budgets.")
    ] = True,
    points: PointsOption = 8,
    processes: ProcessesOption = None,
    limit: LimitOption = None,
) -> None:
    """Draw a step: what fills the memory, what each lane does, and what each budget would cost."""
    from penstock import policies
    from penstock.report.curves import curve_of
    from penstock.report.files import PAGES, check, read_report, save_report, told
    from penstock.sizes import parse_budget
    from penstock.source import step_and_machine

    check(output, PAGES)
    if (body := read_report(Path(source))) is not None:
        if budget or machine is not None:
            raise UsageError(
                f"{source} is a report of a run, which had its budget and its machine: leave out -b "
                "and -m, or name a trace (`penstock trace`)"
            )
        save_report(output, [body], body.get("curve"))
        return
    budgets = [parse_budget(text) for text in budget or ["100%"]]
    step, described = step_and_machine(source, machine)
    problems = [_within(step, described, asked) for asked in budgets]
    bodies = [told(problem, _solve(problem, policy)) for problem in problems]
    drawn = None
    if curve:
        found = _curve(step, described, policies.quick(), points, processes, limit)
        drawn = curve_of(found, step.seconds)
    save_report(output, bodies, drawn)


def _curve(
    step: "Trace",
    machine: "Machine",
    names: "Sequence[str]",
    points: int,
    processes: int | None,
    limit: float | None,
) -> "list[Entry]":
    """Search the curve, and show how far the search is."""
    from penstock.search import budgets_for
    from penstock.search import curve as searched

    budgets = budgets_for(step, points)
    with _bar() as bar:
        task = bar.add_task("planning", total=len(budgets) * len(names))
        return searched(
            step,
            machine,
            budgets,
            names,
            processes=processes,
            limit=limit,
            told=lambda _: bar.advance(task),
        )


@app.command()
def largest(
    architecture: Annotated[str, typer.Argument(help="Such as hf:gpt2?seq=512.")],
    budget: Annotated[str, typer.Option("--budget", "-b", help="Bytes on the device.")],
    machine: Annotated[str, typer.Option("--machine", "-m", help="A machine by NAME or FILE.")],
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="Default: keep and auto.", callback=_known),
    ] = None,
    vary: Annotated[str, typer.Option(help="Which option of the architecture.")] = "batch",
) -> None:
    """The largest batch (or sequence, or image) that fits, without running anything."""
    from penstock.machines import find
    from penstock.search import largest as searched
    from penstock.sizes import parse_size
    from penstock.source import sized

    described, nbytes = find(machine), parse_size(budget, "budget")
    step = sized(architecture, vary, described)
    for name in policy or ["keep", "auto"]:
        with _bar() as bar:
            task = bar.add_task(f"{name}: trying {vary}", total=None)
            told = partial(_advance, bar, task)
            found = searched(step, described, nbytes, name, told=told)
        point = found.point
        if point is None:
            _out.print(f"{name}: not even {vary}=1 fits", highlight=False)
            continue
        peak = f"peak {mib(point.peak)} of {mib(nbytes)}"
        _out.print(
            f"{name}: {vary}={found.size}, {peak}, step {point.seconds:.4g} s", highlight=False
        )


@app.command()
def explain(
    file: Annotated[
        str,
        typer.Argument(help="A trace file, an architecture, or a report (.json) of a run."),
    ],
    plan: Annotated[
        Path | None, typer.Argument(help="A plan file for the trace; default: ask the policy.")
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", "-b", help="Bytes, or a share such as 60%.")
    ] = "100%",
    policy: PolicyOption = "auto",
    machine: MachineOption = None,
    search: Annotated[
        bool | None,
        typer.Option(
            help="Also look for the least budget that costs no time; default: for up to 3,000 ops."
        ),
    ] = None,
) -> None:
    """Say in words where the memory goes, what was decided and why, and what to change."""
    from penstock.ir.store import load_plan
    from penstock.report.explain import calm_budget, explain_report
    from penstock.report.explain import explain as explained
    from penstock.report.files import read_report
    from penstock.solve.best import outcome

    if (body := read_report(Path(file))) is not None:
        paragraphs = explain_report(body)
    else:
        problem, calm = _problem(file, machine, budget), None
        if plan is not None:
            found = outcome(problem, load_plan(plan))
        else:
            found = _solve(problem, policy)
            if search or (search is None and len(problem.trace.ops) <= 3_000):
                calm = calm_budget(problem, found, lambda other: _solve(other, policy))
        paragraphs = explained(problem, found, calm)
    for paragraph in paragraphs:
        _out.print(f"{paragraph}\n", markup=False, highlight=False, soft_wrap=True)


@app.command(name="import")
def import_trace(
    file: Annotated[
        Path,
        typer.Argument(
            help="A CUDA memory snapshot (torch.cuda.memory._dump_snapshot), an execution trace "
            "(torch.profiler.ExecutionTraceObserver), a G10 graph (NAME.kernels.csv), a PipeDream "
            "profile (graph.txt) or a POET graph (JSON)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the trace.")],
    times: Annotated[
        Path | None,
        typer.Option(help="The profiler's Chrome trace of the same run, for the times of ops."),
    ] = None,
    machine: MachineOption = None,
) -> None:
    """Make a trace of what another tool recorded, and say what it does not tell."""
    from penstock.interop.files import read
    from penstock.ir.store import save
    from penstock.machines import find

    _check_folder_of(output)
    imported = read(file, times)
    found = imported.trace.relabelled(file.name.partition(".")[0])
    save(output, found, None if machine is None else find(machine))
    _out.print(
        f"{output}: {len(found.ops)} ops, {len(found.values)} values, {mib(found.peak)} at the peak"
    )
    for note in imported.notes:
        _out.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)


@app.command(name="policies")
def list_policies(
    name: Annotated[str | None, typer.Argument(help="One policy, in full.")] = None,
) -> None:
    """List the policies, or say of one where it comes from, what it assumes and its options."""
    from penstock.report.policies import described, listed

    for line in [described(name)] if name else listed():
        print(line)


@app.command(name="machines")
def list_machines() -> None:
    """List the machines that -m knows by name."""
    from penstock import machines
    from penstock.report.machines import table_of

    _out.print(table_of((name, machines.machine(name)) for name in machines.names()))
    _out.print(
        "Other tiers below one of them: NAME+PART+PART, fastest first, such as "
        "a100-40+pcie4:256GiB+ssd:980pro. Parts: " + ", ".join(machines.parts()),
        highlight=False,
    )


@app.command()
def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the machine.")],
    tier: TierOption = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
) -> None:
    """Measure this machine for `-m FILE`: its tiers, and what ops cost on it (minutes)."""
    from penstock.api import calibrate as measured
    from penstock.ir.store import save

    _check_folder_of(output)

    def told(label: str, done: int, of: int) -> None:
        if _err.is_terminal:
            _err.print(f"penstock: {done + 1} of {of}: {label}", markup=False)

    machine = measured(device=device, tier=tier, on_model=told)
    save(output, machine)
    rates = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in machine.device.flops.items()
    )
    _out.print(f"{output}: {machine.device.name}; {rates}; {len(machine.device.costs)} rates")


def main() -> None:
    """Entry point: errors that Penstock raises on purpose become one clear line."""
    try:
        app()
    except PenstockError as error:
        _err.print(f"penstock: {error}", markup=False, soft_wrap=True)
        sys.exit(2)


def _gone_to_the_script(names: "Sequence[str]", arguments: "Sequence[str]") -> str | None:
    """What to say if one of `arguments` is an option of ours that a script is given instead."""
    for one in arguments:
        if one.partition("=")[0] in names:
            return (
                f"{one} stands after the script and goes to it; options of penstock stand before it"
            )
    return None


def _check_folder_of(output: Path) -> None:
    if not output.parent.is_dir():
        raise UsageError(f"cannot write {output}: {output.parent} is not a directory")


def _bar() -> "Progress":
    """Shown while something takes long; gone when it ends, silent if nobody watches."""
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    parts = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn())
    return Progress(*parts, console=_err, transient=True, disable=not _err.is_terminal)


def _advance(bar: "Progress", task: "TaskID", size: int, _: object) -> None:
    bar.update(task, completed=size)


def _problem(step: str, machine: str | None, budget: str) -> "Problem":
    from penstock.sizes import parse_budget
    from penstock.source import step_and_machine

    asked = parse_budget(budget)  # before it takes long
    return _within(*step_and_machine(step, machine), asked)


def _within(step: "Trace", machine: "Machine", budget: "int | Share") -> "Problem":
    from penstock.ir.policy import Problem
    from penstock.sizes import Share

    nbytes = budget.of(step.peak + step.slack) if isinstance(budget, Share) else budget
    return Problem(step, machine, nbytes)


def _solve(problem: "Problem", policy: str) -> "Outcome":
    from penstock import policies

    return policies.ask(policies.configured(policy), problem)


def _refuse_if_it_cannot_fit(problem: "Problem", found: "Outcome") -> None:
    from penstock.errors import BudgetError
    from penstock.simulate.least import least_budget

    least = least_budget(problem.trace)
    if least.nbytes > problem.budget:
        op = problem.trace.describe_op(least.op)
        raise BudgetError(problem.budget, least.nbytes, op, least.holders)
    if found.overfull:
        fault = (
            f"sends away {mib(found.overfull)} more than the tiers hold. "
            "Give them more room, or try another policy."
        )
    elif found.shortfall:
        enough = enough_mib(problem.budget + found.shortfall)
        fault = (
            "found no plan that fits; the step would run, evicting on demand. "
            f"Raise the budget to {enough}, or try another policy."
        )
    else:
        return
    _err.print(f"penstock: {found.plan.policy} {fault}", markup=False)
    raise typer.Exit(1)
