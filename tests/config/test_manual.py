"""config.yaml is the example and the manual: it loads as shipped, with every key taken in, and forgets no key."""

import re
from pathlib import Path

import jsonschema
import pytest
import trustme

from aigw.config import schema, snapshot, store
from aigw.config.loader import Loader
from aigw.config.values import Plain

MANUAL = Path(__file__).parents[2] / "config.yaml"
ENVIRON = {"OPENAI_API_KEY": "sk-openai", "ANTHROPIC_API_KEY": "sk-ant"}


def uncommented() -> str:
    """The manual with every commented key line taken in."""
    return re.sub(r"^( *)#(?=[^ \n#])", r"\1", MANUAL.read_text(), flags=re.MULTILINE)


def as_json(value: object) -> object:
    """What an editor's YAML 1.2 reader makes of the loader's data."""
    if isinstance(value, dict):
        return {key: as_json(child) for key, child in value.items()}
    if isinstance(value, list):
        return [as_json(child) for child in value]
    if isinstance(value, Plain):
        if value in ("true", "false"):
            return value == "true"
        if value in ("", "~", "null"):
            return None
        if re.fullmatch(r"-?[0-9]+", value):
            return int(value)
        return float(value) if re.fullmatch(r"-?[0-9]+\.[0-9]*", value) else str(value)
    return value


def raw(text: str) -> object:
    return Loader(text, "config.yaml", lambda value: value).data


@pytest.fixture
def base(tmp_path: Path) -> Path:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "internal-ca.pem"))
    server = authority.issue_cert("localhost")
    server.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    server.private_key_pem.write_to_path(str(tmp_path / "server-key.pem"))
    return tmp_path


def test_as_shipped() -> None:
    loaded = store.load(MANUAL, {})
    assert loaded.warnings == []
    assert loaded.files == []
    kept = {"path": str(MANUAL.parent / "aigw-usage.db"), "retention": 90 * 86400.0}
    assert loaded.document == store.builtin({}).document | {"usage_store": kept}
    assert snapshot.compile(loaded.document, 1).gateways["default"].find_model("anything") is not None


def test_every_key_taken_in(base: Path) -> None:
    loaded = store.parse(uncommented(), name="config.yaml", base=base, environ=ENVIRON)
    assert snapshot.compile(loaded.document, 1).upstreams["vllm"].targets[0].limits


def test_every_key_is_documented() -> None:
    stated = set()

    def walk(value: object, pattern: tuple[str, ...]) -> None:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for step, child in children:
            exact = ".".join((*pattern, str(step)))
            here = (*pattern, str(step) if exact in keys else "*")
            stated.add(".".join(here))
            walk(child, here)

    keys = schema.keys()
    walk(raw(uncommented()), ())
    missing = {key for key in keys - stated if not in_a_shared_model(key, keys & stated)}
    assert missing == set()


def in_a_shared_model(key: str, stated: set[str]) -> bool:
    """Limits, retry and listeners are explained once: one place that states the key is enough."""
    if key.startswith("admin.listen."):
        return key.replace("admin.listen.", "listen.*.") in stated
    for shared in ("limits", "retry"):
        _, found, rest = key.partition(f".{shared}.")
        if found:
            return any(other.endswith(f".{shared}.{rest}") for other in stated)
    return False


@pytest.mark.parametrize("text", [MANUAL.read_text(), uncommented()], ids=["shipped", "uncommented"])
def test_the_json_schema_accepts_it(text: str) -> None:
    validator = jsonschema.Draft202012Validator(schema.json_schema())
    assert [error.message for error in validator.iter_errors(as_json(raw(text)))] == []


def test_defaults_shown_are_the_defaults(base: Path) -> None:
    """The sections of which the manual says no "example": taking them in changes nothing."""
    shown = raw(uncommented())
    for key in ("timeouts", "bounds", "drain", "answer_headers", "access_log", "usage_store", "workers"):
        with_key, _ = schema.validate({"gateways": {}, key: shown[key]})
        without, _ = schema.validate({"gateways": {}})
        assert with_key == without, key


def test_the_json_schema_is_one_and_described() -> None:
    document = schema.json_schema()
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for model in (document, *document["$defs"].values()):
        for name, entry in model["properties"].items():
            assert entry.get("description"), name
