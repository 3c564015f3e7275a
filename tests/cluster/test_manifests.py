"""The manifests: everything that can be known of them without a cluster."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

import serve.app
from pipelines import extract, retrain, train
from serve.settings import Settings

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "cluster").glob("*.yaml"))
OPTIONS = {
    "extract": extract.ExtractOptions,
    "train": train.TrainOptions,
    "retrain": retrain.RetrainOptions,
}
CLUSTER = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
    *("headGroupSpec", "workerGroupSpecs"),
}
FIELDS = {
    "RayCluster": CLUSTER,
    "RayJob": {
        *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        "rayClusterSpec",
    },
    "RayService": {"serveConfigV2", "rayClusterConfig", "excludeHeadPodFromServeSvc"},
}
"""Of KubeRay 1.6, those in use. Kubernetes drops a field that it does not know without a word."""
AUTOSCALER = {"version", "upscalingMode", "idleTimeoutSeconds", "resources"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
UNITS = {"m": 1e-3, "": 1, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def objects(*kinds: str) -> list[dict[str, Any]]:
    """Kubernetes' objects of all files, or those of some kinds."""
    found = [
        document
        for file in FILES
        for document in yaml.safe_load_all(file.read_text())
        if "kind" in document
    ]
    return [document for document in found if not kinds or document["kind"] in kinds]


def cluster(ray_object: dict[str, Any]) -> dict[str, Any]:
    """The specification of the Ray cluster in one of KubeRay's objects."""
    spec = ray_object["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def name_of(document: dict[str, Any]) -> str:
    metadata = document["metadata"]
    return f"{document['kind']} {metadata.get('name') or metadata['generateName']}"


CLUSTERS = [pytest.param(cluster(o), id=name_of(o)) for o in objects(*FIELDS)]


def pods() -> Iterator[dict[str, Any]]:
    """Every pod's specification."""
    for document in objects(*FIELDS):
        spec = cluster(document)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield group["template"]["spec"]
    for document in objects("CronJob"):
        yield document["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside a document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from walk(inner)


def quantity(text: str) -> float:
    found = re.fullmatch(r"(\d+)(m|Mi|Gi|Ti)?", text)
    assert found, text
    return int(found[1]) * UNITS[found[2] or ""]


def commands() -> dict[str, list[str]]:
    """The command line of each program that a manifest starts, by the program's name."""
    lines = [shlex.split(job["spec"]["entrypoint"]) for job in objects("RayJob")]
    for pod in pods():
        lines += [c["args"] for c in pod["containers"] if "args" in c]
    return {Path(line[1]).stem: line for line in lines}


@pytest.mark.parametrize("ray_object", objects(*FIELDS), ids=name_of)
def test_kuberays_objects_have_fields_that_exist(ray_object: dict[str, Any]) -> None:
    assert ray_object["apiVersion"] == "ray.io/v1"
    assert set(ray_object["spec"]) <= FIELDS[ray_object["kind"]]
    spec = cluster(ray_object)
    assert set(spec) <= CLUSTER
    assert set(spec["autoscalerOptions"]) <= AUTOSCALER
    assert set(spec["authOptions"]) == {"mode", "secretName"}
    assert set(spec["headGroupSpec"]) == {"rayStartParams", "template"}
    assert all(set(group) == GROUP for group in spec["workerGroupSpecs"])


@pytest.mark.parametrize("spec", CLUSTERS)
def test_clusters_start_from_zero_and_their_heads_do_no_work(spec: dict[str, Any]) -> None:
    head, groups = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"] and groups
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in str(head)
    for group in groups:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        assert "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
    for template in (head["template"], *(group["template"] for group in groups)):
        # Autoscaler v2 replaces pods itself, and is refused any other policy.
        assert "restartPolicy" not in template["spec"]


def test_pods_hold_together() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            volumes = {volume["name"] for volume in pod.get("volumes", [])}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            requests, limits = (container["resources"][name] for name in ("requests", "limits"))
            for name, most in limits.items():
                assert quantity(requests[name]) <= quantity(most)
            assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


def test_names_agree_between_files() -> None:
    (claim,) = objects("PersistentVolumeClaim")
    claims = {v["claimName"] for d in objects() for m in walk(d) for v in _claims(m)}
    assert claims == {claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (standing,) = objects("RayCluster")
    (service,) = objects("RayService")
    assert standing["metadata"]["name"] != service["metadata"]["name"]  # else one head service
    (retrain,) = objects("CronJob")
    container = retrain["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    address = container["command"][container["command"].index("--address") + 1]
    assert address == f"http://{standing['metadata']['name']}-head-svc:8265"
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    images = {container["image"] for pod in pods() for container in pod["containers"]}
    assert images == {yaml.safe_load((ROOT / "cluster/aws.yaml").read_text())["docker"]["image"]}
    assert images == {f"devil:{version[1]}"}
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert ray and {cluster(o)["rayVersion"] for o in objects(*FIELDS)} == {ray[1]}


def _claims(mapping: dict[str, Any]) -> list[dict[str, str]]:
    return [mapping["persistentVolumeClaim"]] if "persistentVolumeClaim" in mapping else []


def test_secrets_are_named_and_never_written() -> None:
    tokens = set()
    for file in FILES:
        for document in yaml.safe_load_all(file.read_text()):
            assert document.get("kind") != "Secret"
            for mapping in walk(document):
                if re.search("TOKEN|KEY|SECRET|PASSWORD", str(mapping.get("name", ""))):
                    assert "value" not in mapping and mapping["valueFrom"]["secretKeyRef"]
                if "secretKeyRef" in mapping:
                    tokens.add(mapping["secretKeyRef"]["name"])
    assert tokens == {"devil-hub", "devil-ray-auth"}
    for document in objects(*FIELDS):
        assert cluster(document)["authOptions"] == {"mode": "token", "secretName": "devil-ray-auth"}


def test_programs_exist_and_understand_their_flags() -> None:
    assert set(commands()) == {"extract", "train", "retrain"}
    for program, (python, script, *arguments) in commands().items():
        assert (python, script) == ("python", f"/app/pipelines/{program}.py")
        assert (ROOT / "pipelines" / f"{program}.py").is_file()
        tyro.cli(OPTIONS[program], args=arguments)


def test_jobs_ask_for_what_their_clusters_can_give() -> None:
    asked = commands()
    found = tyro.cli(extract.ExtractOptions, args=asked["extract"][2:])
    training = tyro.cli(train.TrainOptions, args=asked["train"][2:])
    assert training.gpu and found.pool.gpus_per_worker == 1
    wanted = {
        "devil-extract-": (found.pool.workers, found.pool.cpus_per_worker),
        "devil-train-": (training.workers, training.cpus_per_worker),
    }
    for job in objects("RayJob"):
        workers, cpus = wanted.pop(job["metadata"]["generateName"])
        (group,) = cluster(job)["workerGroupSpecs"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = int(limits["nvidia.com/gpu"])
        assert workers == group["maxReplicas"] * gpus
        assert cpus * gpus < quantity(limits["cpu"])  # one processor is left for Ray
        assert job["spec"]["shutdownAfterJobFinishes"]
    assert not wanted


def test_the_served_application_is_the_one_that_exists() -> None:
    (service,) = objects("RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, attribute = application.import_path.partition(":")
    assert getattr(importlib.import_module(module), attribute) is serve.app.app
    settings = Settings.model_validate(application.args)
    (explainer,) = application.deployments
    assert explainer.name == "Explainer" and explainer.num_replicas == settings.replicas
    (group,) = cluster(service)["workerGroupSpecs"]
    check_keys(service, Path(settings.keys))
    assert settings.replicas <= group["maxReplicas"] and settings.device == "cuda"
    options = explainer.ray_actor_options
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert options.num_gpus == 1 and options.num_cpus == settings.threads
    assert settings.threads < quantity(limits["cpu"])


def check_keys(service: dict[str, Any], file: Path) -> None:
    """The file of keys is a secret, which Ray's user alone can read, in every pod."""
    spec = cluster(service)
    (group,) = spec["workerGroupSpecs"]
    for template in (spec["headGroupSpec"]["template"], group["template"]):
        pod = template["spec"]
        (keys,) = [volume for volume in pod["volumes"] if "secret" in volume]
        assert keys["secret"] == {"secretName": "devil-api-keys", "defaultMode": 0o440}
        (container,) = pod["containers"]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == keys["name"]]
        assert mount["readOnly"] and Path(mount["mountPath"]) == file.parent
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        module, _, name = (variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] or "").partition(
            ":"
        )
        assert getattr(importlib.import_module(module), name)()
    assert f"--from-file={file.name}" in (ROOT / "cluster" / "README.md").read_text()


def test_retraining_never_runs_twice_and_has_no_rights() -> None:
    (job,) = objects("CronJob")
    assert job["apiVersion"] == "batch/v1"
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (account,) = objects("ServiceAccount")
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert pod["automountServiceAccountToken"] is False and pod["restartPolicy"] == "Never"
    assert not objects("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    (container,) = pod["containers"]
    assert container["command"][:3] == ["ray", "job", "submit"]
    assert "--no-wait" not in container["command"] and container["command"][-1] == "--"


def test_the_machines_of_ray_up_are_valid_and_start_from_zero() -> None:
    config = prepare_config(yaml.safe_load((ROOT / "cluster/aws.yaml").read_text()))
    validate_config(config)
    types = dict(config["available_node_types"])
    assert types.pop(config["head_node_type"])["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])
    assert [kind["min_workers"] for kind in types.values()] == [0]
    assert all(kind["resources"]["GPU"] for kind in types.values())
    assert sum(kind["max_workers"] for kind in types.values()) == config["max_workers"]
    assert not config["setup_commands"]  # Ray's defaults would install another Ray
