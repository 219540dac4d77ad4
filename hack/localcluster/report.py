"""Information about clusters, for people and shells: what runs, and how to reach it."""

import shlex

from localcluster import disk, plan, process
from localcluster.plan import Plan
from toolbox import cache, say


def running(name: str) -> Plan:
    """The plan of a cluster that is up."""
    plan.check_name(name)
    found = plan.load(name)
    if found is None or not any(map(process.alive, process.load(found.records).values())):
        raise say.Problem(f"cluster '{name}' is not running. Start it: python3 hack/localcluster up --name {name}")
    return found


def exports(found: Plan) -> str:
    """Lines for a shell, so that kubectl, helm and S3 clients speak to this cluster."""
    summary = found.summary()
    variables = {"KUBECONFIG": summary["kubeconfig"]}
    if found.node:
        variables["REGISTRY"] = found.registry
    if found.s3:
        variables |= {
            "AWS_ENDPOINT_URL": found.s3_endpoint,
            "AWS_ACCESS_KEY_ID": found.access_key,
            "AWS_SECRET_ACCESS_KEY": found.secret_key,
            "AWS_REGION": plan.REGION,
        }
    lines = [f"export {key}={shlex.quote(str(value))}" for key, value in variables.items()]
    return "\n".join([*lines, f"export PATH={shlex.quote(found.bin)}:$PATH"])


def status() -> None:
    shown = [_describe(found) for found in plan.all_plans()]
    say.result("\n".join(shown) if shown else "no cluster is running")
    say.result(f"\n{cache.root()}:")
    for name, amount in disk.usage().items():
        say.result(f"  {name:<12} {say.size(amount):>8}")


def _describe(found: Plan) -> str:
    records = process.load(found.records).values()
    dead = [record.name for record in records if not process.alive(record)]
    state = "running" if not dead else f"NOT running: {', '.join(dead)}" if len(dead) < len(records) else "dead"
    lines = [f"{found.name}: {'node' if found.node else 'control plane only'}, {state}"]
    lines.append(f"  kubeconfig  {found.kubeconfig('admin')}")
    lines.append(f"  apiserver   {found.server}")
    if found.s3:
        lines.append(f"  s3          {found.s3_endpoint}")
    if found.node:
        lines.append(f"  registry    {found.registry}")
    lines.append(f"  logs        {found.logs}")
    lines.append(f"  pids        {', '.join(f'{record.name} {record.pid}' for record in records)}")
    return "\n".join(lines)
