"""A Ray cluster of two nodes on this host, each with a replica of our server.

Run by the test as a process of its own, in the way of a server: `--host`, `--port`.
"""

import argparse
import signal
import sys
from pathlib import Path

import ray
from ray import serve
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    args = parser.parse_args()
    import ray_fleet

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    options = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(num_cpus=1)
    path = {"PYTHONPATH": str(Path(ray_fleet.__file__).parent)}
    ray.init(cluster.address, runtime_env={"env_vars": path})
    try:
        serve.start(http_options={"host": args.host, "port": args.port})
        serve.run(ray_fleet.fleet(ray_fleet.Fleet(replicas=2)), route_prefix="/")
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
