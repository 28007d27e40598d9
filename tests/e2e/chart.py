"""The chart, rendered by Helm's own engine, and what a cluster would say to the result."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

from tests.e2e.runtimes import ROOT

CHART = ROOT / "helm" / "agentcore"
EXAMPLES = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*.yaml")))

_CRDS = Path(__file__).parent / "crds"

Values = Mapping[str, Any]
Manifest = dict[str, Any]


class _OneKeyOnce(yaml.CSafeLoader):
    """YAML in which a mapping that names a key twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is named twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Manifests(Sequence[Manifest]):
    """What a release consists of.

    Args:
        manifests: The objects, in the order in which they were rendered.
    """

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self._manifests = tuple(manifests)

    def __getitem__(self, index: Any) -> Any:
        return self._manifests[index]

    def __len__(self) -> int:
        return len(self._manifests)

    def all(self, kind: str) -> list[Manifest]:
        """The objects of a kind."""
        return [manifest for manifest in self if manifest["kind"] == kind]

    def one(self, kind: str) -> Manifest:
        """The only object of a kind."""
        found = self.all(kind)
        assert len(found) == 1, f"{len(found)} objects are a {kind}"
        return found[0]

    def named(self, kind: str, name: str) -> Manifest:
        """The object of a kind and name."""
        (found,) = [manifest for manifest in self.all(kind) if manifest["metadata"]["name"] == name]
        return found

    @property
    def pod(self) -> Manifest:
        """The spec of the agent's pods."""
        spec: Manifest = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def agent(self) -> Manifest:
        """The agent's container."""
        container: Manifest = self.pod["containers"][0]
        return container

    @property
    def environment(self) -> dict[str, str]:
        """The agent's plain environment variables."""
        return {variable["name"]: variable["value"] for variable in self.agent["env"] if "value" in variable}

    @property
    def pod_templates(self) -> list[Manifest]:
        """Each pod, or template of pods: an object with ``metadata`` and ``spec``."""
        return [self.one("Deployment")["spec"]["template"], *self.all("Pod")]


@cache
def _chart(path: Path) -> helm.Chart:
    return helm.Chart.load(path)


def set_values(*expressions: str) -> dict[str, Any]:
    """What ``--set`` makes of each expression, together."""
    values: dict[str, Any] = {}
    for expression in expressions:
        values = merged(values, helm.parse_set_string(expression))
    return values


def merged(*parts: Values) -> dict[str, Any]:
    """Values on top of each other, the last one winning, as Helm lays value files on top of each other."""
    values: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            below = values.get(key)
            values[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return values


def example(name: str) -> dict[str, Any]:
    """The values of an example that the chart ships."""
    values: dict[str, Any] = helm.values_from_yaml((CHART / "ci" / f"{name}-values.yaml").read_text())
    return values


def render_text(
    values: Values | None = None, *, name: str = "demo", namespace: str = "agents", upgrade: bool = False
) -> dict[str, str]:
    """What each template becomes, as text."""
    rendered: dict[str, str] = _chart(CHART).render(
        dict(values or {}),
        name=name,
        namespace=namespace,
        revision=2 if upgrade else 1,
        is_install=not upgrade,
        is_upgrade=upgrade,
    )
    return rendered


def render(values: Values | None = None, *, name: str = "demo", namespace: str = "agents") -> Manifests:
    """The objects that an installation makes, those of ``helm test`` among them."""
    texts = render_text(values, name=name, namespace=namespace)
    documents = (
        document
        for path, text in texts.items()
        if path.endswith(".yaml")
        for document in yaml.load_all(text, _OneKeyOnce)
    )
    return Manifests(document for document in documents if document is not None)


def notes(values: Values | None = None, *, name: str = "demo", namespace: str = "agents") -> str:
    """What Helm says after an installation."""
    return render_text(values, name=name, namespace=namespace)["agentcore/templates/NOTES.txt"]


def complaints(manifest: Manifest, kubernetes: str) -> tuple[str, ...]:
    """What a cluster of a version would not accept, unknown fields included."""
    return _complaints(json.dumps(manifest), kubernetes)


@cache  # The same Service, say, is in most of what is rendered.
def _complaints(text: str, kubernetes: str) -> tuple[str, ...]:
    manifest = json.loads(text)
    own = _CRDS / f"{manifest['kind']}.json"
    if own.exists():
        return tuple(f"{error.json_path}: {error.message}" for error in _validator(own).iter_errors(manifest))
    try:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{'.'.join(map(str, error.path))}: {error.message}",)
    return ()


@cache
def _validator(path: Path) -> Draft202012Validator:
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)
