"""`kb search`: ask, and read the passages that answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from kb.cli.client import connect
from kb.cli.filters import parse_filter
from kb.cli.options import CliError, Target, examples, json_option, target_options
from kb.cli.output import console, place, print_json

if TYPE_CHECKING:
    from rich.text import Text

    from kb.client import Answer, Method, Passage

SNIPPET_CHARS = 320
MAX_COLUMNS = 100
_INDENT = 4


@click.command(
    epilog=examples(
        'kb search "How long is the warranty?" --dataset handbook',
        'kb search "error E42" -d handbook --method fulltext --top-k 3',
        "kb search warranty -d handbook --filter 'year >= 2020 and not author is \"Ann\"'",
        'kb search "退货期限" -d handbook --vector-weight 0.7 --explain',
        'kb search "Who is liable?" -d handbook -d contracts',
        'kb search "price of a mast" -d handbook --json | jq ".records[0].segment.content"',
    )
)
@click.argument("query")
@click.option(
    "--dataset",
    "-d",
    "datasets",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Name or id of the dataset; may be repeated, to ask several at once.",
)
@click.option(
    "--method",
    "-m",
    type=click.Choice(["hybrid", "vector", "fulltext"]),
    default="hybrid",
    show_default=True,
    help="By meaning and words, by meaning, or by words. Economy datasets are searched by words.",
)
@click.option(
    "--top-k",
    "-k",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="How many passages at most.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Only passages with at least this score, 0 to 1.  [default: none]",
)
@click.option(
    "--vector-weight",
    type=click.FloatRange(0, 1),
    help="Share of meaning in a hybrid score; words get the rest.  [default: the server's, 0.5]",
)
@click.option(
    "--filter",
    "-f",
    "filter_",
    metavar="CONDITIONS",
    help="Only documents whose metadata meets these, such as 'year >= 2020 and author is \"Ann\"'."
    "  [default: all]",
)
@click.option("--explain", is_flag=True, help="Also print how each score came about, and times.")
@json_option
@target_options()
@click.pass_obj
def search(
    target: Target,
    query: str,
    datasets: tuple[str, ...],
    method: str,
    top_k: int,
    threshold: float | None,
    vector_weight: float | None,
    filter_: str | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Find the passages of datasets that answer QUERY, best first.

    A score lies between 0 and 1. Scores of one method are comparable with each other, not with
    those of another method.

    \b
    A filter joins conditions by and, or, not and parentheses:
      year >= 2020           author is "Ann Lee"      title starts with Guide
      tags in (a, b)         author is not empty      title contains x ignoring case
    """
    conditions = parse_filter(filter_) if filter_ is not None else None
    with connect(target) as client:
        if len(datasets) > 1:
            if explain:
                raise CliError("--explain speaks of one dataset; give --dataset once")
            answer = client.search_all(
                datasets,
                query,
                method=cast("Method", method),
                top_k=top_k,
                threshold=threshold,
                vector_weight=0.5 if vector_weight is None else vector_weight,
                conditions=conditions,
            )
            _show_all(answer, query, as_json=as_json)
            return
        (dataset,) = datasets
        answer = client.search(
            dataset,
            query,
            method=cast("Method", method),
            top_k=top_k,
            threshold=threshold,
            vector_weight=vector_weight,
            conditions=conditions,
            explain=explain,
        )
        hint = None if answer else _hint(client.dataset(dataset), threshold, filter_)
    if hint is not None:
        click.echo(f"nothing found: {hint}", err=True)
    if as_json:
        print_json(answer.raw)
    else:
        print_answer(answer, query)


def _show_all(answer: Answer, query: str, *, as_json: bool) -> None:
    """What several datasets gave, and which of them could not be asked."""
    for error in answer.raw["errors"]:
        name = error["dataset_name"] or error["dataset_id"]
        click.echo(f"dataset {name!r} was not asked: {error['message']}", err=True)
    if not answer:
        click.echo("nothing found: try other words, or other datasets", err=True)
    if as_json:
        print_json(answer.raw)
    else:
        print_answer(answer, query)


def _hint(dataset: dict[str, Any], threshold: float | None, filter_: str | None) -> str:
    """What would help where nothing was found."""
    if not dataset["total_documents"]:
        return f"the dataset is empty; fill it: kb ingest PATH --dataset {dataset['name']}"
    if not dataset["total_available_documents"]:
        return (
            "none of its documents is searchable yet; see: kb documents list --dataset "
            f"{dataset['name']}"
        )
    if filter_ is not None:
        return (
            "no document that the filter leaves has it; look at the fields: kb metadata list "
            f"--dataset {dataset['name']}"
        )
    if threshold is not None:
        return f"no passage scores {threshold:g} or more; try a lower --threshold"
    return "try other words, or --method vector, which needs none in common"


def print_answer(answer: Answer, query: str) -> None:
    """Ranked passages: score, document and place, and the part that fits the query best."""
    from rich.text import Text

    out = console()
    columns = min(out.width, MAX_COLUMNS)
    terms = query_terms(query)
    for rank, passage in enumerate(answer, start=1):
        lines = [_snippet(passage, terms)]
        if passage.answer is not None:
            lines.append(Text(_shortened(passage.answer)))
        if passage.explanation is not None:
            lines += [Text(line, style="dim") for line in explanation_lines(passage.explanation)]
        out.print(_heading(rank, passage), soft_wrap=True)
        for line in Text("\n").join(lines).wrap(out, columns - _INDENT):
            line.rstrip()
            out.print(Text(" " * _INDENT) + line, soft_wrap=True)
    if answer.timings_ms:
        stages = ", ".join(f"{name} {ms:.1f} ms" for name, ms in answer.timings_ms.items())
        out.print(f"[dim]times: {stages}[/dim]")


def _heading(rank: int, passage: Passage) -> Text:
    from rich.text import Text

    line = Text()
    line.append(f"{rank:>2}  ", style="dim")
    line.append(f"{passage.score:.3f}  ", style="bold cyan")
    line.append(passage.document, style="bold")
    if where := place(passage.source):
        line.append(f"  {where}", style="green")
    return line


def explanation_lines(explanation: dict[str, Any]) -> list[str]:
    """One line per leg; the contributions add up to the score."""
    lines = []
    for name, label in (("vector", "vector  "), ("full_text", "fulltext")):
        leg = explanation[name]
        if leg is None:
            continue
        rank = f"rank {leg['rank']}" if leg["rank"] is not None else "unranked"
        lines.append(
            f"{label} {rank:<9} raw {leg['raw_score']:.4f}  normalised "
            f"{leg['normalised_score']:.4f} x weight {leg['weight']:g} = "
            f"{leg['contribution']:.4f}"
        )
    return lines


_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}"
_WORDS = (
    rf"(?V1)(?P<dense>[{_NO_SPACES}]+)"
    rf"|[[\p{{L}}\p{{N}}]--[{_NO_SPACES}]](?:[^\s{_NO_SPACES}]*[[\p{{L}}\p{{N}}+#]--[{_NO_SPACES}]])?"
)


def query_terms(query: str) -> frozenset[str]:
    """What to look out for in a passage: the query's terms as the index has them.

    Without single letters and characters, which are everywhere, unless there is nothing else.
    """
    from kb.retrieval.analysis import analyse_query

    terms = frozenset(analyse_query(query))
    return frozenset(term for term in terms if len(term) > 1) or terms


def marked_spans(text: str, terms: frozenset[str]) -> list[tuple[int, int]]:
    """Half-open spans of the words in `text` that share a term with the query, in order.

    Of scripts without spaces, single characters and pairs of them.
    """
    import regex

    from kb.retrieval.analysis import analyse

    spans = []
    for word in regex.finditer(_WORDS, text):
        if word["dense"] is None:
            if not terms.isdisjoint(analyse(word[0])):
                spans.append(word.span())
            continue
        marked = {
            start + offset
            for length in (1, 2)
            for start in range(word.start(), word.end() - length + 1)
            if text[start : start + length] in terms
            for offset in range(length)
        }
        spans += [(at, at + 1) for at in sorted(marked)]
    return spans


def best_window(text: str, spans: list[tuple[int, int]], chars: int) -> tuple[int, int]:
    """The half-open span of at most `chars` characters that holds the most marked words."""
    if len(text) <= chars:
        return 0, len(text)
    starts = [0, *(max(0, min(start - chars // 4, len(text) - chars)) for start, _ in spans)]
    best = max(starts, key=lambda a: (sum(a <= s and e <= a + chars for s, e in spans), -a))
    cut = best
    if best > 0 and (space := text.find(" ", best, best + 20)) != -1:
        cut = space + 1
    end = best + chars
    if end < len(text) and (space := text.rfind(" ", end - 20, end)) != -1:
        end = space
    return cut, end


def _shortened(answer: str) -> str:
    text = " ".join(answer.split())
    return text if len(text) <= SNIPPET_CHARS else f"{text[:SNIPPET_CHARS].rstrip()} …"


def _snippet(passage: Passage, terms: frozenset[str]) -> Text:
    from rich.text import Text

    # What matched of a passage that was found by its parts is in its best part.
    content = passage.children[0]["content"] if passage.children else passage.text
    text = " ".join(content.split())
    spans = marked_spans(text, terms)
    start, end = best_window(text, spans, SNIPPET_CHARS)
    line = Text("… " if start else "")
    shift = len(line.plain) - start
    line.append(text[start:end] + (" …" if end < len(text) else ""))
    for a, b in spans:
        if start <= a and b <= end:
            line.stylize("bold yellow", a + shift, b + shift)
    return line
