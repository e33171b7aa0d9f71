"""Renders the chart with Helm's engine, and checks the result against Kubernetes' schemas.

Arguments: the chart, then versions of Kubernetes. A list of values is read as JSON from standard
input. Prints a JSON list, with an object for each: `manifests` by template, `problems` by version
and object and `findings` of Helm's lint, or `error`.
"""

import json
import sys

import helm_python as helm
import kubernetes_validate
import yaml


def main() -> None:
    path, versions = sys.argv[1], sys.argv[2:]
    print(json.dumps([rendered(path, versions, values) for values in json.load(sys.stdin)]))


def rendered(path: str, versions: list[str], values: dict) -> dict:
    try:
        with helm.Chart.load(path) as chart:
            chart.validate_schema(values)
            manifests = chart.render(values, name="demo", namespace="prod")
    except helm.HelmError as error:
        return {"error": str(error)}
    manifests = {name: text for name, text in manifests.items() if text.strip()}
    # Severity 2 is a warning.
    messages = helm.lint(path, values)["messages"]
    findings = [str(message) for message in messages if message["severity"] >= 2]
    return {
        "manifests": manifests,
        "problems": problems(manifests, versions),
        "findings": findings,
    }


def problems(manifests: dict[str, str], versions: list[str]) -> list[str]:
    found = []
    for name, text in manifests.items():
        if not name.endswith(".yaml"):
            continue
        for manifest in yaml.safe_load_all(text):
            # There are no schemas for the kinds of operators.
            if manifest["apiVersion"].split("/")[0] in ("keda.sh", "monitoring.coreos.com"):
                continue
            for version in versions:
                try:
                    kubernetes_validate.validate(manifest, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    found.append(f"{version} {name} {manifest['kind']}: {error.message}")
    return found


main()
