"""What a deployment of the Space may choose, from the command line or, on the Hub, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from publishing.command_line import ArgumentParser, OneLineError

PREFIX = "CORA_SPACE_"
"""Of environment variables: `CORA_SPACE_MODEL` is `--model`."""


class SettingsError(OneLineError):
    """A setting that cannot be used, told in one line."""


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """All of them.

    Raises:
        SettingsError: a limit that is not positive, a port that does not exist.
    """

    model: str = _setting("cora-7b", "folder, Hub id or name of a CORA model")
    device: str = _setting("", "where the model runs; by default a GPU where there is one")
    host: str = _setting("", "address to listen on; by default that of GRADIO_SERVER_NAME, else this machine only")
    port: int = _setting(7860, "port to listen on")
    max_megabytes: float = _setting(10.0, "largest picture file")
    max_megapixels: float = _setting(16.0, "largest picture, width times height in millions")
    max_queries: int = _setting(7, "queries about a picture at once; there are 7 colours that all readers tell apart")
    max_characters: int = _setting(300, "longest query")
    queue_size: int = _setting(40, "requests that may wait; further ones are turned away")
    drawings: int = _setting(4, "pictures that are drawn at once; the model answers one request at a time")
    cache_megabytes: float = _setting(512.0, "memory for encoded pictures, which all visitors share")
    keep_seconds: int = _setting(3600, "how long uploads and answers are kept")

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not isinstance(value, str) and not value > 0:
                raise SettingsError(f"--{one.name} {value}: a number above 0 is needed")
        if self.port > 65535:
            raise SettingsError(f"--port {self.port}: ports end at 65535")
        if not self.model:
            raise SettingsError("--model: not given; a folder or Hub id with a CORA model, such as runs/demo/model")

    @property
    def sweep_seconds(self) -> int:
        """How long after its time something may still be there."""
        return min(60, self.keep_seconds)

    @property
    def max_bytes(self) -> int:
        return int(self.max_megabytes * 1e6)

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1e6)


def read_settings(argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """From arguments (by default the process's own), else from `CORA_SPACE_*`, else the defaults.

    Raises:
        OneLineError: something that is no setting, or no value for it.
    """
    environment = os.environ if environment is None else environment
    parser = ArgumentParser(description="The demo Space: asks a CORA model about pictures.")
    for one in fields(Settings):
        variable = PREFIX + one.name.upper()
        default, kind = environment.get(variable, one.default), type(one.default)
        parser.add_argument(
            f"--{one.name}", type=kind, default=default, help=f"{one.metadata['help']} ({variable}; {one.default!r})"
        )
    return Settings(**vars(parser.parse_args(argv)))
