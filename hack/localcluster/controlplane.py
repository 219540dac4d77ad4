"""The control plane's processes: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and who they are.

Authorization is Node and RBAC, service accounts have real tokens, admission is Kubernetes' default set (PodSecurity,
ResourceQuota and LimitRanger among it) plus NodeRestriction: what an operator meets in production.
"""

import json
from pathlib import Path

from localcluster import api, pki
from localcluster.plan import SERVICES, SERVICES_FIRST, Plan

FRONT_PROXY = "front-proxy-client"
"""Whose word an aggregated API server takes for who asks: the API server's."""

_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # Renewed every few seconds by every component and never read afterwards.
        {"level": "None", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
         "userGroups": ["system:nodes"]},
        {"level": "None", "nonResourceURLs": ["/readyz*", "/healthz*", "/livez*"]},
        {"level": "Metadata"},
    ],
}  # fmt: skip


def identities(plan: Plan) -> list[pki.Identity]:
    """Everyone who has a certificate in this cluster."""
    found = [
        pki.Identity(
            "apiserver",
            "kube-apiserver",
            addresses=(
                *(f"DNS:kubernetes{suffix}" for suffix in ("", ".default", ".default.svc")),
                "DNS:kubernetes.default.svc.cluster.local",
                "DNS:localhost",
                "IP:127.0.0.1",
                f"IP:{SERVICES_FIRST}",
                f"IP:{plan.address}",
            ),
        ),
        pki.Identity("admin", "admin", groups=("system:masters",)),
        pki.Identity("controller-manager", "system:kube-controller-manager"),
        pki.Identity("front-proxy", FRONT_PROXY),
    ]
    if plan.scheduler:
        found.append(pki.Identity("scheduler", "system:kube-scheduler"))
    if plan.node:
        found += [
            pki.Identity("apiserver-kubelet", "apiserver-kubelet", groups=("system:masters",)),
            pki.Identity(
                "kubelet",
                f"system:node:{plan.node_name}",
                groups=("system:nodes",),
                addresses=(f"DNS:{plan.node_name}", f"IP:{plan.address}"),
            ),
            pki.Identity("proxy", "system:kube-proxy"),
            pki.Identity("coredns", "localcluster:coredns"),
        ]
    return found


def configure(plan: Plan) -> None:
    """Makes the certificates and writes the configuration files."""
    people = identities(plan)
    pki.make(plan.certificates, people)
    for person in people:
        path = plan.kubeconfig(person.file)
        path.touch(mode=0o600)
        path.write_text(api.kubeconfig(plan.server, plan.certificates, person.file))
    (plan.state / "audit-policy.json").write_text(json.dumps(_AUDIT))


def etcd(plan: Plan) -> list[str | Path]:
    client = f"http://127.0.0.1:{plan.ports['etcd']}"
    peer = f"http://127.0.0.1:{plan.ports['etcd-peer']}"
    return [
        plan.binary("etcd"),
        f"--data-dir={plan.state / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=warn",
        # Survives the death of the process, not that of the machine; a cluster for tests need not wait for the disk.
        "--unsafe-no-fsync",
    ]


def apiserver(plan: Plan) -> list[str | Path]:
    certificates = plan.certificates
    argv: list[str | Path] = [
        plan.binary("kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{plan.ports['etcd']}",
        f"--secure-port={plan.ports['apiserver']}",
        f"--bind-address={plan.address}",
        f"--tls-cert-file={certificates / 'apiserver.crt'}",
        f"--tls-private-key-file={certificates / 'apiserver.key'}",
        f"--client-ca-file={certificates / 'ca.crt'}",
        f"--proxy-client-cert-file={certificates / 'front-proxy.crt'}",
        f"--proxy-client-key-file={certificates / 'front-proxy.key'}",
        f"--requestheader-client-ca-file={certificates / 'ca.crt'}",
        f"--requestheader-allowed-names={FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--service-account-key-file={certificates / 'sa.pub'}",
        f"--service-account-signing-key-file={certificates / 'sa.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--anonymous-auth=false",
        "--profiling=false",
        f"--audit-policy-file={plan.state / 'audit-policy.json'}",
        f"--audit-log-path={plan.logs / 'audit.log'}",
        "--audit-log-maxsize=100",
        "--audit-log-maxbackup=2",
    ]
    if plan.node:
        return [
            *argv,
            f"--advertise-address={plan.address}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={certificates / 'ca.crt'}",
            f"--kubelet-client-certificate={certificates / 'apiserver-kubelet.crt'}",
            f"--kubelet-client-key={certificates / 'apiserver-kubelet.key'}",
        ]
    # A loopback address is no valid endpoint of the `kubernetes` Service, and without pods nobody needs one.
    return [*argv, "--endpoint-reconciler-type=none"]


def controller_manager(plan: Plan) -> list[str | Path]:
    certificates = plan.certificates
    return [
        plan.binary("kube-controller-manager"),
        f"--kubeconfig={plan.kubeconfig('controller-manager')}",
        f"--secure-port={plan.ports['controller-manager']}",
        "--bind-address=127.0.0.1",
        f"--service-account-private-key-file={certificates / 'sa.key'}",
        f"--root-ca-file={certificates / 'ca.crt'}",
        f"--cluster-signing-cert-file={certificates / 'ca.crt'}",
        f"--cluster-signing-key-file={certificates / 'ca.key'}",
        f"--service-cluster-ip-range={SERVICES}",
        "--use-service-account-credentials",
        # The default of 20 requests a second makes every start wait 4 s for the controllers' own accounts.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        # Tests wait for autoscalers; the default is 15 s.
        "--horizontal-pod-autoscaler-sync-period=3s",
        f"--flex-volume-plugin-dir={plan.state / 'volume-plugins'}",
        "--leader-elect=false",
        "--profiling=false",
    ]


def scheduler(plan: Plan) -> list[str | Path]:
    return [
        plan.binary("kube-scheduler"),
        f"--kubeconfig={plan.kubeconfig('scheduler')}",
        f"--secure-port={plan.ports['scheduler']}",
        "--bind-address=127.0.0.1",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--leader-elect=false",
        "--profiling=false",
    ]
