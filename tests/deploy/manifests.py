#!/usr/bin/env python3
"""What deploy/ tells orchestrators, held against the program and against itself.

  manifests.py --vivarium PROGRAM                    the files in deploy/, and that mistakes are found
  manifests.py --vivarium PROGRAM --documents FILE   rendered Kubernetes documents ("-": from stdin)
  manifests.py --pod FILE                            prints the StatefulSet of FILE as a Pod, for podman

Flags must exist in `vivarium serve --help`, config files pass `vivarium config check`, ports, paths,
labels, volumes and times fit together. With Debian's python3-kubernetes every field is also checked
against the API's types. Exit code 77 = python3-yaml is missing.
"""

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import tempfile

try:
    import yaml
except ImportError:
    print("skipped: needs Debian's python3-yaml")
    sys.exit(77)
try:
    import kubernetes.client as kube
except ImportError:
    kube = None

DEPLOY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../deploy")
CONFIG_FILE = "/etc/vivarium/vivarium.toml"
PRE_STOP_AND_SAVES_SECONDS = 15


def read(name):
    with open(os.path.join(DEPLOY, name), encoding="utf-8") as file:
        return file.read()


def documents_of(text):
    return [document for document in yaml.safe_load_all(text) if document is not None]


def setting(config, key, default=None):
    """A value of a TOML file that `config check` has found good."""
    match = re.search(rf'^{re.escape(key)}\s*=\s*"?([^"#\n]*?)"?\s*(#.*)?$', config, re.MULTILINE)
    return match.group(1) if match else default


def port_of(address):
    return int(address.rsplit(":", 1)[1])


class Program:
    def __init__(self, path):
        self.path = path
        self.commands = [line.split("\t")[0] for line in self.run("complete").stdout.splitlines()]

    def run(self, *args):
        return subprocess.run([self.path, *args], capture_output=True, text=True, timeout=60, check=False)

    def config_problems(self, text):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(text)
            file.flush()
            result = self.run("config", "check", file.name)
        return [] if result.returncode == 0 else [result.stderr.strip()]

    def command_problems(self, command, program_path="/usr/bin/vivarium"):
        """Of a command line that runs the program: does it know the command and its flags?"""
        if command[0] != program_path:
            return [f"{command[0]} is not {program_path}"]
        if command[1] not in self.commands:
            return [f"there is no command {command[1]}"]
        known = self.run(command[1], "--help")
        return [f"{command[1]} has no flag {word}" for word in command[2:]
                if word.startswith("--") and not re.search(rf"{re.escape(word.split('=')[0])}\b", known.stdout)]


# ---- Kubernetes

def type_problems(value, type_name, path):
    """Fields of `value` that the API's type does not have, lack, or that have another type."""
    if match := re.fullmatch(r"list\[(.*)\]", type_name):
        if not isinstance(value, list):
            return [f"{path}: expected a list"]
        return [p for i, item in enumerate(value)
                for p in type_problems(item, match.group(1), f"{path}[{i}]")]
    if match := re.fullmatch(r"dict\(\w+, (.*)\)", type_name):
        if not isinstance(value, dict):
            return [f"{path}: expected a map"]
        return [p for key, item in value.items()
                for p in type_problems(item, match.group(1), f"{path}.{key}")]
    if type_name in ("str", "int", "bool", "float", "datetime", "object"):
        expected = {"str": str, "int": int, "bool": bool, "float": (int, float)}.get(type_name)
        if type_name == "str" and isinstance(value, int) and path.endswith(("ort", "storage", "cpu")):
            return []  # IntOrString and Quantity
        if expected and (not isinstance(value, expected) or (expected is int and value is True)):
            return [f"{path}: {value!r} is no {type_name}"]
        return []
    model = getattr(kube, type_name)
    fields = {name: (attribute, model.openapi_types[attribute])
              for attribute, name in model.attribute_map.items()}
    if not isinstance(value, dict):
        return [f"{path}: expected a {type_name}"]
    problems = [f"{path}: {type_name} has no field {key}" for key in value if key not in fields]
    for key, item in value.items():
        if key in fields and item is not None:
            problems += type_problems(item, fields[key][1], f"{path}.{key}")
    try:  # the constructor refuses the absence of required fields
        model(**{fields[key][0]: item for key, item in value.items() if key in fields})
    except (TypeError, ValueError) as error:
        problems.append(f"{path}: {error}")
    return problems


TYPES = {("v1", "ConfigMap"): "V1ConfigMap", ("v1", "Service"): "V1Service",
         ("apps/v1", "StatefulSet"): "V1StatefulSet",
         ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
         ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy"}


def schema_problems(document):
    kind = (document.get("apiVersion"), document.get("kind"))
    if kind not in TYPES:
        return [f"{kind} is none of {sorted(TYPES)}"]
    return type_problems(document, TYPES[kind], document["kind"]) if kube else []


def is_subset(selector, labels):
    return bool(selector) and selector.items() <= labels.items()


def container_problems(program, pod, config, image_user):
    container = pod["containers"][0]
    command = ["/usr/bin/vivarium", *container["args"]]
    problems = program.command_problems(command)
    if command[1:4] != ["serve", "--config", CONFIG_FILE]:
        problems.append(f"args {command[1:]}: expected serve --config {CONFIG_FILE}")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    expected = {"grpc": port_of(setting(config, "listen")),
                "metrics": port_of(setting(config, "metrics-listen"))}
    if ports != expected:
        problems.append(f"ports {ports}: expected {expected}, which the config listens on")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        action = container[probe]
        if "exec" in action:
            problems += program.command_problems(action["exec"]["command"])
        elif action["httpGet"] != {"path": "/metrics", "port": "metrics"}:
            problems.append(f"{probe} asks {action['httpGet']}: expected /metrics on metrics")
    if "exec" in container["livenessProbe"]:
        problems.append("livenessProbe: health is not serving while it drains, which kills it")
    security = {**pod["securityContext"], **container["securityContext"]}
    for key, value in {"runAsNonRoot": True, "runAsUser": image_user, "fsGroup": image_user,
                       "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
                       "capabilities": {"drop": ["ALL"]}}.items():
        if security.get(key) != value:
            problems.append(f"securityContext: {key} is {security.get(key)}: expected {value}")
    for key in ("requests", "limits"):
        if "memory" not in container["resources"][key]:
            problems.append(f"resources: no {key} of memory")
    grace = pod["terminationGracePeriodSeconds"]
    needed = int(setting(config, "drain-seconds", "30")) + PRE_STOP_AND_SAVES_SECONDS
    if grace < needed:
        problems.append(f"terminationGracePeriodSeconds {grace}: expected at least {needed}")
    return problems


def volume_problems(stateful_set, config):
    spec = stateful_set["spec"]
    pod = spec["template"]["spec"]
    claims = [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]]
    volumes = claims + [volume["name"] for volume in pod["volumes"]]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    problems = [f"the mount {path} names no volume: {name}" for path, name in mounts.items()
                if name not in volumes]
    store = setting(config, "store")
    if not any(store.startswith(path + "/") and name in claims for path, name in mounts.items()):
        problems.append(f"the store {store} is on no claim")
    if os.path.dirname(CONFIG_FILE) not in mounts:
        problems.append(f"{CONFIG_FILE} is not mounted")
    model = setting(config, "model")
    if model and not any(model.startswith(path + "/") for path in mounts):
        problems.append(f"the model {model} is not mounted")
    return problems


def cluster_problems(program, documents, image_user):
    problems = [p for document in documents for p in schema_problems(document)]
    if problems:
        return problems
    kinds = {}
    for document in documents:
        kinds.setdefault(document["kind"], []).append(document)
    for kind in ("ConfigMap", "StatefulSet", "PodDisruptionBudget"):
        if len(kinds.get(kind, [])) != 1:
            return [f"expected one {kind}"]
    stateful_set = kinds["StatefulSet"][0]
    spec = stateful_set["spec"]
    labels = spec["template"]["metadata"]["labels"]
    pod = spec["template"]["spec"]
    config_map = kinds["ConfigMap"][0]
    config = config_map["data"]["vivarium.toml"]
    problems = program.config_problems(config)
    if problems:
        return problems
    problems += container_problems(program, pod, config, image_user)
    problems += volume_problems(stateful_set, config)
    mounted = [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v]
    if mounted != [config_map["metadata"]["name"]]:
        problems.append(f"config maps {mounted}: expected {config_map['metadata']['name']}")
    ports = {port["name"] for port in pod["containers"][0]["ports"]}
    services = {service["metadata"]["name"]: service["spec"] for service in kinds["Service"]}
    headless = services.get(spec["serviceName"], {})
    if headless.get("clusterIP") != "None":
        problems.append(f"serviceName {spec['serviceName']} is no headless service")
    for name, service in services.items():
        if not is_subset(service["selector"], labels):
            problems.append(f"the service {name} selects {service['selector']}, no pod of ours")
        problems += [f"the service {name} leads to no port {port['targetPort']}"
                     for port in service["ports"] if port["targetPort"] not in ports]
    for selector in ([spec["selector"], kinds["PodDisruptionBudget"][0]["spec"]["selector"]] +
                     [policy["spec"]["podSelector"] for policy in kinds.get("NetworkPolicy", [])]):
        if not is_subset(selector["matchLabels"], labels):
            problems.append(f"{selector} selects no pod of ours")
    for policy in kinds.get("NetworkPolicy", []):
        for rule in policy["spec"]["ingress"]:
            problems += [f"the network policy opens no port {port['port']}"
                         for port in rule["ports"] if port["port"] not in ports]
            for peer in rule["from"]:
                if "podSelector" in peer and is_subset(peer["podSelector"]["matchLabels"], labels):
                    problems.append("the network policy lets the server's own pods in, not clients")
    return problems


def base_documents():
    """deploy/kubernetes/base without kustomize: its files, and its config file as a ConfigMap."""
    kustomization = yaml.safe_load(read("kubernetes/base/kustomization.yaml"))
    documents = [document for name in kustomization["resources"]
                 for document in documents_of(read("kubernetes/base/" + name))]
    generator = kustomization["configMapGenerator"][0]
    documents.append({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]},
        "data": {name: read("kubernetes/base/" + name) for name in generator["files"]}})
    return documents


def chart_problems():
    """What can be said of the chart without rendering it (kubernetes_test.sh does that)."""
    values = yaml.safe_load(read("helm/vivarium/values.yaml"))
    schema = json.loads(read("helm/vivarium/values.schema.json"))
    problems = []
    if set(values) | {"global"} != set(schema["properties"]):
        problems.append(f"the chart's values {sorted(values)}: its schema has others")
    chart = yaml.safe_load(read("helm/vivarium/Chart.yaml"))
    version = re.search(r"^project\(vivarium VERSION (\S+)", read("../CMakeLists.txt"), re.M).group(1)
    if chart["appVersion"] != version:
        problems.append(f"the chart's appVersion is {chart['appVersion']}: expected {version}")
    return problems


# ---- the image, compose, systemd

def image_user():
    return int(re.search(r"^USER (\d+)", read("Containerfile"), re.MULTILINE).group(1))


def image_problems(program):
    containerfile, config = read("Containerfile"), read("container.toml")
    problems = program.config_problems(config)
    exposed = [int(port) for port in re.search(r"^EXPOSE (.*)", containerfile, re.M).group(1).split()]
    listened = [port_of(setting(config, key)) for key in ("listen", "metrics-listen")]
    if exposed != listened:
        problems.append(f"EXPOSE {exposed}: the config listens on {listened}")
    volume = re.search(r"^VOLUME (.*)", containerfile, re.M).group(1)
    if not setting(config, "store").startswith(volume + "/"):
        problems.append(f"the store {setting(config, 'store')} is not on the volume {volume}")
    entrypoint = yaml.safe_load(re.search(r"^ENTRYPOINT (.*)", containerfile, re.M).group(1))
    for pattern in (r"^CMD (.*)", r"^  CMD (.*)"):
        command = yaml.safe_load(re.search(pattern, containerfile, re.M).group(1))
        line = command if command[0] == entrypoint[0] else entrypoint + command
        problems += program.command_problems(line)
    return problems


def compose_problems(compose, containerfile):
    problems = []
    services = compose["services"]
    server = services["vivarium"]
    exposed = re.search(r"^EXPOSE (.*)", containerfile, re.M).group(1).split()
    targets = re.findall(r"^FROM \S+ AS (\w+)", containerfile, re.M)
    target = re.search(r":-(\w+)\}", server["build"]["target"]).group(1)
    if target not in targets:
        problems.append(f"there is no target {target}")
    volume = re.search(r"^VOLUME (.*)", containerfile, re.M).group(1)
    if [mount.split(":")[1] for mount in server["volumes"]] != [volume]:
        problems.append(f"volumes {server['volumes']}: expected {volume}")
    for name, service in services.items():
        for port in service["ports"]:
            host, _, inside = port.split(":")
            if host != "127.0.0.1":
                problems.append(f"{name} is published on {host}")
            if name == "vivarium" and inside not in exposed:
                problems.append(f"{name} does not listen on {inside}")
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            if source.startswith("./"):
                if not os.path.exists(os.path.join(DEPLOY, source)):
                    problems.append(f"{name} mounts {source}, which is not there")
            elif source not in compose["volumes"]:
                problems.append(f"{name} mounts {source}, which is no volume")
    scraped = yaml.safe_load(read("observability/prometheus.yml"))["scrape_configs"][0]
    for address in scraped["static_configs"][0]["targets"]:
        host, port = address.split(":")
        if host not in services or port not in exposed:
            problems.append(f"prometheus scrapes {address}, which nobody exports")
    source = yaml.safe_load(read("observability/grafana/provisioning/datasources/prometheus.yml"))
    url = source["datasources"][0]["url"]
    if url != "http://prometheus:9090":
        problems.append(f"grafana asks {url}")
    grace = int(server["stop_grace_period"].rstrip("s"))
    if grace < 30 + PRE_STOP_AND_SAVES_SECONDS:
        problems.append(f"stop_grace_period {grace} is shorter than a drain")
    return problems


def unit_problems(program, unit, config):
    problems = program.config_problems(config)
    for line in re.findall(r"^Exec\w+=(.*)", unit, re.M):
        problems += program.command_problems(line.split())
    stop = int(re.search(r"^TimeoutStopSec=(\d+)", unit, re.M).group(1))
    drain = int(setting(config, "drain-seconds", "30"))
    if stop < drain + PRE_STOP_AND_SAVES_SECONDS:
        problems.append(f"TimeoutStopSec {stop} is shorter than a drain of {drain}")
    state = "/var/lib/" + re.search(r"^StateDirectory=(.*)", unit, re.M).group(1)
    if not setting(config, "store").startswith(state + "/"):
        problems.append(f"the store {setting(config, 'store')} is not below {state}")
    return problems


# ---- mistakes that must be found

def mistakes():
    """(what is found, a change that makes the mistake) for cluster_problems."""
    def find(documents, kind):
        return next(document for document in documents if document["kind"] == kind)

    def pod(documents):
        return find(documents, "StatefulSet")["spec"]["template"]["spec"]

    def container(documents):
        return pod(documents)["containers"][0]

    def replace_config(documents, old, new):
        data = find(documents, "ConfigMap")["data"]
        assert old in data["vivarium.toml"], old
        data["vivarium.toml"] = data["vivarium.toml"].replace(old, new)

    yield "no flag --no-such", lambda d: container(d)["args"].append("--no-such")
    yield "expected serve", lambda d: container(d)["args"].reverse() or container(d)["args"].insert(0, "serve")
    yield "no setting listenn", lambda d: replace_config(d, "\nlisten =", "\nlistenn =")
    yield "which the config listens on", lambda d: replace_config(d, ":50051", ":50052")
    yield "no command healthy", lambda d: container(d)["readinessProbe"]["exec"]["command"].append(
        container(d)["readinessProbe"]["exec"]["command"].pop() + "y")
    yield "while it drains", lambda d: container(d).update(livenessProbe=container(d)["startupProbe"])
    yield "readOnlyRootFilesystem", lambda d: container(d)["securityContext"].pop("readOnlyRootFilesystem")
    yield "terminationGracePeriodSeconds", lambda d: replace_config(d, "drain-seconds = 30", "drain-seconds = 80")
    yield "is on no claim", lambda d: replace_config(d, "/var/lib/vivarium", "/srv/vivarium")
    yield "names no volume", lambda d: container(d)["volumeMounts"][0].update(name="other")
    yield "no headless service", lambda d: find(d, "StatefulSet")["spec"].update(serviceName="vivarium")
    yield "no pod of ours", lambda d: find(d, "Service")["spec"].update(selector={"app": "other"})
    yield "leads to no port", lambda d: find(d, "Service")["spec"]["ports"][0].update(targetPort="http")
    yield "selects no pod", lambda d: find(d, "PodDisruptionBudget")["spec"]["selector"].update(matchLabels={"a": "b"})
    yield "not clients", lambda d: find(d, "NetworkPolicy")["spec"]["ingress"][0]["from"][0]["podSelector"].update(
        matchLabels=find(d, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    if kube:
        yield "has no field replica", lambda d: find(d, "StatefulSet")["spec"].update(replica=1)
        yield "is no int", lambda d: pod(d).update(terminationGracePeriodSeconds="90")
        yield "must not be `None`", lambda d: find(d, "StatefulSet")["spec"].pop("selector")


def missed_mistakes(program):
    missed = []
    for expected, make in mistakes():
        documents = copy.deepcopy(base_documents())
        make(documents)
        problems = cluster_problems(program, documents, image_user())
        if not any(expected in problem for problem in problems):
            missed.append(f"a mistake is not found: expected '{expected}', found {problems}")
    return missed


def as_pod(documents):
    """The StatefulSet's first pod and its config map, as `podman play kube` takes them: a claim is the
    volume of its name, which may be there already."""
    stateful_set = next(document for document in documents if document["kind"] == "StatefulSet")
    template = stateful_set["spec"]["template"]
    spec = template["spec"]
    container = spec["containers"][0]
    # podman knows liveness probes only, and takes httpGet for a call of curl.
    container["livenessProbe"] = container.pop("readinessProbe")
    del container["startupProbe"], container["lifecycle"]
    result = [document for document in documents if document["kind"] == "ConfigMap"]
    for claim in stateful_set["spec"]["volumeClaimTemplates"]:
        name = claim["metadata"]["name"]
        spec["volumes"].append({"name": name, "persistentVolumeClaim": {"claimName": name}})
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": spec,
           "metadata": {**template["metadata"], "name": stateful_set["metadata"]["name"] + "-0"}}
    return result + [pod]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vivarium")
    parser.add_argument("--documents")
    parser.add_argument("--pod")
    options = parser.parse_args()
    if options.pod:
        with open(options.pod, encoding="utf-8") as file:
            print(yaml.safe_dump_all(as_pod(documents_of(file.read()))))
        return 0
    program = Program(options.vivarium)
    if options.documents:
        source = sys.stdin if options.documents == "-" else open(options.documents, encoding="utf-8")
        with source:
            problems = cluster_problems(program, documents_of(source.read()), image_user())
    else:
        problems = cluster_problems(program, base_documents(), image_user())
        problems += missed_mistakes(program)
        problems += chart_problems()
        problems += image_problems(program)
        problems += compose_problems(yaml.safe_load(read("compose.yaml")), read("Containerfile"))
        problems += unit_problems(program, read("systemd/vivarium.service"), read("vivarium.toml"))
    for problem in problems:
        print(problem)
    if not problems:
        print("ok" + ("" if kube else " (fields unchecked: no python3-kubernetes)"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
