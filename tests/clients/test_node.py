"""The official Node client and the Vercel AI SDK; skipped where there is no Node or no way to their packages."""

import os
import pathlib
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).resolve().parent / "node"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parents[2] / "target")) / "clients-node"


@pytest.fixture(scope="module")
def packages():
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Node is not installed")
    wanted = (HERE / "package.json").read_text()
    TARGET.mkdir(parents=True, exist_ok=True)
    installed = TARGET / "installed.json"
    if not installed.exists() or installed.read_text() != wanted:
        (TARGET / "package.json").write_text(wanted)
        npm = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund"], cwd=TARGET, capture_output=True, text=True, timeout=300
        )
        if npm.returncode:
            pytest.skip(f"the Node packages cannot be installed: {npm.stderr.strip()[-200:]}")
        installed.write_text(wanted)
    return TARGET


def test_node_clients(packages, server):
    # Node looks for packages beside the script.
    script = shutil.copy(HERE / "clients.mjs", packages)
    node = subprocess.run(["node", script, server.url], capture_output=True, text=True, timeout=300)
    assert node.returncode == 0, node.stdout + node.stderr
    assert "all Node clients pass" in node.stdout
