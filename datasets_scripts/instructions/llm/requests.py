"""What is asked of a language model and what it replies: requests, replies, and the folder that keeps them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files import write_text


@dataclass(frozen=True)
class Request:
    """One chat completion, answered by JSON of a fixed form.

    Attributes:
        model: its name at the endpoint.
        system, text: the two messages, plain text.
        schema: JSON schema of the reply, of the subset that `schema_problem` knows.
        max_tokens: of the reply.
        picture: gives JPEG bytes, or the same ones again; None for a request of text alone. Kept as a function since
            thousands of pictures do not fit into memory.
        picture_size: (width, height) of it, pixels.
    """

    model: str
    system: str
    text: str
    schema: dict[str, Any]
    max_tokens: int
    picture: Callable[[], bytes] | None = None
    picture_size: tuple[int, int] | None = None

    def body(self) -> dict[str, Any]:
        """The arguments of `chat.completions.create`."""
        content: list[dict[str, Any]] = [{"type": "text", "text": self.text}]
        if self.picture is not None:
            url = "data:image/jpeg;base64," + base64.b64encode(self.picture()).decode("ascii")
            content.append({"type": "image_url", "image_url": {"url": url, "detail": "high"}})
        return {
            "model": self.model,
            "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": content}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": self.schema},
            },
            # `max_tokens` is refused by OpenAI's newer models
            "max_completion_tokens": self.max_tokens,
        }

    def key(self) -> str:
        """SHA-256 of everything that the reply depends on. Address and key of the endpoint are no part of it."""
        return hashlib.sha256(json.dumps(self.body(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """
    Attributes:
        content: JSON that fits the request's schema; None where the model refused.
        refusal: what it said then.
        tokens_in, tokens_out: as the server counted them; 0 where it did not.
    """

    content: dict[str, Any] | None
    refusal: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


class ReplyCache:
    """Replies on disk, a file for each, written whole as soon as it is there. For one program at a time.

    A file that is damaged, or whose content no longer fits the schema, counts as absent.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str, schema: dict[str, Any]) -> Reply | None:
        try:
            reply = Reply(**json.loads(self.path(key).read_text(encoding="utf-8")))
        except (FileNotFoundError, TypeError, ValueError):  # also broken JSON, also bytes that are no UTF-8
            return None
        if not reply.refusal and schema_problem(reply.content, schema):
            return None
        return reply

    def put(self, key: str, reply: Reply) -> None:
        write_text(self.path(key), json.dumps(asdict(reply), ensure_ascii=False) + "\n")


def object_schema(**properties: dict[str, Any]) -> dict[str, Any]:
    """An object with exactly these fields, as strict structured outputs want it."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def list_schema(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def text_schema(description: str, one_of: list[str] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "description": description}
    return {**schema, "enum": one_of} if one_of else schema


def schema_problem(value: Any, schema: dict[str, Any], where: str = "reply") -> str:
    """What is wrong with a value, in a few words; "" where it fits. Servers may ignore the schema they are sent.

    Knows what the three functions above make.
    """
    if schema["type"] == "string":
        if not isinstance(value, str):
            return f"{where} is no text"
        if "enum" in schema and value not in schema["enum"]:
            return f"{where} {value[:40]!r} is none of those asked for"
        return ""
    if schema["type"] == "array":
        if not isinstance(value, list):
            return f"{where} is no list"
        problems = (schema_problem(item, schema["items"], f"{where}[{index}]") for index, item in enumerate(value))
        return next(filter(None, problems), "")
    if not isinstance(value, dict):
        return f"{where} is no object"
    if value.keys() != schema["properties"].keys():
        wrong = sorted(value.keys() ^ schema["properties"].keys())[0]
        return f"{where}.{wrong[:40]} is {'unknown' if wrong in value else 'missing'}"
    problems = (schema_problem(value[name], schema["properties"][name], f"{where}.{name}") for name in value)
    return next(filter(None, problems), "")
