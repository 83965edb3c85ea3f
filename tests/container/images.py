"""Building the image's CPU target and running it, without a Docker engine.

buildah builds it, on a Debian that debootstrap made. It runs as process 1 of a process
namespace of its own, below chroot, on a read-only mount, as an arbitrary user of group 0.
Needs root, and Debian's packages buildah and debootstrap.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
WORK = Path(os.environ.get("EM_INF_CONTAINER_WORK", "/var/tmp/em-inf-container"))
BASE = "localhost/debian:bookworm-slim"
IMAGE = "localhost/em-inf:cpu"
UID = 54321
START_SECONDS = 600


def buildah(*args: str | Path) -> str:
    """Run buildah on a store of our own, and return what it printed."""
    store = ["--root", WORK / "storage", "--runroot", WORK / "run"]
    command = ["buildah", *store, "--storage-driver", "overlay", *args]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"{command} failed; see above"
    return done.stdout.strip()


def build() -> None:
    """Make the base image where there is none, and the CPU target from the Dockerfile."""
    WORK.mkdir(parents=True, exist_ok=True)
    if BASE not in buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
        debian = WORK / "debian"
        command = ["debootstrap", "--variant=minbase", "bookworm", str(debian)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, debian, "/")
        buildah("commit", "--quiet", container, BASE)
        buildah("rm", container)
    # What pip needs to reach its packages from here is mounted, and no part of the image.
    settings, volumes = ["[global]"], []
    if cert := os.environ.get("PIP_CERT"):
        volumes.append(f"{cert}:/etc/build-ca.crt:ro")
        settings.append("cert = /etc/build-ca.crt")
    if wheels := os.environ.get("PIP_FIND_LINKS"):
        volumes.append(f"{wheels}:{wheels}:ro")
        settings.append(f"find-links = {wheels}")
    (WORK / "pip.conf").write_text("\n".join(settings) + "\n")
    volumes.append(f"{WORK / 'pip.conf'}:/etc/pip.conf:ro")
    flags = [flag for volume in volumes for flag in ("--volume", volume)]
    index = os.environ.get("TORCH_CPU_INDEX")
    if index:
        flags += ["--build-arg", f"TORCH_CPU_INDEX={index}"]
    flags += ["--build-arg", f"CPU_BASE={BASE}", "--target", "cpu", "--format", "docker"]
    buildah("bud", "--isolation", "chroot", *flags, "--tag", IMAGE, ".")


@dataclass
class Container:
    """A running container.

    Attributes:
        process: `unshare`, whose only child is the container's process 1.
        environ: what the image and the caller set.
    """

    root: Path
    config: dict[str, Any]
    process: subprocess.Popen[bytes]
    log: Path
    environ: dict[str, str]

    @property
    def pid(self) -> int:
        """The process 1, as it is numbered outside."""
        return int(self._children.read_text())

    @property
    def _children(self) -> Path:
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """What `docker exec` does."""
        inside = ["nsenter", "-t", str(self.pid), "--mount", "--pid", "--root"]
        inside += [f"--setuid={UID}", "--setgid=0", "env", "-i", "--chdir=/cache"]
        pairs = [f"{name}={value}" for name, value in self.environ.items()]
        return subprocess.run(
            [*inside, *pairs, *command], capture_output=True, text=True, timeout=300
        )

    def health(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run the image's health check."""
        return self.execute(*self.config["Healthcheck"]["Test"][1:], *args)

    def wait_until_well(self) -> None:
        """Return when the health check is content."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            if self._children.read_text() and self.health().returncode == 0:
                return
            time.sleep(2)
        raise AssertionError(
            f"the container is not well:\n{self.log.read_text()[-4000:]}"
        )


@contextlib.contextmanager
def run(*args: str, environ: dict[str, str]) -> Iterator[Container]:
    """As `docker run --read-only --user 54321 --network host IMAGE ARGS`."""
    config = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
    container = buildah("from", "--pull-never", IMAGE)
    root = Path(buildah("mount", container))
    cache = WORK / "cache"
    subprocess.run(["rm", "-rf", cache], check=True)
    subprocess.run(["cp", "-a", root / "cache", cache], check=True)
    mounts = [
        f"mount --bind {root} {root}",
        f"mount -o remount,bind,ro {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount --rbind -o ro /sys {root}/sys",
        f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
        f"mount --bind {cache} {root}/cache",
    ]
    inside = dict(pair.split("=", 1) for pair in config["Env"]) | environ
    pairs = [f"{name}={value}" for name, value in inside.items()]
    start = ["chroot", f"--userspec={UID}:0", "--groups=", root, "env", "-i"]
    start += [f"--chdir={config['WorkingDir']}", *pairs, *config["Entrypoint"], *args]
    script = " && ".join(mounts) + ' && exec "$@"'
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    log = WORK / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*unshare, "sh", "-c", script, "sh", *(str(word) for word in start)],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Container(root, config, process, log, inside)
    finally:
        process.kill()
        process.wait()
        buildah("umount", container)
        buildah("rm", container)
