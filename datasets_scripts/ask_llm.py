"""Lets a language model write instructions for labelled scenes, and keeps those that the masks bear out.

    python -m datasets_scripts.ask_llm DIR --out instructions.jsonl --model gpt-4o --dry_run
    python -m datasets_scripts.ask_llm DIR --out instructions.jsonl --model gpt-4o \\
        --price_in 2.5 --price_out 10 --budget 5

Any OpenAI-compatible endpoint will do; its key comes from OPENAI_API_KEY, its address from --base_url or
OPENAI_BASE_URL. Replies are kept in --cache: after an interruption the same command asks for the missing ones only.
`datasets_scripts.build --instructions` adds what it wrote to the tables that are trained on.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .command_line import ArgumentParser, UsageError, above_zero, not_negative, one_line_errors, positive
from .files import write_text
from .folder import read_data
from .instructions.build import read_instructions, write_instructions
from .instructions.llm.client import Endpoint, Unanswered, ask_all
from .instructions.llm.cost import Estimate, Prices, estimate
from .instructions.llm.pipeline import (
    MODEL_KINDS,
    Made,
    Options,
    add_rephrasings,
    plan_questions,
    read_replies,
    rephrasing_requests,
)
from .instructions.llm.prompts import QUERIES, rephrasing_request
from .instructions.llm.requests import Reply, ReplyCache, Request
from .records import DataError, Instruction, SceneSet, SemanticClass


@dataclass
class Run:
    """What one call of the command has at hand.

    Attributes:
        prices: None where they are not given.
        budget: dollars; None = any.
    """

    cache: ReplyCache
    prices: Prices | None
    budget: float | None
    connect: Callable[[], Endpoint]
    concurrency: int
    endpoint: Endpoint | None = None

    def known(self, requests: Mapping[str, Request]) -> dict[str, Reply | Unanswered]:
        """The replies that the cache has."""
        found = {key: self.cache.get(key, request.schema) for key, request in requests.items()}
        return {key: reply for key, reply in found.items() if reply is not None}

    def replies(self, requests: Mapping[str, Request], what: str) -> dict[str, Reply | Unanswered]:
        """From the cache, and from the endpoint where that has none."""
        found = self.known(requests)
        missing = {key: request for key, request in requests.items() if key not in found}
        if missing:
            self.endpoint = self.endpoint or self.connect()
            found |= ask_all(self.endpoint, missing, self.cache, self.concurrency, self.check_spent, what)
        return found

    def spent(self) -> float:
        """Dollars, in this run."""
        if self.endpoint is None or self.prices is None:
            return 0.0
        return self.prices.of(self.endpoint.tokens_in, self.endpoint.tokens_out)

    def check_spent(self) -> None:
        if self.budget is not None and self.spent() > self.budget:
            raise UsageError(
                f"budget {self.budget:g}: ${self.spent():.4f} are spent in this run; the replies are kept, and the "
                "same command with another budget goes on"
            )

    def announce(self, expected: Estimate, known: int, what: str = "all") -> None:
        """Prints what is to come.

        Raises:
            UsageError: it is more than what the budget leaves.
        """
        print(f"{what}: {known:,} replies are there already; to ask: {expected}")
        if self.prices is None:
            print("cost: not known without --price_in and --price_out")
            return
        cost = self.prices.of(expected.tokens_in, expected.tokens_out)
        print(f"cost: about ${cost:.4f}", flush=True)
        if self.budget is not None and self.spent() + cost > self.budget:
            raise UsageError(
                f"budget {self.budget:g}: about ${self.spent() + cost:.4f} would be needed; "
                "--limit or --per_scene make it less"
            )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m datasets_scripts.ask_llm",
        description="Lets a language model write instructions for the labelled training scenes of a folder.",
    )
    parser.add_argument("data", type=Path, help="folder of any layout that `build` reads, or built tables")
    parser.add_argument("--out", type=Path, required=True, help="the instructions; rejected.jsonl appears beside it")
    parser.add_argument("--model", required=True, help="its name at the endpoint, such as gpt-4o")
    parser.add_argument("--base_url", help="such as http://localhost:8000/v1 (default: OPENAI_BASE_URL, else OpenAI's)")
    parser.add_argument("--split_lists", type=Path, help="folder with labeled.txt and unlabeled.txt")
    parser.add_argument("--kinds", nargs="+", choices=MODEL_KINDS, default=MODEL_KINDS, help="(default: all)")
    parser.add_argument("--instructions", type=Path, help="rephrase these; with --kinds rephrasings alone")
    parser.add_argument("--limit", type=positive, help="only the first so many scenes")
    parser.add_argument("--per_scene", type=positive, default=4, help="requests of a kind about a scene (default: 4)")
    parser.add_argument("--image_size", type=positive, default=1024, help="longest side sent, pixels (default: 1024)")
    parser.add_argument("--seed", type=not_negative, default=0, help="another seed, other targets (default: 0)")
    parser.add_argument("--concurrency", type=positive, default=8, help="requests at a time (default: 8)")
    parser.add_argument("--max_retries", type=not_negative, default=6, help="of a request (default: 6)")
    parser.add_argument("--timeout", type=above_zero, default=60.0, help="seconds (default: 60)")
    parser.add_argument("--cache", type=Path, help="folder of replies (default: llm_replies beside --out)")
    parser.add_argument("--price_in", type=above_zero, help="dollars per million tokens sent")
    parser.add_argument("--price_out", type=above_zero, help="dollars per million tokens received")
    parser.add_argument("--budget", type=above_zero, help="dollars; no request is sent if more is expected")
    parser.add_argument("--dry_run", action="store_true", help="only the estimate; needs no key")
    parser.add_argument("--yes", action="store_true", help="do not ask before the first request")
    return parser


def _check(given: Namespace) -> None:
    if given.out.is_dir():
        raise UsageError(f"out {given.out}: is a folder; the name of a file would be right")
    if (given.price_in is None) != (given.price_out is None):
        raise UsageError("price_in and price_out: either both or none")
    if given.budget is not None and given.price_in is None:
        raise UsageError("budget: needs --price_in and --price_out")
    if (given.instructions is not None) != (set(given.kinds) == {"rephrasings"}):
        raise UsageError("instructions: goes with --kinds rephrasings alone, and that needs it")


def _confirm(given: Namespace) -> None:
    if given.yes or not sys.stdin.isatty():
        return
    print("Go on? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was asked; --yes goes on without a question")


def _expected_rephrasings(questions: int, model: str) -> Estimate:
    """Of queries that are not written yet: as many as are asked for, of the usual length."""
    usual = Instruction("", "attribute", "", "x" * 60, "")
    one = estimate([rephrasing_request(model, usual, SemanticClass(0, "x" * 8))])
    count = questions * QUERIES
    return Estimate(count, count * one.tokens_in, 0, count * one.tokens_out)


def _ask(given: Namespace, scene_set: SceneSet, run: Run) -> Made | None:
    """All requests; None after a dry run."""
    if given.instructions is not None:
        return _rephrase(given, scene_set, run, Made(read_instructions(given.instructions)), confirmed=False)
    scenes = scene_set.split("train", labelled=True)[: given.limit]
    options = Options(given.model, tuple(given.kinds), given.per_scene, given.image_size, given.seed)
    questions = plan_questions(scene_set, scenes, options, progress=True)
    requests = {question.key: question.request for question in questions}
    replies = run.known(requests)
    made = read_replies([question for question in questions if question.key in replies], replies, scene_set)
    missing = [request for key, request in requests.items() if key not in replies]
    rephrase = "rephrasings" in given.kinds
    if missing:
        expected = estimate(missing)
        if rephrase:
            known_queries = rephrasing_requests(made.instructions, scene_set, given.model)
            later = {request.key(): request for request in known_queries}
            already = run.known(later)
            expected += estimate(request for key, request in later.items() if key not in already)
            expected += _expected_rephrasings(len(missing), given.model)
        run.announce(expected, len(replies))
        if given.dry_run:
            return None
        _confirm(given)
        made = read_replies(questions, run.replies(requests, "asking"), scene_set)
    if rephrase:
        return _rephrase(given, scene_set, run, made, confirmed=bool(missing))
    if given.dry_run:
        run.announce(Estimate(), len(replies))
        return None
    return made


def _rephrase(given: Namespace, scene_set: SceneSet, run: Run, made: Made, confirmed: bool) -> Made | None:
    """Adds rephrasings; None after a dry run."""
    requests = rephrasing_requests(made.instructions, scene_set, given.model)
    keys = [request.key() for request in requests]
    by_key = dict(zip(keys, requests, strict=True))
    known = run.known(by_key)
    run.announce(estimate(request for key, request in by_key.items() if key not in known), len(known), "rephrasings")
    if given.dry_run:
        return None
    if not confirmed and len(known) < len(by_key):
        _confirm(given)
    return add_rephrasings(made, keys, run.replies(by_key, "rephrasing"))


def _write(given: Namespace, made: Made, run: Run) -> None:
    rejected = given.out.parent / "rejected.jsonl"
    write_text(rejected, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in made.rejected))
    reasons = Counter(line["reason"] for line in made.rejected)
    counted = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda i: (-i[1], i[0])))
    if not made.instructions:
        raise DataError(f"{given.out}: not written, there is no instruction ({counted or 'no target'}); see {rejected}")
    write_instructions(given.out, made.instructions)
    kinds = Counter(each.kind for each in made.instructions)
    print(f"{given.out}: {len(made.instructions)} instructions ({', '.join(f'{k} {n}' for k, n in kinds.items())})")
    print(f"{rejected}: {len(made.rejected)} rejected" + (f" ({counted})" if counted else ""))
    if run.endpoint is not None:
        money = f", ${run.spent():.4f}" if run.prices else ""
        print(f"used in this run: {run.endpoint.tokens_in:,} tokens in, {run.endpoint.tokens_out:,} out{money}")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(argv)
    _check(given)
    scene_set, _ = read_data(given.data, given.split_lists, components=True)
    run = Run(
        cache=ReplyCache(given.cache or given.out.parent / "llm_replies"),
        prices=None if given.price_in is None else Prices(given.price_in, given.price_out),
        budget=given.budget,
        connect=lambda: Endpoint(given.base_url, given.max_retries, given.timeout),
        concurrency=given.concurrency,
    )
    try:
        made = _ask(given, scene_set, run)
        if made is not None:
            _write(given, made, run)
    except KeyboardInterrupt:
        print("interrupted: all replies so far are kept, the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
