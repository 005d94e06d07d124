"""The official Node client, the Vercel AI SDK and our own pages; skipped where there is no Node or no way to their packages."""

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
    wanted = (HERE / "package-lock.json").read_text()
    TARGET.mkdir(parents=True, exist_ok=True)
    installed = TARGET / "installed.json"
    if not installed.exists() or installed.read_text() != wanted:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, TARGET)
        npm = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=TARGET, capture_output=True, text=True, timeout=300)
        if npm.returncode:
            pytest.skip(f"the Node packages cannot be installed: {npm.stderr.strip()[-200:]}")
        installed.write_text(wanted)
    return TARGET


def run(packages, name, url):
    # Node looks for packages beside the script.
    script = shutil.copy(HERE / name, packages)
    node = subprocess.run(["node", script, url], capture_output=True, text=True, timeout=300)
    assert node.returncode == 0, node.stdout + node.stderr
    assert "all Node clients pass" in node.stdout


@pytest.mark.parametrize("page", ["playground", "docs"])
def test_a_page_of_our_own(parrot, page):
    if not shutil.which("node"):
        pytest.skip("Node is not installed")
    node = subprocess.run(["node", HERE / f"{page}.mjs", parrot.url], capture_output=True, text=True, timeout=60)
    assert node.returncode == 0, node.stdout + node.stderr


def test_node_clients(packages, server):
    run(packages, "clients.mjs", server.url)


def test_node_clients_with_tools(packages, parrot):
    run(packages, "tools.mjs", parrot.url)
