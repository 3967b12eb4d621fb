"""The command line: each command parses, calls the library and reports errors in one line."""

import inspect
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

import midstream
from midstream.engine.basics import caching, plugins
from midstream.engine.shard.catalogue import outside_kind
from midstream.flows import logs, process
from midstream.flows.commands.cli_feedback import feedback
from midstream.flows.commands.cli_versions import COMMANDS, of_kind
from midstream.flows.commands.terminal import (
    CONFIG,
    CONFIG_OPTION,
    FAILED,
    JSON,
    masked_output,
    model_prints,
    one_line_errors,
    print_json,
)

if TYPE_CHECKING:
    from midstream.flows.running.shares import Share

__all__ = ["cli"]


class _Commands(click.Group):
    """Midstream's commands, and those that packages declare as ``midstream.commands``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in order."""
        return sorted({*super().list_commands(ctx), *plugins.names("midstream.commands")})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; Midstream's own cannot be replaced."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in plugins.names("midstream.commands"):
            return own
        with one_line_errors(running=False):
            kind = outside_kind(cmd_name)
            if kind is not None:
                return of_kind(kind)
            found = plugins.load("midstream.commands", cmd_name)
            if not isinstance(found, click.Command):
                raise plugins.PluginError(
                    f"{cmd_name!r} of midstream.commands is neither a click.Command nor a subclass "
                    "of midstream.CommandKind"
                )
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Call a command; report a closed output, on which click would exit silently."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            process.say_unwritable(error)
            raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(midstream.__version__, prog_name="midstream")
@click.option("--log-json", is_flag=True, help="Log JSON in place of key=value.")
def cli(*, log_json: bool) -> None:
    """Learn from streams: predict, score, then learn, event by event, exactly once.

    Exit codes: 0 done, 1 failed while running, 2 wrong usage or config.
    """
    context = click.get_current_context()
    if context.invoked_subcommand not in ("run", "gateway"):
        process.interruptible()
    context.with_resource(masked_output())
    logs.configure(as_json=log_json)
    if not caching.kept:
        logs.log.warning(
            "compiled_code_is_not_kept", why="there is no folder to write to: each start compiles "
            "again; NUMBA_CACHE_DIR may name one",
        )  # fmt: skip


class _ShareOf(click.ParamType):
    """K/N: number K of N, counted from 1."""

    name = "K/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> "tuple[int, int]":
        """Return K - 1 and N."""
        first, _, of = str(value).partition("/")
        if first.isdecimal() and of.isdecimal() and 1 <= int(first) <= int(of):
            return int(first) - 1, int(of)
        return self.fail(f"found {value!r}; allowed: K/N, with K from 1 to N", param, ctx)


@cli.command()
@CONFIG
@click.option("--until-eof", is_flag=True, help="Stop at the end of the input.")
@click.option("--fresh", is_flag=True, help="Archive the saved state and its outputs; start over.")
@click.option(
    "--amend",
    is_flag=True,
    help="Take a config that alters how the saved model learns.",
)
@click.option(
    "--adopt",
    is_flag=True,
    help="Take over a model of this name from another state.",
)
@click.option(
    "--processes",
    metavar="N",
    type=click.IntRange(min=1),
    help="Run the shards in N processes.",
)
@click.option(
    "--host", type=_ShareOf(), metavar="K/N", default="1/1", help="Run as host K of N hosts."
)
@click.option("--process", type=_ShareOf(), default="1/1", hidden=True)
@click.option("--report-to", type=int, hidden=True)
@click.option("--marks", type=int, default=-1, hidden=True)
@click.option("--fresh-as", default="", hidden=True)
@JSON
def run(
    config: Path,
    *,
    until_eof: bool,
    fresh: bool,
    amend: bool,
    adopt: bool,
    processes: int | None,
    host: tuple[int, int],
    process: tuple[int, int],
    report_to: int | None,
    marks: int,
    fresh_as: str,
    as_json: bool,
) -> None:
    """Learn from the input of CONFIG; go on where the last run ended.

    The command follows its input until SIGTERM or Ctrl-C. It then learns what it has read, writes
    a snapshot, and exits with code 0. A run that was killed loses and repeats nothing when it is
    started again.

    Where the config defines the model otherwise than the saved state, the run logs what differs.
    It takes what does not alter how the model learns, and with --amend also what does. `midstream
    check` tells beforehand.

    With --processes, a supervisor runs the shards (partitions) in several processes. With --host,
    several hosts share them.
    """
    from midstream.flows.config.tables import ConfigError
    from midstream.flows.inputs.catalogue import kind_of
    from midstream.flows.loading import load
    from midstream.flows.operating.operations import operator
    from midstream.flows.running import online, supervisor
    from midstream.flows.running.counters import judge_input
    from midstream.flows.running.shares import Share

    if report_to is not None:
        _run_share(
            config,
            report_to,
            marks,
            until_eof=until_eof,
            share=Share(*process),
            fresh=fresh_as,
            amend=amend,
            adopt=adopt,
        )
        return
    with one_line_errors(running=False, as_json=as_json), model_prints():
        settings = load(config)
        if host[1] > 1 and not kind_of(settings.input).across_hosts:
            raise ConfigError(
                f"{settings.file}: --host is for topics: files get their numbers in a state folder"
            )
        online.preflight(settings, until_eof=until_eof)
    if host[1] > 1 and settings.versions.enabled and settings.versions.registry is None:
        logs.log.warning(
            "registry_of_one_host",
            note="no version is whole unless the hosts share the state folder, or "
            "versions.registry and versions.artifacts",
        )
    with one_line_errors(running=True, as_json=as_json), model_prints():
        by = operator() if adopt else ""
        online.prepare(settings, joins=host[1] > 1)
        fresh_as = online.archive(settings, adopted_by=by) if fresh else ""
        if processes is not None:
            arguments = ["run", str(config), "--fresh-as", fresh_as]
            if click.get_current_context().find_root().params["log_json"]:
                arguments.insert(0, "--log-json")
            if until_eof:
                arguments.append("--until-eof")
            if amend:
                arguments.append("--amend")
            if adopt:
                arguments.append("--adopt")
            summary = supervisor.supervise(
                processes,
                Share(*host),
                arguments,
                stall_seconds=settings.state.stall_seconds,
                ends=until_eof,
            )
        else:
            summary = online.run(
                settings,
                until_eof=until_eof,
                fresh=fresh_as,
                amend=amend,
                share=Share(*host),
                adopted_by=by,
            )
        if until_eof:
            judge_input(summary, settings)
    _print_summary(summary, settings.name, as_json=as_json)


def _run_share(
    config: Path,
    report_to: int,
    marks_in: int,
    *,
    until_eof: bool,
    share: "Share",
    fresh: str,
    amend: bool,
    adopt: bool,
) -> None:
    """Run one of a supervisor's processes."""
    from midstream.flows.loading import load
    from midstream.flows.operating.operations import operator
    from midstream.flows.running import online, supervisor

    logs.log.always(process=share.first)
    reporter, marks = supervisor.Reporter(report_to), supervisor.Marks(marks_in)
    with one_line_errors(running=True, tell=reporter.failed), model_prints():
        settings = load(config)
        online.preflight(settings, until_eof=until_eof)
        summary = online.run(
            settings,
            until_eof=until_eof,
            fresh=fresh,
            amend=amend,
            share=share,
            patience=supervisor.HANDOVER,
            adopted_by=operator() if adopt else "",
            beat=reporter.beat,
            at=lambda place: setattr(marks, "at", place),
            fragile=marks.fragile,
        )
    reporter.ended(summary)


@cli.command()
@CONFIG
@click.option(
    "--input",
    "path",
    metavar="PATH",
    help="Read this file, folder, glob or -, not the config's input.",
)
@click.option(
    "--delay",
    metavar="DELAY",
    help="Labels come later by 100 rows, by 90m, or at field:NAME.",
)
@JSON
def evaluate(config: Path, path: str | None, delay: str | None, *, as_json: bool) -> None:
    """Score the learner of CONFIG on its input; write nothing.

    The command predicts, scores, then learns every event, in one pass. Metrics and digest equal
    those of a new `run`.

    With --delay, a label comes so many rows (100) or so much event time (3600s, 90m, 2h, 1d) after
    its event, or at the time in a field (field:paid_at), which is then no feature. Before an event
    is predicted, the labels that have come by then are learned, as in River's
    progressive_val_score. [feedback] is not used. The metrics score in the order of the labels, and
    those that begin with `by_prediction.` in the order of the events.
    """
    from midstream.flows.loading import load
    from midstream.flows.offline import evaluation
    from midstream.flows.offline.delayed import Delay, prepared
    from midstream.flows.running import online
    from midstream.flows.running.counters import judge_input

    with one_line_errors(running=False, as_json=as_json), model_prints():
        settings = load(config)
        if path is not None:
            path = path if path == "-" else str(Path(path).absolute())
            settings = settings.reading(path)
        later = None if delay is None else Delay.parse(delay)
        online.preflight(settings if later is None else prepared(settings, later))
    with one_line_errors(running=True, as_json=as_json), model_prints():
        summary, _ = evaluation.evaluate(settings, delay=later)
        judge_input(summary, settings)
    _print_summary(summary, settings.name, as_json=as_json)


@cli.command()
@CONFIG
def gateway(config: Path) -> None:
    """Take feedback over HTTP and from raw topics.

    The command checks it, removes repeated sends, and writes it to the feedback topic of CONFIG. It
    needs the extra `faust` (pip install 'midstream[faust]'), and bearer tokens in the environment.
    It runs until SIGTERM or Ctrl-C. It then finishes what it has taken, and exits with code 0.
    """
    from midstream.flows.gateway.serve import serve
    from midstream.flows.loading import load

    with one_line_errors(running=False):
        settings = load(config)
    try:
        with one_line_errors(running=True):
            serve(settings)
    except SystemExit as ending:
        process.end(ending.code)
    process.end(0)


@cli.command("init-topics")
@CONFIG
@click.option(
    "--partitions",
    default=1,
    metavar="N",
    type=click.IntRange(min=1),
    show_default=True,
    help="Partitions of a new input topic.",
)
@click.option(
    "--replicas",
    default=-1,
    metavar="N",
    type=click.IntRange(min=-1),
    help="Replicas of a partition. Default: the brokers'.",
)
@JSON
def init_topics(config: Path, *, partitions: int, replicas: int, as_json: bool) -> None:
    """Create the topics that CONFIG names and that do not exist yet.

    Outputs and journal get as many partitions as the input. A journal that has fewer partitions
    than the input gets more. The topic of the journal is created without retention.
    """
    from midstream.flows.inputs.topics import create_topics
    from midstream.flows.loading import load

    with one_line_errors(running=True, as_json=as_json):
        made = create_topics(load(config), partitions, replicas)
    if as_json:
        print_json(made)
        return
    for topic, what in made.items():
        click.echo(f"{what}  {topic}")


@cli.command()
@click.argument("file")
@CONFIG_OPTION
@click.option("--topic", metavar="TOPIC", help="Send to this topic, not to the config's input.")
@click.option(
    "--rate",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Messages a second. Default: at full speed.",
)
@click.option("--key", metavar="FIELD", help="The field or column that is the key: user, x.user.")
@JSON
def send(
    file: str,
    config: Path,
    topic: str | None,
    rate: float | None,
    key: str | None,
    *,
    as_json: bool,
) -> None:
    """Send the events in FILE to the topic of a config.

    Each line of JSON Lines is a message as it is. Each row of CSV is a message as a JSON object.
    FILE is plain or gzip; - is standard input. Messages with the same key go to the same
    partition. The command prints how many messages the brokers acknowledged, also after Ctrl-C.
    """
    from midstream.flows.loading import load
    from midstream.flows.offline import send as sending

    with one_line_errors(running=False, as_json=as_json):
        settings = load(config)
        sending.destination(settings, topic)
    with one_line_errors(running=True, as_json=as_json):
        show = sys.stderr.isatty() and not as_json
        sent = sending.send(settings, file, topic=topic, rate=rate, key=key, show=show)
    if sent.error:
        click.echo(f"midstream: {sent.error}", err=True)
    if as_json:
        print_json(sent)
    elif not sent.error:
        click.echo(
            f"{sent.acknowledged:,} messages to {sent.topic} acknowledged in {sent.seconds:.1f} s "
            f"({sent.messages_per_second:,.0f} a second)"
            + (f"; {sent.blank:,} blank lines left out" if sent.blank else "")
        )
    sys.exit(FAILED if sent.error else 0)


@cli.command()
@CONFIG
@click.option(
    "--sample",
    default=1_000,
    metavar="N",
    type=click.IntRange(min=1),
    show_default=True,
    help="Try the first N events.",
)
@click.option("--amend", is_flag=True, help="Say what `run --amend` will do.")
@JSON
def check(config: Path, sample: int, *, amend: bool, as_json: bool) -> None:
    """Say what is wrong with CONFIG, and what `run` will do.

    The command tries them on the first events, compares the saved state with CONFIG, and writes
    nothing. The exit code is 1 if something is wrong, or if `run` would refuse the saved state.
    """
    from midstream.flows.loading import load
    from midstream.flows.offline.inspect import inspect

    with one_line_errors(running=False, as_json=as_json), model_prints():
        settings = load(config)
        report = inspect(settings, sample, amend=amend)
    if as_json:
        print_json(report)
    else:
        console = Console(highlight=False, soft_wrap=True)
        for finding in report.findings:
            style, mark = ("green", "ok  ") if finding.ok else ("red", "FAIL")
            console.print(f"[{style}]{mark}[/] {finding.what}: ", end="")
            console.print(finding.detail, markup=False)
            for line in finding.table:
                console.print(f"     {line}", markup=False)
    sys.exit(0 if report.ok else FAILED)


@cli.command()
@click.option(
    "--from",
    "data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file of events that they are to fit.",
)
@click.option("--force", is_flag=True, help="Overwrite the two files if they exist.")
@click.argument("folder", default=".", type=click.Path(file_okay=False, path_type=Path))
def init(folder: Path, data: Path | None, *, force: bool) -> None:
    """Write a midstream.toml and a models.py to start from.

    The two files go into FOLDER, by default the current one, and have comments. With --from, task,
    fields and model fit the events in a file.
    """
    from midstream.flows.offline.starter import write_starter

    with one_line_errors(running=False):
        starter = write_starter(folder, data, force=force)
    for line in starter.report():
        click.echo(line)


@cli.command()
@click.option("--quick", is_flag=True, help="Take fewer events; run for some seconds.")
@click.option(
    "--report",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the report.",
)
@JSON
def demo(report: Path, *, quick: bool, as_json: bool) -> None:
    """Show Midstream at work on real and drifting streams.

    The demo needs no config and no network. It races some learners, has one learn from labels that
    come later, kills a run halfway to show that nothing is lost, and writes a report: one HTML file
    that opens offline.
    """
    from midstream.flows.demo.demo import run_demo

    with one_line_errors(running=True, as_json=as_json):
        result = run_demo(report, quick=quick, live=not as_json)
    if as_json:
        print_json(result)


@cli.command()
@JSON
def learners(*, as_json: bool) -> None:
    """List the named learners, with their options and defaults.

    Each keeps the contract of a learner (midstream.check_learner): the same result however the
    stream is cut, no learning in a prediction, state saved and loaded bit for bit, bounded memory,
    sample weights.
    """
    from midstream.engine.learners.catalogue import BUILTIN, class_of, named_learners, options_of

    about = {
        name: (BUILTIN[name].task, BUILTIN[name].summary) if name in BUILTIN
        else ("any", (inspect.getdoc(class_of(name)) or "").partition("\n")[0])
        for name in named_learners()
    }  # fmt: skip
    if as_json:
        print_json(
            {
                name: {"task": task, "summary": summary, "options": options_of(name)}
                for name, (task, summary) in about.items()
            }
        )
        return
    for name, (task, summary) in about.items():
        click.echo(f"{name}: task {task}; {summary}")
        for option, default in options_of(name).items():
            click.echo(f"    {option} = {msgspec.json.encode(default).decode()}")


def _print_summary(summary: Any, name: str, *, as_json: bool) -> None:
    from midstream.flows.running.counters import feedback_counts

    if as_json:
        print_json(summary)
        return
    console = Console(highlight=False)
    counts = Table(show_header=False)
    for field in ("events", "learned", "rejected", "predictions", "alarms"):
        counts.add_row(field, f"{getattr(summary, field):,}")
    if summary.non_finite:
        counts.add_row("predictions not finite", f"{summary.non_finite:,}")
    if summary.too_large:
        counts.add_row("labels too large to score", f"{summary.too_large:,}")
    counts.add_row("seconds", f"{summary.seconds:.2f}")
    counts.add_row("events per second", f"{summary.events_per_second:,.0f}")
    console.print(f"{name}, this run:", markup=False)
    console.print(counts)
    views = ("", ".fading", ".window")
    quality = Table("prequential metric", "all events", "fading", "window")
    for metric in summary.metrics:
        short = metric.removesuffix(".window")
        if metric == short + ".window":  # the one view that every metric has
            values = [summary.metrics.get(short + view) for view in views]
            quality.add_row(short, *("" if v is None else f"{v:.4f}" for v in values))
    console.print(f"{name}, since the model began ({summary.seen:,} events):", markup=False)
    console.print(quality)
    if feedback := feedback_counts(summary.metrics):
        joined = Table(show_header=False)
        for key, value in feedback.items():
            if (value and not math.isnan(value)) or key in ("waiting", "joined", "expired"):
                unit = " s" if key.startswith("delay.") else ""
                text = f"{value:,}" if isinstance(value, int) else f"{value:g}"
                joined.add_row(key.replace("_", " "), text + unit)
        console.print("what became of events and labels, since the model began:")
        console.print(joined)
    if any(metric.startswith("by_prediction.") for metric in summary.metrics):
        console.print("by_prediction.: in the order of the events, not in that of their labels")
    for shard, value in summary.digest.items():
        console.print(f"digest of shard {shard}: {value[:16]}", markup=False)


for command in (feedback, *COMMANDS):
    cli.add_command(command)
