"""The image and the services of docker-compose.yaml, as far as files can prove them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from kb import settings_docs
from kb.api.metrics import _PROCESS, _OfDatabase
from kb.cli.main import kb
from kb.metrics import REGISTRY

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yaml"
DOCKERFILE = ROOT / "Dockerfile"
HAPROXY = ROOT / "deploy" / "haproxy.cfg"

# ${NAME}, ${NAME:-default}, ${NAME:?message}; $$ is a dollar sign.
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z0-9_]+)(?::(-|\?)([^{}]*))?\}")
PINNED = re.compile(
    r"[a-z0-9./-]+:(?!latest\b)[A-Za-z0-9._-]*\d[A-Za-z0-9._-]*(@sha256:[0-9a-f]{64})?"
)
ONE_SHOT = {"migrate", "minio-bucket"}
OUR_OWN = {"api", "api-2", "worker", "beat", "migrate"}
SETTINGS = {s.name for group in settings_docs.groups() for s in group.settings}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file, its merges resolved, its variables as they stand."""
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Service name -> definition."""
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def instructions(name: str) -> list[str]:
    """Arguments of every such instruction of the Dockerfile, continued lines joined."""
    text = "\n".join(
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    )
    joined = text.replace("\\\n", " ").splitlines()
    return [line.split(None, 1)[1].strip() for line in joined if line.split(" ")[0] == name]


def with_defaults(value: str, **given: str) -> str:
    """A value as docker compose reads it, with these variables set."""

    def one(match: re.Match[str]) -> str:
        name, kind, default = match.groups()
        return given.get(name, default if kind == "-" else "")

    return VARIABLE.sub(one, value).replace("$$", "$")


def strings(value: Any) -> Iterator[str]:
    """Every string in a YAML value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def test_the_file_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec.json").read_text(encoding="utf-8"))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(compose)
    assert [f"{list(error.path)}: {error.message}" for error in errors] == []


def test_the_specification_refuses_what_is_wrong(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec.json").read_text(encoding="utf-8"))
    wrong = json.loads(json.dumps(compose))
    wrong["services"]["api"]["helthcheck"] = {}
    wrong["services"]["redis"]["deploy"]["resources"]["limits"]["memory"] = {"max": 1}
    found = {list(e.path)[1] for e in jsonschema.Draft202012Validator(schema).iter_errors(wrong)}
    assert found == {"api", "redis"}


def test_the_services_that_were_promised_are_there(services: dict[str, dict[str, Any]]) -> None:
    profiles = {name: tuple(service.get("profiles", ())) for name, service in services.items()}
    always = {name for name, asked in profiles.items() if not asked}
    assert always == {"api", "worker", "beat", "migrate", "postgres", "redis", "qdrant"}
    cluster = {name for name, asked in profiles.items() if asked == ("cluster",)}
    assert cluster == {"qdrant-2", "qdrant-3", "api-2", "balancer"}
    assert {name for name, asked in profiles.items() if asked == ("minio",)} == {
        "minio",
        "minio-bucket",
    }
    monitoring = {name for name, asked in profiles.items() if asked == ("monitoring",)}
    assert monitoring == {"prometheus", "grafana"}


def test_every_image_is_pinned(services: dict[str, dict[str, Any]]) -> None:
    images = {name: with_defaults(service["image"]) for name, service in services.items()}
    bases = [
        with_defaults(line.split()[0], PYTHON_IMAGE=_python_image())
        for line in instructions("FROM")
    ]
    inline = [
        line.split()[1]
        for service in services.values()
        for line in service.get("build", {}).get("dockerfile_inline", "").splitlines()
        if line.startswith("FROM ")
    ]
    assert len(bases) == 2
    assert len(inline) == 2
    for image in [*images.values(), *bases, *inline]:
        assert PINNED.fullmatch(image), f"{image} is not pinned to a version"
    assert {"python:3.11.13-slim-bookworm"} == {*bases, inline[0]}


@pytest.mark.parametrize("image", ["redis", "redis:latest", "redis:alpine", "kb:${TAG}"])
def test_a_floating_tag_does_not_count_as_pinned(image: str) -> None:
    assert not PINNED.fullmatch(image)


def test_every_service_is_bounded_checked_and_not_root(
    services: dict[str, dict[str, Any]],
) -> None:
    for name, service in services.items():
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} <= limits.keys(), name
        user, _, group = service["user"].partition(":")
        assert int(user) > 0, name
        assert int(group) > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"]["max-size"], name
        check = service["healthcheck"]
        if name in ONE_SHOT:
            assert check == {"disable": True}, name
            assert service["restart"].startswith("on-failure"), name
        else:
            assert check["test"][0] in ("CMD", "CMD-SHELL"), name
            assert {"interval", "timeout", "retries", "start_period"} <= check.keys(), name
            assert service["restart"] == "unless-stopped", name


def test_every_dependency_exists_and_is_waited_for(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            # A service that is always there must not need one of a profile.
            assert set(services[other].get("profiles", ())) <= set(service.get("profiles", ()))
            wanted = "service_completed_successfully" if other in ONE_SHOT else None
            assert wanted in (None, how["condition"]), f"{name} needs {other}"
    for name in OUR_OWN - {"migrate"}:
        assert services[name]["depends_on"].keys() == {"migrate", "redis", "qdrant"}


def test_networks_and_volumes_are_declared_and_used(compose: dict[str, Any]) -> None:
    services = compose["services"].values()
    networks = {network for service in services for network in service["networks"]}
    assert networks == compose["networks"].keys()
    mounts = [m for service in services for m in service.get("volumes", [])]
    named = {m.split(":")[0] for m in mounts if not m.startswith(".")}
    assert named == compose["volumes"].keys()
    for mount in mounts:
        if mount.startswith("."):
            assert (ROOT / mount.split(":")[0]).is_file(), mount


def test_only_the_api_is_reachable_from_outside(services: dict[str, dict[str, Any]]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published.keys() == {"api", "balancer", "grafana"}
    for ports in published.values():
        assert [with_defaults(port).startswith("127.0.0.1:") for port in ports] == [True]
    assert yaml.safe_load(COMPOSE.read_text())["networks"]["back"] == {"internal": True}


def test_every_variable_of_kb_that_is_set_exists(services: dict[str, dict[str, Any]]) -> None:
    for name in OUR_OWN:
        given = {key for key in services[name]["environment"] if key.startswith("KB_")}
        assert given, name
        assert given <= SETTINGS, f"{name}: {sorted(given - SETTINGS)} are no settings"
    image = {key for line in instructions("ENV") for key in re.findall(r"\b(KB_\w+)=", line)}
    assert image
    assert image <= SETTINGS


def test_every_variable_that_is_asked_for_is_explained(compose: dict[str, Any]) -> None:
    asked: dict[str, set[str | None]] = {}
    for text in strings(compose):
        for name, kind, default in VARIABLE.findall(text):
            asked.setdefault(name, set()).add(default if kind == "-" else None)
        rest = VARIABLE.sub("", text).replace("$$", "")
        assert "$" not in rest, f"{text!r} has a variable that this test does not read"
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name in asked:
        assert name in SETTINGS | settings_docs.COMPOSE.keys(), f"{name} is not explained"
        assert f"# {name}=" in example
    for name, (default, _) in settings_docs.COMPOSE.items():
        if name != "COMPOSE_PROFILES":  # docker compose reads it by itself
            assert asked[name] - {None, "none"} <= {default}, f"{name} has another default"


def test_nothing_starts_without_its_secrets(compose: dict[str, Any]) -> None:
    required = {
        name for text in strings(compose) for name, kind, _ in VARIABLE.findall(text) if kind == "?"
    }
    assert required == {
        "KB_API_KEY",
        "KB_SECRET_KEY",
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
        "QDRANT_API_KEY",
    }


@pytest.mark.parametrize("name", sorted(OUR_OWN - {"migrate"}))
def test_the_command_of_each_service_is_one_of_ours(
    services: dict[str, dict[str, Any]], name: str
) -> None:
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["kb"]
    assert "entrypoint" not in services[name]
    words = [with_defaults(word) for word in services[name]["command"]]
    context = click.Context(kb, info_name="kb")
    command = kb.get_command(context, words[0])
    assert command is not None, f"kb has no command {words[0]!r}"
    parser = command.make_parser(click.Context(command, info_name=words[0], parent=context))
    _, left, _ = parser.parse_args(words[1:])
    assert left == []


def test_the_migrations_are_a_module_of_ours(services: dict[str, dict[str, Any]]) -> None:
    assert services["migrate"]["entrypoint"] == ["python", "-m", "kb.migrations"]
    assert (ROOT / "kb/migrations/__main__.py").is_file()


def test_services_end_after_their_own_deadline(services: dict[str, dict[str, Any]]) -> None:
    from kb.settings import Settings

    for name in OUR_OWN - {"migrate", "beat"}:
        grace_s = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace_s > Settings(_env_file=None).shutdown_s, name


def test_the_balancer_knows_all_nodes_and_their_ports(
    services: dict[str, dict[str, Any]],
) -> None:
    lines = [shlex.split(line, comments=True) for line in HAPROXY.read_text().splitlines()]
    targets = {words[2] for words in lines if words[:1] == ["server"]}
    qdrants = ("qdrant", "qdrant-2", "qdrant-3")
    assert targets == {
        *(f"{name}:8000" for name in ("api", "api-2")),
        *(f"{name}:{port}" for name in qdrants for port in (6333, 6334)),
    }
    assert all(services[target.split(":")[0]] for target in targets)
    checks = [words[-1] for words in lines if words[:2] == ["option", "httpchk"]]
    assert checks == ["/health/ready", "/readyz", "/readyz"]


def test_three_qdrant_nodes_make_one_cluster(services: dict[str, dict[str, Any]]) -> None:
    for name in ("qdrant", "qdrant-2", "qdrant-3"):
        node = services[name]
        assert node["environment"]["QDRANT__CLUSTER__ENABLED"] == "true"
        words = node["command"]
        assert words[words.index("--uri") + 1] == f"http://{name}:6335"
        first = name == "qdrant"
        assert ("--bootstrap" in words) is not first
        assert first or words[words.index("--bootstrap") + 1] == "http://qdrant:6335"
        assert f"{name}:/qdrant/storage" in node["volumes"]


def test_the_qdrant_image_has_what_the_adapter_needs(services: dict[str, dict[str, Any]]) -> None:
    from kb.adapters.qdrant_server.server import MINIMUM_VERSION

    match = re.search(r":v(\d+)\.(\d+)\.", services["qdrant"]["image"])
    assert match is not None
    assert (int(match[1]), int(match[2])) >= MINIMUM_VERSION


# --- monitoring ----------------------------------------------------------------------------------


def known_metrics() -> dict[str, set[str]]:
    """Every series that kb shows -> its labels."""
    known: dict[str, set[str]] = {}
    families = [*REGISTRY.collect(), *_PROCESS.collect(), *_OfDatabase._families(None)]  # type: ignore[arg-type]
    labels = {
        metric._name: set(metric._labelnames)
        for metric in set(REGISTRY._collector_to_names)  # type: ignore[attr-defined]
    }
    for family in families:
        own = labels.get(family.name, set(getattr(family, "_labelnames", ()))) | {"instance"}
        endings = {
            "counter": ["_total"],
            "histogram": ["_bucket", "_sum", "_count"],
        }.get(family.type, [""])
        for ending in endings:
            known[family.name + ending] = own | ({"le"} if ending == "_bucket" else set())
    return known


def queries() -> list[tuple[str, str, str]]:
    """Panel, expression and legend of every query of the dashboard."""
    dashboard = json.loads((ROOT / "deploy/grafana/kb.json").read_text())
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


@pytest.mark.parametrize(("panel", "expression", "legend"), queries())
def test_every_metric_and_label_of_a_panel_exists(panel: str, expression: str, legend: str) -> None:
    known = known_metrics()
    names = set(re.findall(r"\b((?:kb|process)_[a-z_]+)", expression))
    assert names, panel
    assert names <= known.keys(), f"{panel}: {sorted(names - known.keys())}"
    listed = re.findall(r"by \(([^)]*)\)", expression)
    grouped = {label for by in listed for label in by.split(", ")}
    shown = set(re.findall(r"{{(\w+)}}", legend))
    labels = set.intersection(*(known[name] for name in names))
    assert grouped | shown <= labels, f"{panel}: no label {sorted((grouped | shown) - labels)}"
    assert expression.count("(") == expression.count(")"), panel


def test_every_metric_is_on_the_dashboard() -> None:
    text = " ".join(expression for _, expression, _ in queries())
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in known_metrics()}
    missing = {f for f in families if f.startswith("kb_") and f not in text}
    assert missing == set()


def test_every_metric_is_in_the_manual() -> None:
    manual = (ROOT / "docs/operations.md").read_text()
    told = set(re.findall(r"^\| `(kb_\w+)`", manual, re.MULTILINE))
    known = {re.sub("_(bucket|sum|count)$", "", name) for name in known_metrics()}
    assert told == {name for name in known if name.startswith("kb_")}


def test_prometheus_reads_every_process_that_shows_metrics(
    services: dict[str, dict[str, Any]],
) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    found = {
        (name, places["port"])
        for job in config["scrape_configs"]
        for places in job["dns_sd_configs"]
        for name in places["names"]
    }
    port = int(services["worker"]["environment"]["KB_METRICS__WORKER_PORT"])
    assert found == {("api", 8000), ("api-2", 8000), ("worker", port)}
    (script,) = [word for word in services["prometheus"]["entrypoint"] if "exec" in word]
    for job in config["scrape_configs"]:
        assert f"> {job['authorization']['credentials_file']}" in script
        assert set(services["prometheus"]["networks"]) <= set(services["worker"]["networks"])


def test_grafana_finds_its_source_and_its_dashboard(services: dict[str, dict[str, Any]]) -> None:
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/datasource.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    dashboard = json.loads((ROOT / "deploy/grafana/kb.json").read_text())
    used = {p["datasource"]["uid"] for p in dashboard["panels"] if "datasource" in p}
    assert used == {source["uid"]}
    assert len({p["id"] for p in dashboard["panels"]}) == len(dashboard["panels"])
    (folder,) = yaml.safe_load((ROOT / "deploy/grafana/dashboards.yaml").read_text())["providers"]
    mounted = [m.split(":")[1] for m in services["grafana"]["volumes"]]
    assert f"{folder['options']['path']}/kb.json" in mounted


# --- the image --------------------------------------------------------------------------------


def test_everything_that_is_copied_exists_and_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [
        word
        for line in instructions("COPY")
        if "--from" not in line
        for word in line.split()[:-1]
        if not word.startswith("--")
    ]
    assert {"pyproject.toml", "constraints.txt", "kb", "pipelines", "workers"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, f"{path} is kept out of the build by .dockerignore"


def test_every_install_is_constrained() -> None:
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert len(installs) == 3
    for line in installs:
        assert line.count("pip install") == line.count("--constraint constraints.txt")


def test_the_image_runs_as_a_user_without_a_shell_in_between() -> None:
    user, group = instructions("USER")[-1].split(":")
    assert (int(user), int(group)) == (10001, 10001)
    assert json.loads(instructions("CMD")[-1]) == ["serve"]
    assert "PYTHONUNBUFFERED=1" in instructions("ENV")[-1]
    assert "/health/ready" in instructions("HEALTHCHECK")[0]


def test_the_health_checks_are_python_that_compiles(
    services: dict[str, dict[str, Any]],
) -> None:
    check = re.search(r"CMD (\[.*\])", instructions("HEALTHCHECK")[0])
    assert check is not None
    commands = [json.loads(check[1])]
    commands += [service["healthcheck"].get("test", ["none"])[1:] for service in services.values()]
    python = [command for command in commands if command[:1] == ["python"]]
    assert len(python) == 3
    for command in python:
        assert command[1] == "-c"
        compile(command[2], "healthcheck", "exec")


def test_the_build_reads_the_dependencies_of_the_project(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = [line for line in instructions("RUN") if "tomllib" in line]
    code = shlex.split(line.split("> requirements.txt")[0])
    monkeypatch.chdir(ROOT)
    exec(compile(code[code.index("-c") + 1], "requirements", "exec"), {})
    names = {re.split(r"[<>=\[]", text)[0] for text in capsys.readouterr().out.splitlines()}
    assert {"fastapi", "torch", "celery", "psycopg", "qdrant-client", "boto3"} <= names


def _python_image() -> str:
    (argument,) = [a for a in instructions("ARG") if a.startswith("PYTHON_IMAGE=")]
    return argument.partition("=")[2]
