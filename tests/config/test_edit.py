"""Edits of the config's text: what new text looks like, what an operation means, what is refused and how."""

import difflib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cpu import untraced

from aigw.config import edit
from aigw.config.edit.plain import same, typed
from aigw.config.loader import Loader
from aigw.config.problem import ConfigError
from aigw.config.problem import Path as Steps
from aigw.config.values import Plain

MANUAL = Path(__file__).parents[2] / "config.yaml"


def style(name: str) -> str:
    return (Path(__file__).parent / "styles" / f"{name}.yaml").read_bytes().decode()


def read(text: str) -> Any:
    loader = Loader(text, "config.yaml", lambda value: value)
    assert loader.problems == []
    return loader.data


def as_json(value: Any) -> Any:
    """What an API shows of the loader's data."""
    if isinstance(value, dict):
        return {key: as_json(child) for key, child in value.items()}
    return [as_json(child) for child in value] if isinstance(value, list) else typed(value)


def changes(old: str, new: str) -> list[str]:
    """The lines that differ, as `diff` shows them."""
    diff = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
    return [line for line in diff if not line.startswith(("---", "+++", "@@"))]


# What new text looks like


@pytest.mark.parametrize(
    ("name", "path", "value", "expected"),
    [
        (
            "mixed",
            ("upstreams", "new"),
            {"provider": "mock", "api_key": "${NEW}"},
            """\
+  new:
+    provider: mock
+    api_key: "${NEW}"
""",
        ),
        (
            "block",
            ("gateways", "default", "keys", "carol"),
            {"sha256": "0", "models": ["*"], "limits": [{"requests": "100/1m", "per": "key"}]},
            """\
+      carol:
+        sha256: "0"
+        models:
+          - "*"
+        limits:
+          - requests: 100/1m
+            per: key
""",
        ),
        (
            "four-blanks",
            ("gateways", "default", "rules", 2),
            {"name": "new", "path": "/new", "methods": ["GET"]},
            """\
+            - name: new
+              path: /new
+              methods:
+                  - GET
""",
        ),
        ("dashes-flush", ("upstreams", "vllm", "targets", 1, "weight"), 5, "+      weight: 5\n"),
        ("dashes-odd", ("gateways", "default", "rules", 2), {"name": "x"}, "+      -   name: x\n"),
        (
            "empty-sections",
            ("gateways", "default", "rules", 0),
            {"name": "api", "path": "/a"},
            "-    rules: []\n+    rules:\n+      - {name: api, path: /a}\n",
        ),
        ("empty-sections", ("upstreams", "new"), {"provider": "mock"}, "+  new: {provider: mock}\n"),
        (
            "empty-sections",
            ("gateways", "third", "keys", "x", "disabled"),
            True,
            "+  third:\n+    keys:\n+      x: {disabled: true}\n",
        ),
        ("flow-wide", ("gateways", "default", "models", "fast"), "vllm", "+        fast: vllm,\n"),
        (
            "json",
            ("gateways", "default", "models", "x"),
            "y",
            """\
-                "fast": {"upstream": "vllm", "model": "llama-3.1-8b"}
+                "fast": {"upstream": "vllm", "model": "llama-3.1-8b"},
+                "x": "y"
""",
        ),
        (
            "multi-line-text",
            ("upstreams", "a", "headers", "x-folded"),
            "short",
            """\
-      x-folded: >-   # (of upstreams.a.headers.x-folded)
-        one line
-        and another
-
-        # no comment
+      x-folded: short   # (of upstreams.a.headers.x-folded)
""",
        ),
        (
            "comments-trailing",
            ("upstreams", "vllm"),
            {"provider": "mock", "x": {"v": {"w": 1}}},
            """\
-  vllm: {provider: openai}  # ours (of upstreams.vllm)
+  vllm: {provider: mock, x: {v: {w: 1}}}  # ours (of upstreams.vllm)
""",
        ),
        ("markers", ("listen",), "127.0.0.1:9000", "+listen: 127.0.0.1:9000\n"),
        (
            "wrapped-flow",
            ("upstreams", "vllm", "targets", 2),
            {"url": "http://c:1"},
            """\
-                                     {url: "http://b:1"}]}
+                                     {url: "http://b:1"}, {url: "http://c:1"}]}
""",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)
def test_new_text_looks_like_its_neighbours(name: str, path: Steps, value: object, expected: str) -> None:
    text = style(name)
    assert changes(text, edit.set_item(text, path, value)) == expected.splitlines()


def test_a_long_line_in_brackets_is_wrapped() -> None:
    text = style("long-lines")
    new = edit.set_item(text, ("gateways", "default", "models", "z"), "vllm")
    assert changes(text, new)[1].endswith("y: vllm,")
    assert changes(text, new)[2] == "+    z: vllm}}"
    value = {"provider": "mock", "headers": {f"x-{index}": "0123456789" for index in range(8)}}
    assert max(map(len, edit.set_item("u:\n  a: {provider: mock}\n", ("u", "b"), value).splitlines())) <= 120


@pytest.mark.parametrize("name", ["json", "json-compact"])
def test_json_stays_json(name: str) -> None:
    text = style(name)
    value = {"a": ["x", 1, None, True], "b/c": {"d": 0.5, "e": "über \U0001f600 \n \x7f"}}
    for path in ((), ("upstreams",), ("gateways", "default", "models"), ("gateways", "default")):
        new = edit.set_item(text, (*path, "new"), value)
        assert as_json(read(new)) == json.loads(new)


def test_quotes_are_those_of_the_document() -> None:
    assert edit.set_item("a: 'x'\nb: 'y'\n", ("c",), "z") == "a: 'x'\nb: 'y'\nc: 'z'\n"
    assert edit.set_item("a: 'x'\n", ("a",), "it's") == "a: 'it''s'\n"
    assert edit.set_item("a: 'x'\n", ("a",), "two\nlines") == 'a: "two\\nlines"\n'
    assert edit.set_item('a: "x"  # c\nb: y\n', ("a",), "z") == 'a: "z"  # c\nb: y\n'


@pytest.mark.parametrize(
    "value",
    [
        *("5", "-5", "0x1F", "0o17", "0b1", "1e5", "1.5", "1_000", "12:30", "190:20:30", "010", ".5", ".inf", ".nan"),
        *("+1", "true", "True", "yes", "NO", "on", "off", "y", "null", "Null", "~", "", "=", "<<", "2027-01-31"),
        *("2027-01-31T18:00:00Z", "*", "*x", "&x", "!x", "%x", "@x", "`x", "|", ">", "-", "- x", "?", "? x", ":", "x:"),
        *("x: y", "x #y", "#x", "a, b", "[x", "{x", "]", "}", "'", '"', "${X}", "$${", " x", "x ", "\n", "x\n", "\t"),
        *(
            "\x00",
            "\x1b",
            "\x7f",
            "\x85",
            "\u2028",
            "\ufeff",
            "\ufffe",
            "\U0001f600",
            "...",
            "---",
            "\\",
            "\\n",
            "\r\n",
        ),
    ],
)
def test_what_could_be_read_otherwise_is_quoted(value: str) -> None:
    for text, path in [
        ("a: 1\n", ("a",)),
        ("{a: 1}\n", ("a",)),
        ("a: [1]\n", ("a", 0)),
        ("a:\n- 1\n", ("a", 0)),
        ("a: {b: 1}\n", ("a", "b")),
    ]:
        new = edit.set_item(text, path, value)
        found = read(new)["a"]
        while isinstance(found, dict | list):
            found = found["b"] if isinstance(found, dict) else found[0]
        assert found == value
        assert type(found) is str, f"unquoted in {new!r}"
    if value and "${" not in value:
        assert read(edit.set_item("a: 1\n", (value,), 2)) == {"a": "1", value: "2"}
        assert read(edit.set_item("b: {a: 1}\n", ("b", value), 2)) == {"b": {"a": "1", value: "2"}}


@pytest.mark.parametrize(
    "value", ["gpt-4o", "http://10.0.0.7:8000/v1", "100/1m", "30s", "20%", "32KiB", "a b", "a.b/c"]
)
def test_what_cannot_needs_no_quotes(value: str) -> None:
    assert edit.set_item("a: 1\n", ("a",), value) == f"a: {value}\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.15, "0.15"), (1e-7, "0.0000001"), (1e22, "10000000000000000000000"), (3.0, "3.0"), (-2, "-2")),
        *((True, "true"), (False, "false"), (None, "null"), ([], "[]"), ({}, "{}")),
        *((Plain("30s"), "30s"), (Plain("5"), "5"), (Plain(""), "null")),
    ],
)
def test_numbers_and_words(value: object, text: str) -> None:
    assert edit.set_item("a: x\n", ("a",), value) == f"a: {text}\n"


def test_equal_values_keep_their_text() -> None:
    text = "a: {b: -0, c: 1.50, d: ~, e: 'x', f: 30s, g: 010, h: \"${X}\", i: }\n"
    value = {"b": 0, "c": 1.5, "d": None, "e": "x", "f": "30s", "g": "010", "h": "${X}", "i": None}
    assert edit.set_item(text, ("a",), value) == text
    assert edit.set_item("a: 5\n", ("a",), "5") == 'a: "5"\n'
    assert edit.set_item("a: true\n", ("a",), 1) == "a: 1\n"
    assert edit.set_item("a: x\n", ("a",), "y # z") == 'a: "y # z"\n'


# What the operations mean


def test_merge_is_rfc_7396() -> None:
    """The examples of its appendix A that have mappings at the top."""
    for document, patch, wanted in [
        ('{"a":"b"}', {"a": "c"}, {"a": "c"}),
        ('{"a":"b"}', {"b": "c"}, {"a": "b", "b": "c"}),
        ('{"a":"b"}', {"a": None}, {}),
        ('{"a":"b","b":"c"}', {"a": None}, {"b": "c"}),
        ('{"a":["b"]}', {"a": "c"}, {"a": "c"}),
        ('{"a":"c"}', {"a": ["b"]}, {"a": ["b"]}),
        ('{"a":{"b":"c"}}', {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ('{"a":[{"b":"c"}]}', {"a": [1]}, {"a": [1]}),
        ('{"e":null}', {"a": 1}, {"e": None, "a": 1}),
        ('{"x":1}', {"a": {"bb": {"ccc": None}}}, {"x": 1, "a": {"bb": {}}}),
    ]:
        assert json.loads(edit.merge(document, (), patch)) == wanted


def test_merge_creates_what_is_not_there_and_empties_what_is_left() -> None:
    assert edit.merge("a:\n", ("a",), {"b": 1}) == "a: {b: 1}\n"
    assert edit.merge("a: 1\n", ("b", "c"), {"d": "x"}) == "a: 1\nb:\n  c: {d: x}\n"
    assert edit.merge("a:\n  b: 1  # b\n  # about a\n", ("a",), {"b": None}) == "a: {}\n  # about a\n"
    assert edit.merge("a: {b: 1}\n", ("a",), {}) == "a: {b: 1}\n"


def test_lists_grow_and_shrink_item_by_item() -> None:
    text = "r:\n  - name: a  # 1\n    x: 1\n  - name: b  # 2\n    x: 1\n  - name: c  # 3\n    x: 1\n"
    a, b, c = read(text)["r"]
    assert edit.set_item(text, ("r",), [a, c]) == text.replace("  - name: b  # 2\n    x: 1\n", "")
    assert edit.set_item(text, ("r",), [a, {**b, "x": 2}, c]) == text.replace("# 2\n    x: 1", "# 2\n    x: 2")
    assert edit.set_item(text, ("r",), [b]) == "r:\n  - name: b  # 2\n    x: 1\n"
    assert edit.set_item(text, ("r",), [{"name": "d"}, a, b, c]) == text.replace("r:\n", "r:\n  - name: d\n")
    assert edit.set_item(text, ("r", 3), {"name": "d"}) == text + "  - name: d\n"
    assert edit.delete_item(text, ("r", 0)) == text.replace("  - name: a  # 1\n    x: 1\n", "")
    assert edit.set_item("r: [a, b, c]\n", ("r",), ["a", "x", "c", "d"]) == "r: [a, x, c, d]\n"
    assert edit.set_item("r: [a, b, c]\n", ("r",), ["z", "a", "c"]) == "r: [z, a, c]\n"


def test_long_lists_that_have_nothing_in_common_go_position_by_position() -> None:
    old, new = [f"a{index}" for index in range(1100)], [f"b{index}" for index in range(1000)]
    text = "r:\n" + "".join(f"- {item}\n" for item in old)
    assert edit.set_item(text, ("r",), new) == "r:\n" + "".join(f"- {item}\n" for item in new)


def test_the_whole_document() -> None:
    text = "# head\na: 1  # one\n\n# about b\nb: {c: x}\n# end\n"
    assert edit.set_item(text, (), {"a": 2, "b": {"c": "x"}}) == text.replace("a: 1", "a: 2")
    assert edit.set_item(text, (), {}) == "# head\n{}\n\n# end\n"
    assert same(read(edit.set_item(text, (), {"z": [1]})), {"z": [1]})
    assert edit.set_item("{a: 1}", (), {"b": {}}) == "{b: {}}"


def test_deleting_takes_what_is_about_the_item_and_nothing_else() -> None:
    text = MANUAL.read_text()
    new = edit.delete_item(text, ("upstreams", "mock"))
    assert changes(text, new) == ["-upstreams:", "+upstreams: {}", "-  mock: {provider: mock}"]
    new = edit.set_item(text, ("gateways", "default", "models"), {"gpt-4o": "mock"})
    assert changes(text, new) == ['-      "*": mock', "+      gpt-4o: mock"]


def test_a_comment_that_is_about_more_than_the_item_stays() -> None:
    ruled = "a: 1\n# ----\n# b and more\nb: 2\nc: 3\n"
    assert edit.delete_item(ruled, ("b",)) == "a: 1\n# ----\n# b and more\nc: 3\n"
    assert edit.delete_item("# head\na: 1\n# about b\nb: 2\n", ("a",)) == "# head\n# about b\nb: 2\n"
    assert edit.delete_item("a:\n  # all\n  b: 1\n  c: 2\n", ("a", "b")) == "a:\n  # all\n  c: 2\n"
    assert edit.delete_item("a: 1\n# about b\nb: 2\nc: 3\n", ("b",)) == "a: 1\nc: 3\n"


def test_the_first_line_behind_a_dash() -> None:
    assert edit.delete_item("r:\n- a: 1\n  b: 2\n", ("r", 0, "a")) == "r:\n- b: 2\n"
    text = "r:\n- a: 1  # a\n  # about b\n  b: 2\n  c: 3\n"
    assert edit.delete_item(text, ("r", 0, "a")) == "r:\n-\n  # about b\n  b: 2\n  c: 3\n"
    assert edit.set_item(text, ("r", 0), {"c": "x"}) == "r:\n- c: x\n"
    assert edit.set_item("r:\n- - a\n  - b\n", ("r", 0), ["z", "a", "b"]) == "r:\n- - z\n  - a\n  - b\n"
    assert edit.set_item("r:\n  - a\n", ("r",), ["z", "a"]) == "r:\n  - z\n  - a\n"


def test_blank_lines_between_entries_are_kept_up() -> None:
    text = "a:\n  x: 1\n\nb:\n  x: 2\n"
    new = edit.set_item(text, ("c",), {"x": 3})
    assert new == text + "\nc:\n  x: 3\n"
    assert edit.delete_item(new, ("c",)) == text
    assert edit.delete_item(new, ("b",)) == "a:\n  x: 1\n\nc:\n  x: 3\n"
    assert edit.set_item("r:\n- a\n\n- b\n", ("r",), ["z", "a", "b"]) == "r:\n- z\n\n- a\n\n- b\n"


# Aliases


def test_an_alias_that_changes_is_written_out() -> None:
    text = style("anchors")
    new = edit.merge(text, ("upstreams", "b"), {"timeouts": {"idle": "5s"}})
    assert changes(text, new) == ["-    timeouts: *slow", "+    timeouts: {first_byte: 900s, idle: 5s}"]
    new = edit.set_item(text, ("gateways", "default", "models", "y"), "b")
    assert changes(text, new) == ["-      y: *name", "+      y: b"]


def test_what_others_repeat_is_not_changed() -> None:
    text = style("anchors")
    expected = (
        "the value in line 4 is shared: what says *slow repeats it and must not change with it; first write the value"
        " out there (lines 9, 10)"
    )
    for refused in (
        lambda: edit.merge(text, ("upstreams", "a"), {"timeouts": {"idle": "5s"}}),
        lambda: edit.delete_item(text, ("upstreams", "a")),
        lambda: edit.delete_item(text, ("upstreams", "a", "timeouts", "idle")),
        lambda: edit.set_item(text, ("upstreams", "a", "timeouts", "new"), 1),
        lambda: edit.set_item(text, ("upstreams", "a"), "x"),
    ):
        with pytest.raises(edit.EditError) as caught:
            refused()
        assert str(caught.value) == expected


def test_an_anchor_that_nobody_else_repeats_is_no_hindrance() -> None:
    assert edit.set_item("a: {b: &x 1, c: *x}\nd: 2\n", ("a",), {"e": 1}) == "a: {e: 1}\nd: 2\n"
    assert edit.set_item("a: &x 1\n", ("a",), 2) == "a: &x 2\n"
    assert edit.set_item("a: &x\n  b: 1\n", ("a",), 2) == "a: 2\n"
    assert edit.delete_item("a: &x {b: 1}\nc: 1\n", ("a",)) == "c: 1\n"
    assert edit.set_item("a: &x 1\nb: *x\n", (), {"a": 2, "b": 2}) == "a: &x 2\nb: 2\n"


# What is refused

TEXT = style("mixed")


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        (
            edit.set_item,
            (TEXT, ("gateways", "default", "models", "gpt-4o", "fallback"), ["x"]),
            "gateways.default.models.gpt-4o (line 14) is a scalar and holds no members; replace it as a whole",
        ),
        (
            edit.merge,
            (TEXT, ("gateways", "default", "models", "gpt-4o"), {"fallback": ["x"]}),
            "gateways.default.models.gpt-4o (line 14) is no mapping, so no member of it can be patched; replace it as a"
            " whole",
        ),
        (
            edit.set_item,
            (TEXT, ("upstreams", "vllm", "targets", 5), {}),
            "upstreams.vllm.targets (line 6) has 2 items, so there is no place 5",
        ),
        (
            edit.set_item,
            (TEXT, ("upstreams", "vllm", "targets", "a"), {}),
            "upstreams.vllm.targets (line 6) is a list, whose items go by position and not by name",
        ),
        (
            edit.set_item,
            (TEXT, ("upstreams", 0), {}),
            "upstreams (line 1) is a mapping, whose members go by name and not by position",
        ),
        (edit.delete_item, (TEXT, ("gateways", "nope", "models")), "there is no gateways.nope.models"),
        (edit.delete_item, (TEXT, ("upstreams", "vllm", "targets", 2)), "there is no upstreams.vllm.targets[2]"),
        (edit.delete_item, (TEXT, ()), "the document itself cannot be deleted"),
        (edit.set_item, (TEXT, (), ["a"]), "a config is a mapping"),
        (edit.set_item, (TEXT, ("a",), "\ud800"), "a: a text holds half a surrogate pair, which is no character"),
        (edit.set_item, (TEXT, ("a",), float("nan")), "a: a number must be finite"),
        (edit.set_item, (TEXT, ("a",), 10**400), "a: a number has at most 300 digits"),
        (edit.set_item, (TEXT, ("a",), {"b": {1}}), "a: a value must be what JSON can hold; it is of type set"),
        (edit.set_item, (TEXT, ("a",), {"": 1}), "a: a key must be text, and not empty"),
        (edit.set_item, (TEXT, (), {"x" * 1001: 1}), "a key is longer than 1000 characters"),
        (edit.set_item, (TEXT, ("${A}",), 1), '["${A}"]: keys are not interpolated, values only; write the key out'),
        (
            edit.set_item,
            ("? a\n", ("a",), 1),
            "the key in line 1 has a ? and no colon; write it as `key: value` first",
        ),
        (
            edit.set_item,
            ("a: |\n  text", ("b",), 1),
            "this file is written in a way that the edit would change more than it should; edit the file by hand",
        ),
    ],
)
def test_refused(operation: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(edit.EditError) as caught:
        operation(*arguments)
    assert str(caught.value) == message


def test_too_deep() -> None:
    value: Any = {}
    for _ in range(40):
        value = {"a": [value]}
    with pytest.raises(edit.EditError, match=r"^a: a value is nested more than 32 deep; no config needs that$"):
        edit.set_item("a: 1\n", ("a",), value)
    value = 1
    for _ in range(30):
        value = {"a": value}
    with pytest.raises(edit.EditError, match=r"^the file would then be wrong in line 1: nested more than 32 deep"):
        edit.set_item("a: {b: {c: {d: 1}}}\n", ("a", "b", "c", "d"), value)


def test_what_the_loader_refuses_is_not_edited() -> None:
    for text, message in [
        ("a: 1\na: 2\n", "duplicate key"),
        ("", "the file is empty"),
        ("a: [\n", "a value is missing here"),
    ]:
        with pytest.raises(ConfigError) as caught:
            edit.set_item(text, ("a",), 1)
        assert message in str(caught.value)


def test_no_secret_in_a_refusal() -> None:
    secret = "sk-canary-0123456789abcdef"
    text = f"upstreams: {{a: {{api_key: &k {secret}}}, b: {{api_key: *k}}}}\n"
    for path in (("upstreams", "a"), ("upstreams", "a", "api_key"), ("upstreams", "a", "api_key", secret)):
        with pytest.raises(edit.EditError) as caught:
            edit.set_item(text, path, {secret: "\ud800"} if path[-1] == secret else secret + "x")
        assert secret not in str(caught.value)


# Cost


KEYS = [f'k{index}: {{sha256: "{index:064x}", models: [gpt-4o, "claude-*"]}}' for index in range(10_000)]
HEAD = "gateways:\n  default:\n    keys:"


@pytest.mark.unmeasured
def test_one_of_ten_thousand_keys_is_edited_in_seconds() -> None:
    text = HEAD + "\n" + "".join(f"      {key}\n" for key in KEYS)
    with untraced():
        began = time.thread_time()
        new = edit.set_item(text, ("gateways", "default", "keys", "new"), {"sha256": "x"})
        assert time.thread_time() - began < 20, "about 1.5 s"
    assert new == text + "      new: {sha256: x}\n"


@pytest.mark.unmeasured
def test_ten_thousand_keys_in_one_line_are_replaced_in_seconds() -> None:
    """Where every step that looks through a line would take minutes in total."""
    text = HEAD + " {" + ", ".join(KEYS) + "}\n"
    value = {f"k{index}": {"sha256": "x", "disabled": True} for index in range(10_000)}
    with untraced():
        began = time.thread_time()
        new = edit.set_item(text, ("gateways", "default", "keys"), value)
        assert time.thread_time() - began < 20, "about 1.5 s"
        assert same(read(new), {"gateways": {"default": {"keys": value}}})


@pytest.mark.unmeasured
def test_equal_lists_of_ten_thousand_items_are_compared_in_seconds() -> None:
    items = [{"name": f"r{index}", "path": f"/{index}"} for index in range(10_000)]
    text = "rules:\n" + "".join(f"- {{name: {item['name']}, path: {item['path']}}}\n" for item in items)
    with untraced():
        began = time.thread_time()
        new = edit.set_item(text, ("rules",), items[::-1])
        new = edit.set_item(new, ("rules",), items[::2])
        assert time.thread_time() - began < 30, "about 2 s"
    assert new == "rules:\n" + "".join(f"- {{name: {item['name']}, path: {item['path']}}}\n" for item in items[::2])
