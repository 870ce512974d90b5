"""Publishes what a folder holds.

    python -m modeling_cora.hub push RUN_DIR ORG/NAME           a trained model, with its card; RUN_DIR as `make demo`
                                                                or trainers/stageN.py and evaluate.py leave it
    python -m modeling_cora.hub push RUN_DIR ORG/NAME --merge   an adapter, merged with its base
    python -m modeling_cora.hub push metrics/ciou ORG/ciou      a Space: any folder with app.py
    python -m modeling_cora.hub push spaces ORG/NAME --model ORG/MODEL

The same command goes on with an upload that was broken off, and replaces an earlier one. Data sets are pushed by
`python -m datasets_scripts.build ... --push_to_hub`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi

from publishing.command_line import ArgumentParser, one_line_errors
from publishing.hub import HubError, address, hub_errors, make_repository, upload

from .push import push_model
from .space import MODEL_VARIABLE, is_space, space_files


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m modeling_cora.hub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    push = parser.add_subparsers(dest="command", required=True).add_parser("push", help="upload a folder")
    push.add_argument("folder", type=Path, metavar="RUN_DIR", help="with a model, or with the app.py of a Space")
    push.add_argument("name", metavar="ORG/NAME", help="repository; made where there is none")
    push.add_argument("--private", action="store_true", help="which only its owners see, if it is new")
    push.add_argument("--message", help="of the commit")
    models = push.add_argument_group("models")
    models.add_argument("--merge", action="store_true", help="merge an adapter with its base")
    models.add_argument("--license", help="such as apache-2.0, the default where nothing pretrained is in the weights")
    models.add_argument(
        "--base_model", action="append", metavar="ORG/NAME", help="what the weights descend from; may be repeated"
    )
    models.add_argument("--without_pictures", action="store_true", help="where the licence of the images forbids them")
    push.add_argument_group("Spaces").add_argument("--model", metavar="ORG/NAME", help="which the demo shows")
    return parser


def _push_space(given: argparse.Namespace) -> str:
    # before anything is made on the Hub
    files, sdk = space_files(given.folder, given.name, given.model)
    repo_id = make_repository(given.name, "space", given.private, space_sdk=sdk)
    if given.model:
        with hub_errors(f"{repo_id}: variable {MODEL_VARIABLE}"):
            HfApi().add_space_variable(repo_id, MODEL_VARIABLE, given.model)
    upload(files, repo_id, "space", given.message or "The app and what it needs", replaces=["[!.]*"])
    return address(repo_id, "space")


def _push(given: argparse.Namespace) -> str:
    """What the folder holds decides; gives the address."""
    space = is_space(given.folder)
    for name, misplaced in {"merge": space, "license": space, "base_model": space, "without_pictures": space,
                            "model": not space}.items():  # fmt: skip
        if misplaced and getattr(given, name):
            raise HubError(f"--{name}: goes with a {'model' if space else 'Space'}, and {given.folder} holds none")
    if space:
        return _push_space(given)
    if any(given.folder.glob("scenes/*.parquet")):
        raise HubError(f"{given.folder}: a data set; python -m datasets_scripts.build ... --push_to_hub pushes it")
    return push_model(
        given.folder,
        given.name,
        private=given.private,
        merge=given.merge,
        licence=given.license,
        bases=given.base_model,
        pictures=not given.without_pictures,
        message=given.message,
    )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    print(f"pushed: {_push(_parser().parse_args(argv))}")


if __name__ == "__main__":
    main()
