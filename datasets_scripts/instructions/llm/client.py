"""Any OpenAI-compatible endpoint: retries, limits, and a reply or a reason for every request.

The key comes from `OPENAI_API_KEY` alone. It reaches no file and no message: whatever the server says is searched for
it before it goes anywhere.
"""

from __future__ import annotations

import json
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from ...command_line import UsageError
from .requests import Reply, ReplyCache, Request, schema_problem

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the first retry, doubled for every further one, and the most that this grows to."""
LONGEST_RETRY_AFTER = 600.0
"""Seconds: a server that wants us to wait longer has closed for today."""
ANEW = 2
"""How often a request is sent again because its reply was not of the form that it asked for."""
FAILURES_IN_A_ROW = 10
"""After so many requests without a usable reply and none with one in between, something is wrong with all of them."""

SHORTEST_SECRET = 8
"""Characters; what stands in place of a key for a server that needs none ("x") is no secret, and words hold it."""

REFUSED_CODES = frozenset({"content_filter", "content_policy_violation"})
"""Error codes by which servers refuse a request for what it shows."""


class Unanswered(Exception):
    """This request has no usable reply; others may. The text begins with the reason, ": " and details may follow."""


class _Stopped(Exception):
    """Waiting ended because the whole run does."""


class Endpoint:
    """
    Args:
        base_url: such as "http://localhost:8000/v1"; None = `OPENAI_BASE_URL`, else OpenAI's.
        max_retries: of one request, after errors that may pass.
        timeout: seconds without a byte from the server.

    Attributes:
        tokens_in, tokens_out: used so far, as the server counts them.

    Raises:
        UsageError: no key, a key that no HTTP header can carry, no client, or no such address.
    """

    def __init__(self, base_url: str | None = None, max_retries: int = 6, timeout: float = 60.0):
        try:
            import openai
        except ImportError:
            raise UsageError("the openai client is not installed: pip install -c constraints.txt -e '.[llm]'") from None
        self._errors = openai
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key:
            raise UsageError("OPENAI_API_KEY is not set; for a server that needs no key any value will do")
        if not (key.isascii() and key.isprintable()):
            raise UsageError("OPENAI_API_KEY holds characters that no key has (a line break, a letter with accents)")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        try:
            parts = urlsplit(base_url)
            usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            usable = False
        if not usable or "@" in parts.netloc or parts.query:
            # not repeated here: what is wrong with it may be a secret
            raise UsageError("base_url: not of the form https://HOST/v1, without user, password and query")
        self.address, self._key = base_url, key
        # retries are ours: the client's own cannot be counted, interrupted, or shared between threads
        self._client = openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=0)
        self.max_retries, self.timeout = max_retries, timeout
        self.tokens_in = self.tokens_out = 0
        self._lock = threading.Lock()
        self._resume_at = 0.0  # time.monotonic() before which the server wants no request
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ends all waiting; no request is sent any more."""
        self._stop.set()

    def ask(self, request: Request) -> Reply:
        """Sends one request until there is a reply that can be used.

        Raises:
            Unanswered: there is none, also after the retries.
            UsageError: there will be none for any request (key, address, model, quota).
        """
        body = request.body()
        problem = ""
        for _ in range(1 + ANEW):
            message, finish_reason = self._message(body)
            if isinstance(message, Reply):
                return message
            refusal = message.get("refusal")
            if refusal or finish_reason == "content_filter":
                return Reply(None, self.scrub(str(refusal or "content filter")), *message["usage"])
            if finish_reason == "length":
                problem = f"reply cut off: after {body['max_completion_tokens']} tokens"
                body["max_completion_tokens"] *= 2
                continue
            text = self.scrub(str(message.get("content") or ""))
            try:
                content = json.loads(_without_fence(text))
                json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair is no text
            except (ValueError, RecursionError):
                problem = f"reply is no JSON: {' '.join(text.split())[:80]!r}"
                continue
            if wrong := schema_problem(content, request.schema):
                problem = f"reply of another form: {wrong}"
                continue
            return Reply(content, "", *message["usage"])
        raise Unanswered(problem)

    def scrub(self, text: str) -> str:
        """Text as it may be written down: without the key, and valid Unicode."""
        text = text.replace(self._key, "***") if len(self._key) >= SHORTEST_SECRET else text
        return text.encode("utf-8", "replace").decode()

    def _message(self, body: dict[str, Any]) -> tuple[dict[str, Any] | Reply, str]:
        """The message of the first choice, with "usage" (tokens in, tokens out), and its finish reason."""
        errors = self._errors
        problem = ""
        for attempt in range(1 + self.max_retries):
            if attempt:
                self._wait(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
            self._wait_for_turn()
            try:
                raw = self._client.chat.completions.with_raw_response.create(**body)
                return self._choice(json.loads(raw.http_response.content))
            except errors.APIStatusError as error:
                details = self._details(error)
                self._stop_where_hopeless(error, details)
                if error.code in REFUSED_CODES:
                    return Reply(None, details), ""
                problem = f"HTTP {error.status_code}: {details}"
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    break
                self._honour_retry_after(error)
            except errors.APITimeoutError:
                problem = f"no answer: within {self.timeout:g} s"
            except errors.APIConnectionError as error:
                problem = f"no connection: {self.scrub(str(error.__cause__ or error))[:120]}"
            except (ValueError, TypeError, KeyError, IndexError, AttributeError):
                problem = "no chat completion: the server sent something else"
        raise Unanswered(problem)

    def _choice(self, completion: dict[str, Any]) -> tuple[dict[str, Any], str]:
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        with self._lock:
            self.tokens_in += tokens[0]
            self.tokens_out += tokens[1]
        return {**choice["message"], "usage": tokens}, str(choice.get("finish_reason"))

    def _details(self, error: Any) -> str:
        """What the server says, on one line and without secrets."""
        body = error.body if isinstance(error.body, Mapping) else {}
        said = body.get("message") or body.get("detail") or error.response.reason_phrase or "no explanation"
        return self.scrub(" ".join(str(said).split()))[:200]

    def _stop_where_hopeless(self, error: Any, details: str) -> None:
        status = error.status_code
        if status == 401:
            # without the server's words: some quote a part of the key
            raise UsageError(f"{self.address}: HTTP 401, the key in OPENAI_API_KEY is not accepted")
        if status in (403, 404) or error.code == "insufficient_quota":
            raise UsageError(f"{self.address}: HTTP {status}, {details}")

    def _honour_retry_after(self, error: Any) -> None:
        """All threads wait, since the limit is one for all of them."""
        seconds = _retry_after(error.response.headers)
        if seconds > LONGEST_RETRY_AFTER:
            raise UsageError(f"{self.address}: HTTP {error.status_code}, asks to come again in {seconds:.0f} s")
        with self._lock:
            self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    def _wait_for_turn(self) -> None:
        while (seconds := self._resume_at - time.monotonic()) > 0:
            # not all threads in the same moment
            self._wait(seconds + random.uniform(0.0, 0.2))
        self._wait(0)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Stopped


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds, from `retry-after-ms` or from `Retry-After` in seconds or as a date; 0 where neither says."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "0")
        if not value.replace(".", "", 1).strip().isdigit():
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        return float(value)
    except (ValueError, TypeError):
        return 0.0


def _without_fence(text: str) -> str:
    """Models that no schema binds like to put JSON between ``` lines."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        return text[text.index("\n") : -3]
    return text


def ask_all(
    endpoint: Endpoint,
    requests: Mapping[str, Request],
    cache: ReplyCache,
    concurrency: int = 8,
    after_each: Callable[[], None] = lambda: None,
    progress: str = "",
) -> dict[str, Reply | Unanswered]:
    """Sends requests, at most `concurrency` at a time; every reply is in the cache before anything else happens.

    Ends early, with an error or Ctrl-C, only after the replies under way have come in: they are paid for.

    Args:
        requests: by key.
        after_each: called in the thread of each reply, before the next is asked for; what it raises ends the run.
        progress: what the progress bar says; "" = no bar.

    Raises:
        UsageError: the endpoint will not answer any request.
    """
    todo: queue.SimpleQueue[tuple[str, Request]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, Reply | BaseException]] = queue.SimpleQueue()
    for item in requests.items():
        todo.put(item)
    stopped = threading.Event()
    in_a_row, counting = 0, threading.Lock()

    def count(reply: Reply | Unanswered) -> None:
        """In the thread of the reply: counted elsewhere, threads could ask for more before anybody has looked."""
        nonlocal in_a_row
        with counting:
            in_a_row = in_a_row + 1 if isinstance(reply, Unanswered) else 0
            if in_a_row >= FAILURES_IN_A_ROW:
                raise UsageError(f"{endpoint.address}: {in_a_row} requests in a row without a reply ({reply})")

    def work() -> None:
        while not stopped.is_set():
            try:
                key, request = todo.get_nowait()
            except queue.Empty:
                return
            try:
                try:
                    reply: Reply | Unanswered = endpoint.ask(request)
                    cache.put(key, reply)
                except Unanswered as unanswered:
                    reply = unanswered
                count(reply)
                after_each()
                done.put((key, reply))
            except BaseException as error:
                done.put((key, error))
                stopped.set()
                endpoint.stop()

    # daemons, so that a second Ctrl-C does not have to wait for them
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(requests)))]
    results: dict[str, Reply | Unanswered] = {}
    try:
        for thread in threads:
            thread.start()
        with tqdm(total=len(requests), desc=progress, unit="request", disable=not progress) as bar:
            while len(results) < len(requests):
                key, result = done.get()
                if not isinstance(result, Reply | Unanswered):
                    raise result
                results[key] = result
                bar.update()
    except KeyboardInterrupt:
        tqdm.write("waiting for the replies under way; Ctrl-C again drops them", file=sys.stderr)
        raise
    finally:
        stopped.set()
        if len(results) < len(requests):
            endpoint.stop()
        for thread in threads:
            thread.join()
    return results
