"""An OpenAI-compatible server in a process of its own: it answers by rule from what it finds in a request, or fails.

    python tests/llm_server.py          prints its port

`POST /reset` takes {"delay": seconds, "first": [fault, ...], "always": fault}: the first requests meet one fault each.
A fault is {"status": 429, "headers": {...}, "error": {...}} or {"is": "disconnect"} and so on, see `Handler.fail`.
`GET /stats` tells what was asked.

Replies hold mistakes on purpose: a relation that is false, a class that is named, special tokens, repetitions.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

LOCK = threading.Lock()
STATE: dict[str, Any] = {}
OPPOSITE = {"left": "right", "right": "left", "higher": "lower", "lower": "higher"}
SAID = {
    "left": "to the left of",
    "right": "to the right of",
    "higher": "higher up than",
    "lower": "lower down than",
}


def reset(settings: dict[str, Any]) -> None:
    STATE.clear()
    STATE.update(delay=0.0, first=[], always=None, asked=[], answered=[], times=[], running=0, most=0, wrong=[])
    STATE.update(settings)


def relations(target: list[int], anchor: list[int]) -> list[str]:
    """Of two boxes (left, top, right, bottom) that are clearly apart."""
    found = {
        "left": target[2] + 3 < anchor[0],
        "right": target[0] > anchor[2] + 3,
        "higher": target[3] + 3 < anchor[1],
        "lower": target[1] > anchor[3] + 3,
    }
    return [name for name, true in found.items() if true]


def conditional(facts: dict[str, Any]) -> dict[str, Any]:
    target, anchor = facts["target"], facts["anchor"]
    name, other = target["class"], anchor["can_be_called"]
    found = relations(target["places"][0]["box"], anchor["places"][0]["box"])
    pairs = [
        {"question": f"Which {name} is {SAID[r]} {other}?", "answer": f"The {name} is [SEG].", "relation": r}
        for r in found
    ]
    pairs += [
        {"question": f"Which {name} is the {r} one of {other}?", "answer": "It is [SEG].", "relation": r}
        for r in facts["measured_relations"]
        if r not in SAID
    ]
    for r in found[:1]:
        false = OPPOSITE[r]
        pairs.append({"question": f"The {name} {SAID[false]} {other}", "answer": "It is [SEG].", "relation": false})
        pairs.append({"question": f"[SEG] the {name} {SAID[r]} {other}", "answer": "It is [SEG].", "relation": r})
        pairs.append({"question": f"Mark the {name} {SAID[r]} {other}", "answer": "[SEG] or [SEG].", "relation": r})
    return {"target": f"a {name}", "anchor": f"it is {other}", "pairs": pairs}


def attribute(facts: dict[str, Any]) -> dict[str, Any]:
    target = facts["target"]
    box, whole = target["places"][0]["box"], "means" in target
    queries = [
        {"query": f"the thing around {box[0]} and {box[1]} to {box[2]} and {box[3]}", "answer": "Sure, [SEG]."},
        {"query": f"the {target['class']}s near {box[0]}", "answer": "Sure, [SEG]."},
        {"query": f"the <image> near {box[0]}", "answer": "Sure, [SEG]."},
    ]
    if not whole:
        rivals = [o["box"] for o in facts["objects"] if o["class"] == target["class"] and o["box"] != box]
        leftmost = all(box[2] < other[0] for other in rivals)
        queries.append({"query": f"what is leftmost of its like, near {box[0]}", "answer": "It is [SEG]."})
        STATE["leftmost"] = [*STATE.get("leftmost", []), [queries[-1]["query"], leftmost]]
        for query in queries:
            query["attribute"] = "other"
        queries[-1]["attribute"] = "leftmost"
    return {"target": "something", "queries": queries}


def rephrasings(facts: dict[str, Any]) -> dict[str, Any]:
    query = facts["query"].rstrip(".?")
    starts = (
        "Show me: ",
        "Where is it: ",
        "Find this: ",
        "Mark this: ",
        "I look for: ",
        "Please segment: ",
        "Which is ",
    )
    wrong = [query.upper() + "!", f"{starts[0]}{query}.", f"<image> {query}", "", f"a\nb {query}"]
    if "not_to_be_named" in facts:
        wrong.append(f"the {facts['not_to_be_named']}, {query}")
    return {"rephrasings": [*(start + query for start in starts), *wrong]}


def check_picture(parts: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Whether magenta and cyan lines run around the boxes that the text names."""
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    if not url.startswith("data:image/jpeg;base64,"):
        return f"not a JPEG: {url[:40]}"
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
    if picture.format != "JPEG" or max(picture.size) > STATE.get("longest", 1024):
        return f"{picture.format} of {picture.size}"
    rgb = np.asarray(picture.convert("RGB"), int)
    lines = {
        "target": (rgb[..., 0] > 180) & (rgb[..., 1] < 90) & (rgb[..., 2] > 180),
        "anchor": (rgb[..., 0] < 90) & (rgb[..., 1] > 180) & (rgb[..., 2] > 180),
    }
    for name, line in lines.items():
        if name not in facts or not line.any():
            if name in facts:
                return f"no line around the {name}"
            continue
        boxes = [place["box"] for place in facts[name]["places"]]
        rows, columns = np.nonzero(line)
        around = np.zeros(len(rows), bool)
        for left, top, right, bottom in boxes:
            inside = (columns >= left - 4) & (columns < right + 4) & (rows >= top - 4) & (rows < bottom + 4)
            around |= inside
        # a whole class has more patches than the boxes that are listed
        if facts[name].get("means") is None and not around.all():
            return f"lines of the {name} far from {boxes}"
    return ""


def answer(body: dict[str, Any]) -> str:
    """The content of the reply."""
    parts = body["messages"][-1]["content"]
    text = next(part["text"] for part in parts if part["type"] == "text")
    facts = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    if "query" in facts:
        return json.dumps(rephrasings(facts))
    if problem := check_picture(parts, facts):
        STATE["wrong"].append(problem)
    return json.dumps(conditional(facts) if "anchor" in facts else attribute(facts))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(content).encode(), headers)

    def do_GET(self) -> None:
        with LOCK:
            self.send_json(200, STATE)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/reset":
            with LOCK:
                reset(json.loads(content))
            return self.send_json(200, {})
        key = hashlib.sha256(content).hexdigest()
        with LOCK:
            STATE["asked"].append(key)
            STATE["times"].append(time.monotonic())
            STATE["running"] += 1
            STATE["most"] = max(STATE["most"], STATE["running"])
            fault = STATE["first"].pop(0) if STATE["first"] else STATE["always"]
        try:
            # not all the same, so that replies come back in another order
            time.sleep(STATE["delay"] * (0.5 + int(key[:2], 16) / 255))
            with LOCK:
                STATE["running"] -= 1  # before the reply, which the next request may follow at once
            if fault and self.fail(fault, json.loads(content)):
                return
            self.complete(answer(json.loads(content)))
            with LOCK:
                STATE["answered"].append(key)
        except OSError:
            pass  # the other side has gone

    def complete(self, content: str | None, finish: str = "stop", **message: Any) -> None:
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
        usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
        self.send_json(200, {"id": "x", "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage})

    def fail(self, fault: dict[str, Any], body: dict[str, Any]) -> bool:
        if "status" in fault:
            key = self.headers["Authorization"]
            error = json.loads(json.dumps(fault.get("error", {"message": "no"})).replace("KEY", key))
            self.send_json(fault["status"], {"error": error}, fault.get("headers"))
        elif fault["is"] == "disconnect":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"id": "x", "choices": [{"mess')
            self.wfile.flush()
            self.close_connection = True
        elif fault["is"] == "hang":
            time.sleep(fault["seconds"])
            return False
        elif fault["is"] == "html":
            self.send(200, b"<html>gateway</html>", {"Content-Type": "text/html"})
        elif fault["is"] == "refusal":
            self.complete(None, refusal="I cannot help with that.")
        elif fault["is"] == "cut off":
            limit = body["max_completion_tokens"]
            with LOCK:
                STATE.setdefault("limits", []).append(limit)
            self.complete(answer(body)[:20], "length")
        elif fault["is"] == "fenced":
            self.complete(f"```json\n{answer(body)}\n```")
        elif fault["is"] == "echo":
            self.complete(answer(body).replace("[SEG].", f"[SEG] {self.headers['Authorization']}."))
        else:
            self.complete(fault["is"])
        return True

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    reset({})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
