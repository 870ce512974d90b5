"""Instructions by a language model, from the command line against a server in another process, as it is and as it
fails; what comes out is held against the scenes' own maps."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.ask_llm import Run, main
from datasets_scripts.instructions.build import read_instructions
from datasets_scripts.instructions.llm import client as llm_client
from datasets_scripts.instructions.llm.cost import Prices
from datasets_scripts.instructions.llm.requests import (
    ReplyCache,
    Request,
    list_schema,
    object_schema,
    text_schema,
)
from datasets_scripts.scenes import write_scenes
from datasets_scripts.verify import main as verify

ROOT = Path(__file__).resolve().parents[1]
KEY = "sk-a-key-that-nobody-may-see"


@dataclass
class Server:
    address: str

    def _call(self, path: str, content: dict | None = None) -> dict:
        data = None if content is None else json.dumps(content).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(self.address + path, data), timeout=120) as answer:
            return json.loads(answer.read())

    def reset(self, **settings) -> None:
        self._call("/reset", settings)

    def stats(self) -> dict:
        return self._call("/stats")


@pytest.fixture(scope="module")
def process():
    command = [sys.executable, str(ROOT / "tests/llm_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        yield Server(f"http://127.0.0.1:{running.stdout.readline().strip()}")
        running.kill()


@pytest.fixture
def server(process, monkeypatch):
    process.reset()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{process.address}/v1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(llm_client, "FIRST_WAIT", 0.01)
    return process


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 2, 0, 1, size=(96, 128), progress=False)
    return folder


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return [str(data), "--out", str(out / "instructions.jsonl"), "--model", "gpt-4o", "--concurrency", "4", *more]


def start(*given: str) -> subprocess.Popen:
    # where the tests run in the background, Ctrl-C would be ignored in all that they start
    code = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "runpy.run_module('datasets_scripts.ask_llm', run_name='__main__')"
    command = [sys.executable, "-c", code, *given]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("instructions.jsonl", "rejected.jsonl")}


def rejected(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def fails(capsys, *given: str) -> str:
    """The one line of a command that ends in one."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(given))
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line or "Traceback" in line]
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.fixture(scope="module")
def clean(process, data, tmp_path_factory) -> tuple[Path, dict]:
    """An undisturbed run: its folder, and what the server saw."""
    out = tmp_path_factory.mktemp("clean")
    process.reset()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("OPENAI_API_KEY", KEY), ("OPENAI_BASE_URL", f"{process.address}/v1")):
            patch.setenv(name, value)
        patch.setenv("NO_PROXY", "127.0.0.1")
        main(arguments(data, out))
    return out, process.stats()


def test_verify_agrees_but_for_claims_that_no_mask_decides(clean, data, tmp_path):
    assert verify([str(shutil.copytree(clean[0], tmp_path / "set")), "--data", str(data), "--drop"]) == 0
    assert {line["reasons"][0].partition(":")[0] for line in rejected(tmp_path / "set") if "reasons" in line} == {
        "claim is empty"
    }


def test_instructions_are_what_the_maps_bear_out(clean, data):
    out, seen = clean
    instructions = read_instructions(out / "instructions.jsonl")
    assert seen["wrong"] == []  # outlines lie around the boxes that the text names
    assert {i.kind for i in instructions} == {"attribute", "conditional"}
    assert {i.image_id for i in instructions} == {"scene_000000", "scene_000001"}
    names = {c["name"]: c["id"] for c in json.loads((data / "classes.json").read_text())["classes"]}
    checked = 0
    for each in instructions:
        instances = np.asarray(Image.open(data / "instances" / f"{each.image_id}.png"))
        labels = np.asarray(Image.open(data / "masks" / f"{each.image_id}.png"))

        def pixels(class_name, ids, labels=labels, instances=instances):
            mask = labels == names[class_name] if ids is None else np.isin(instances, ids)
            assert mask.any() and (labels[mask] == names[class_name]).mean() > 0.5
            return np.argwhere(mask)

        target = pixels(each.class_name, each.instance_ids)
        assert each.source == "gpt-4o" and each.answer.count("[SEG]") == 1
        ways = [each.query, *each.rephrasings]
        assert len({re.sub(r"\W+", "", way.lower()) for way in ways}) == len(ways) >= 7
        for way in ways:
            assert "[SEG]" not in way and "<image>" not in way and "\n" not in way
            if each.kind == "attribute":
                assert not re.search(rf"\b{each.class_name}s?\b", way.lower())
        if each.kind == "conditional":
            (anchor,) = each.anchors
            beside = pixels(anchor.class_name, anchor.instance_ids)
            assert anchor.box == (*beside.min(0).tolist(), *(beside.max(0) + 1).tolist())
            (y, x), (v, u) = target.mean(0), beside.mean(0)
            truth = dict(left=x < u, right=x > u, higher=y < v, lower=y > v)
            truth |= dict(larger=len(target) > len(beside), smaller=len(target) < len(beside))
            checked += each.claim in truth
            assert truth.get(each.claim, True), each
            assert each.facts["said"]["relation"] == each.claim and len(each.facts["anchors"]) == 1
    assert checked >= 4


def test_what_cannot_be_used_is_listed_with_its_reason(clean):
    out, seen = clean
    lines = rejected(out)
    reasons = {line["reason"] for line in lines}
    assert {
        "claim is false",
        "attribute query names its class",
        "special token in a query",
        "answer does not hold exactly one [SEG]",
        "query is there twice",
        "empty query",
    } <= reasons
    # the server says of each "leftmost" whether it is
    truth = dict(seen["leftmost"])
    kept = {i.query for i in read_instructions(out / "instructions.jsonl") if i.claim == "leftmost"}
    refused = {line["said"]["query"] for line in lines if line["details"].startswith("'leftmost'")}
    assert kept | refused and all(truth[query] for query in kept) and not any(truth[query] for query in refused & kept)


def test_every_request_is_sent_once_and_its_reply_kept_once(clean):
    out, seen = clean
    files = list((out / "llm_replies").rglob("*.json"))
    assert len(seen["asked"]) == len(set(seen["asked"])) == len(seen["answered"]) == len(files)
    assert not list(out.rglob("*.partial"))


def test_the_same_command_asks_nothing_and_writes_the_same(clean, server, data, capsys, monkeypatch):
    out, _ = clean
    before = outputs(out)
    monkeypatch.delenv("OPENAI_API_KEY")  # without questions no key is needed
    main(arguments(data, out))
    assert outputs(out) == before and server.stats()["asked"] == []
    assert "to ask: 0 requests" in capsys.readouterr().out


def test_another_model_seed_or_size_is_asked_anew(clean, server, data, tmp_path):
    out, _ = clean
    server.reset(longest=64)
    given = arguments(data, tmp_path, "--cache", str(out / "llm_replies"), "--kinds", "attribute", "--limit", "1")
    main([*given, "--image_size", "64"])
    stats = server.stats()
    assert len(stats["asked"]) == 4 and stats["wrong"] == []
    server.reset()
    main([*given, "--model", "other"])
    assert len(server.stats()["asked"]) == 4
    main([*given, "--seed", "1"])
    assert len(server.stats()["asked"]) > 4
    assert {i.image_id for i in read_instructions(tmp_path / "instructions.jsonl")} == {"scene_000000"}


def test_order_does_not_depend_on_replies(clean, server, data, tmp_path):
    out, _ = clean
    server.reset(delay=0.3)
    main(arguments(data, tmp_path, "--concurrency", "7"))
    assert outputs(tmp_path) == outputs(out)
    assert server.stats()["most"] == 7  # never more, and they were used
    server.reset(delay=0.01)
    main(arguments(data, tmp_path, "--concurrency", "2", "--cache", str(tmp_path / "again")))
    assert outputs(tmp_path) == outputs(out) and server.stats()["most"] == 2


# Interruptions


def wait_until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_and_called_again_asks_only_what_is_missing(clean, server, data, tmp_path):
    out, seen = clean
    server.reset(delay=0.15)
    with start(*arguments(data, tmp_path)) as first:
        wait_until(lambda: len(server.stats()["answered"]) >= 9)
        first.send_signal(signal.SIGKILL)
    assert not (tmp_path / "instructions.jsonl").exists()
    kept = len(list((tmp_path / "llm_replies").rglob("*.json")))
    assert 5 <= kept < len(seen["asked"])
    server.reset()
    main(arguments(data, tmp_path))
    assert len(server.stats()["asked"]) == len(seen["asked"]) - kept
    assert outputs(tmp_path) == outputs(out)


def test_ctrl_c_keeps_the_replies_under_way(clean, server, data, tmp_path):
    out, seen = clean
    server.reset(delay=0.3)
    with start(*arguments(data, tmp_path)) as first:
        wait_until(lambda: len(server.stats()["answered"]) >= 3)
        first.send_signal(signal.SIGINT)
        printed = first.communicate(timeout=120)
    assert first.returncode == 130 and "Traceback" not in printed[1] and "interrupted: " in printed[1]
    server.reset(asked=server.stats()["asked"])
    main(arguments(data, tmp_path))
    asked = server.stats()["asked"]
    assert len(asked) == len(set(asked)) == len(seen["asked"])  # nothing twice, over both
    assert outputs(tmp_path) == outputs(out)


# Failures that pass


@pytest.mark.parametrize(
    "faults",
    [
        [{"status": 429, "headers": {"Retry-After": "1"}}],
        [{"status": 500}, {"status": 503}, {"status": 408}],
        [{"is": "disconnect"}] * 3,
        [{"is": "{broken"}, {"is": '{"target": 5}'}, {"is": "null"}, {"is": "[" * 100000}, {"is": '["\\ud800"]'}],
        [{"is": "html"}, {"is": "cut off"}, {"is": "fenced"}],
    ],
    ids=["429", "5xx", "disconnect", "broken", "cut off"],
)
def test_failures_that_pass_change_nothing(faults, clean, server, data, tmp_path):
    out, seen = clean
    server.reset(first=faults)
    main(arguments(data, tmp_path))
    assert outputs(tmp_path) == outputs(out)
    stats = server.stats()
    expected = len(seen["asked"]) + len(faults) - sum(fault.get("is") == "fenced" for fault in faults)
    assert len(stats["asked"]) == expected
    if "headers" in faults[0]:
        # those under way when the 429 came are no offence; after it comes a second without any
        assert max(np.diff(stats["times"])) >= 0.9


def test_a_reply_that_does_not_come_is_asked_for_again(server):
    request = Request("m", "", '{"query": "q"}', object_schema(a=text_schema("")), 50)
    server.reset(first=[{"is": "hang", "seconds": 3}], always={"is": '{"a": "x"}'})
    assert llm_client.Endpoint(timeout=0.5).ask(request).content == {"a": "x"}
    assert len(server.stats()["asked"]) >= 2
    server.reset(always={"is": "hang", "seconds": 1})
    with pytest.raises(llm_client.Unanswered, match=r"no answer: within 0\.2 s"):
        llm_client.Endpoint(timeout=0.2, max_retries=1).ask(request)


def test_a_cut_reply_is_asked_for_with_twice_the_room(server, tmp_path):
    server.reset(first=[{"is": "cut off"}], always={"is": '{"a": "x"}'})
    request = Request("m", "", '{"query": "q"}', object_schema(a=text_schema("")), 50)
    assert llm_client.Endpoint().ask(request).content == {"a": "x"}
    server.reset(always={"is": "cut off"})
    with pytest.raises(llm_client.Unanswered, match="cut off: after 200 tokens"):
        llm_client.Endpoint().ask(request)
    assert server.stats()["limits"] == [50, 100, 200]


def test_a_refusal_costs_one_request_and_is_not_repeated(server, data, tmp_path):
    filtered = {"status": 400, "error": {"message": "unsafe picture", "code": "content_filter"}}
    server.reset(first=[{"is": "refusal"}, filtered])
    main(arguments(data, tmp_path, "--concurrency", "1", "--kinds", "attribute"))
    lines = [line for line in rejected(tmp_path) if line["reason"] == "refused"]
    assert [line["details"] for line in lines] == ["I cannot help with that.", "unsafe picture"]
    asked = len(server.stats()["asked"])
    before = outputs(tmp_path)
    main(arguments(data, tmp_path, "--kinds", "attribute"))
    assert len(server.stats()["asked"]) == asked and outputs(tmp_path) == before


def test_one_request_that_fails_for_good_is_reported_and_asked_again_next_time(clean, server, data, tmp_path):
    out, _ = clean
    server.reset(first=[{"status": 400, "error": {"message": "picture too odd"}}])
    main(arguments(data, tmp_path, "--concurrency", "1"))
    (line,) = [line for line in rejected(tmp_path) if line["reason"] == "HTTP 400"]
    assert line["details"] == "picture too odd"
    server.reset()
    main(arguments(data, tmp_path))
    assert outputs(tmp_path) == outputs(out)


# Failures that stay


@pytest.mark.parametrize(
    "fault, said, most",
    [
        ({"status": 401, "error": {"message": "Incorrect key: KEY"}}, "HTTP 401", 4),
        ({"status": 403}, "HTTP 403", 4),
        ({"status": 404, "error": {"message": "no model gpt-4o"}}, "no model gpt-4o", 4),
        ({"status": 429, "error": {"message": "pay first", "code": "insufficient_quota"}}, "pay first", 4),
        ({"status": 429, "headers": {"Retry-After": "7000"}}, "come again in 7000 s", 4),
        ({"status": 500, "error": {"message": "broken for KEY"}}, "HTTP 500: broken for Bearer ***", 26),
        ({"status": 400, "error": {"message": "no json_schema"}}, "no json_schema", 13),
        ({"is": "I would rather talk."}, "reply is no JSON", 39),
        ({"is": "disconnect"}, "no connection", 26),
    ],
)
def test_failures_that_stay_end_in_one_line(fault, said, most, server, data, tmp_path, capsys):
    server.reset(always=fault)
    line = fails(capsys, *arguments(data, tmp_path, "--max_retries", "1"))
    assert said in line and KEY not in line
    # ten failures, and the three requests that other threads had under way, each sent as often as its fault is retried
    assert 1 <= len(server.stats()["asked"]) <= most
    assert not (tmp_path / "instructions.jsonl").exists()


def test_when_nothing_can_be_used_the_line_says_why(server, data, tmp_path, capsys):
    server.reset(always={"is": "refusal"})
    line = fails(capsys, *arguments(data, tmp_path, "--kinds", "attribute"))
    assert "there is no instruction (refused 8)" in line and len(rejected(tmp_path)) == 8


def test_no_server_at_all(data, tmp_path, capsys, server):
    line = fails(capsys, *arguments(data, tmp_path, "--base_url", "http://127.0.0.1:9/v1", "--max_retries", "0"))
    assert "no connection" in line and "http://127.0.0.1:9/v1" in line


# The key


def test_the_key_is_in_no_file_and_no_output(server, data, tmp_path):
    echoes = [{"status": 500, "error": {"message": "sent KEY"}}, {"is": "echo"}, {"is": "echo"}, {"is": "KEY"}]
    server.reset(first=[*echoes, {"status": 400, "error": {"message": "sent KEY"}}])
    with start(*arguments(data, tmp_path, "--max_retries", "1")) as run:
        printed = run.communicate(timeout=120)
    assert run.returncode == 0 and (tmp_path / "instructions.jsonl").exists()
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert sum("***" in text for text in files) >= 3  # two replies, and what was rejected
    assert not [text for text in (*printed, *files) if KEY in text]


@pytest.mark.parametrize("key", ["", "  ", "sk-two\nlines", "sk-schlüssel"])
def test_keys_that_no_header_can_carry(key, server, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    line = fails(capsys, *arguments(data, tmp_path))
    assert "OPENAI_API_KEY" in line and not (key.strip() and key.strip() in line)
    assert server.stats()["asked"] == []


# Money


def test_the_estimate_comes_before_the_first_request(server, data, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    prices = ("--price_in", "2.5", "--price_out", "10")
    main(arguments(data, tmp_path, "--dry_run", *prices))
    said = capsys.readouterr().out
    numbers = re.findall(r"[\d,]+(?= requests| tokens in| of them| out)", said)
    requests, tokens_in, images, tokens_out = (int(number.replace(",", "")) for number in numbers)
    # 16 about pictures of one tile each, three rephrasings for each
    assert requests == 16 + 48 and images == 16 * (85 + 170) and tokens_in > images
    assert f"${(2.5 * tokens_in + 10 * tokens_out) / 1e6:.4f}" in said
    main(arguments(data, tmp_path, "--dry_run"))
    assert "not known without --price_in" in capsys.readouterr().out
    line = fails(capsys, *arguments(data, tmp_path, *prices, "--budget", "0.1"))
    assert "budget 0.1" in line
    assert server.stats()["asked"] == [] and not list(tmp_path.iterdir())


def test_a_budget_also_ends_a_run_that_costs_more_than_expected(server, data, tmp_path, capsys):
    # the server counts 1000 tokens in and 100 out: $1.1 at these prices
    given = arguments(data, tmp_path, "--concurrency", "1", "--price_in", "1000", "--price_out", "1000")
    line = fails(capsys, *given, "--kinds", "attribute", "--limit", "1", "--budget", "3.9")
    assert "budget 3.9" in line and "would be needed" in line
    run = Run(ReplyCache(tmp_path), Prices(1000, 1000), 3.9, llm_client.Endpoint, 1)
    schema = object_schema(rephrasings=list_schema(text_schema("")))
    requests = {str(n): Request("m", "", json.dumps({"query": str(n)}), schema, 9) for n in range(9)}
    with pytest.raises(ValueError, match=r"\$4\.4000 are spent"):
        run.replies(requests, "")
    assert len(server.stats()["asked"]) == 4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_asks_first(server, data, tmp_path, capsys, monkeypatch):
    given = arguments(data, tmp_path, "--kinds", "attribute", "--limit", "1")
    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    assert "nothing was asked" in fails(capsys, *given)
    assert server.stats()["asked"] == []
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    main(given)
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    main([*given, "--yes", "--seed", "1"])
    assert len(server.stats()["asked"]) > 4


# The rest


def test_instructions_of_a_file_are_rephrased(clean, server, data, tmp_path, capsys):
    out, _ = clean
    instructions = read_instructions(out / "instructions.jsonl")[:3]
    bare = tmp_path / "bare.jsonl"
    lines = (out / "instructions.jsonl").read_text().splitlines()[:3]
    bare.write_text("".join(json.dumps({**json.loads(line), "rephrasings": []}) + "\n" for line in lines))
    main(arguments(data, tmp_path, "--kinds", "rephrasings", "--instructions", str(bare)))
    assert read_instructions(tmp_path / "instructions.jsonl") == instructions
    assert len(server.stats()["asked"]) == 3


def test_damaged_replies_are_asked_for_again(server, data, tmp_path):
    main(arguments(data, tmp_path, "--kinds", "attribute"))
    files = sorted((tmp_path / "llm_replies").rglob("*.json"))
    before = outputs(tmp_path)
    for file, content in zip(files, (b"", b'{"content": {"a": 1}}', b"\xff\xfe", b"[]"), strict=False):
        file.write_bytes(content)
    server.reset()
    main(arguments(data, tmp_path, "--kinds", "attribute"))
    assert len(server.stats()["asked"]) == 4 and outputs(tmp_path) == before


def test_bad_arguments_end_in_one_line(server, data, tmp_path, capsys, monkeypatch):
    good = arguments(data, tmp_path)
    for more, said in (
        (["--limit", "0"], "limit"),
        (["--concurrency", "x"], "concurrency"),
        (["--timeout", "nan"], "timeout"),
        (["--kinds", "poems"], "poems"),
        (["--price_in", "1"], "either both or none"),
        (["--budget", "1"], "needs --price_in"),
        (["--kinds", "rephrasings"], "that needs it"),
        (["--instructions", "x.jsonl"], "goes with"),
        (["--kinds", "rephrasings", "--instructions", str(tmp_path / "no.jsonl")], "no.jsonl: no such file"),
        (["--split_lists", str(tmp_path / "no")], "no such file"),
        (["--base_url", "ftp://x:secret@y"], "not of the form"),
        (["--base_url", "http://x:port/v1"], "not of the form"),
        (["--base_url", "http://me:secret@x/v1"], "not of the form"),
        (["--base_url", "http://x/v1?key=secret"], "not of the form"),
    ):
        line = fails(capsys, *good, *more)
        assert said in line and "secret" not in line, line
    assert "no such folder" in fails(capsys, str(tmp_path / "nowhere"), *good[1:])
    assert "is a folder" in fails(capsys, *good, "--out", str(data))
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "pip install" in fails(capsys, *good)
    assert server.stats()["asked"] == [] and os.listdir(tmp_path) == []
