"""The whole cluster on one machine: a coordinator and three workers as real processes, one prompt, then the end.

What it makes is kept in `.demo/` (the packed model, the workers' identities and files), so that a second run is
quick. Everything listens on loopback, on ports that happen to be free.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from demo.local_cluster import BIN, ClusterError, LocalCluster, smollm2_gguf

STATE = Path(".demo")
MODEL = "smollm2"
N_WORKERS = 3


def main() -> None:
    """Run the demo; exits with 0 when the answer was whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="In one sentence, why is the sky blue?")
    parser.add_argument("--max-tokens", type=int, default=48)
    arguments = parser.parse_args()
    began = time.monotonic()
    try:
        with LocalCluster(STATE.resolve()) as cluster:
            demo(cluster, arguments.prompt, arguments.max_tokens)
            say("stopping everything")
    except ClusterError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped")
        sys.exit(130)
    say(f"done, {time.monotonic() - began:.0f} s in all")


def demo(cluster: LocalCluster, prompt: str, max_tokens: int) -> None:
    """Start everything, generate, show who did it."""
    say("starting a coordinator")
    # the model fits on one worker; it is spread so that there is something to see
    url = cluster.start_coordinator("--placement", "spread")
    say(f"starting {N_WORKERS} workers; they join {url} with the secret that it made")
    for i in range(N_WORKERS):
        cluster.start_worker(f"worker-{i + 1}")
    if MODEL not in [model["name"] for model in cluster.status()["models"]]:
        cluster.wait_for_workers(N_WORKERS, say=say)
        say(f"packing SmolLM2-135M-Instruct, once; it is kept in {STATE}/")
        shown(cluster, "coord", "model", "add", MODEL, str(smollm2_gguf()))
    cluster.wait_for_workers(N_WORKERS, say=say)
    cluster.wait_until_ready(MODEL, say=say)
    print()
    shown(cluster, "coord", "status")
    print(f"\n> {prompt}\n")
    options = ("--model", MODEL, "--max-tokens", str(max_tokens), "--temperature", "0")
    shown(cluster, "client", "generate", prompt, *options)
    print()


def shown(cluster: LocalCluster, program: str, *arguments: str) -> None:
    """One command in the foreground, its output on this terminal."""
    command = [str(BIN / program), *arguments]
    done = subprocess.run(command, env=cluster.environment, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ClusterError(f"`{program} {arguments[0]}` ended with {done.returncode}; logs are in {STATE}/*.log")


def say(text: str) -> None:
    """One line of progress, cut to the terminal."""
    print(f"· {text}"[: shutil.get_terminal_size((160, 24)).columns - 1], flush=True)


if __name__ == "__main__":
    main()
