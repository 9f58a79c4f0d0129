#!/usr/bin/env python3
"""kubeconfigs.py NAME=SERVER=CA_FILE...: one kubeconfig with a context per NAME, the administrator's token in it."""
import base64
import json
import sys

sites = [argument.split("=", 2) for argument in sys.argv[1:]]


def authority(path):
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()


json.dump(
    {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": sites[0][0],
        "clusters": [
            {"name": name, "cluster": {"server": server, "certificate-authority-data": authority(ca)}}
            for name, server, ca in sites
        ],
        "users": [{"name": f"admin-{name}", "user": {"token": "admin-token"}} for name, _, _ in sites],
        "contexts": [{"name": name, "context": {"cluster": name, "user": f"admin-{name}"}} for name, _, _ in sites],
    },
    sys.stdout,
    indent=1,
)
