"""Serve an exported policy with MLServer on this machine: the same actions, and how long they take.

    python -m benchmarks.serving FOLDER --server MLSERVER

FOLDER is an exported one (docs/deploy.md), MLSERVER the command `mlserver` of an environment that has it, such as
`~/served/bin/mlserver`. Clients ask one after another over connections that stay open (KServe v2, JSON).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pandas as pd
import psutil
from numpy.typing import NDArray

from benchmarks.common import RESULTS, markdown, write_record
from cvl_pipeline.deploy.runner import ExportedPolicy, load_policy

CLIENTS, CALLS = (1, 8, 64), 4000
PATH = "/v2/models/policy"
SERVER = "CPU of the server per action, ms"
Array = NDArray[Any]


def free_ports(count: int) -> list[int]:
    """Ports that nothing uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(command: str, folder: Path, place: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server, and return it with its port when it answers."""
    names = ("MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_METRICS_PORT")
    ports = dict(zip(names, map(str, free_ports(3)), strict=True))
    settings = {"MLSERVER_HOST": "127.0.0.1", "MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_DEBUG": "false"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(
            [command, "start", str(folder)],
            env={**environment, **ports, **settings}, cwd=place, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    port = int(ports[names[0]])
    for _ in range(600):
        try:
            urlopen(f"http://127.0.0.1:{port}{PATH}/ready").close()
            return server, port
        except URLError:
            if server.poll() is not None:
                break
            time.sleep(0.2)
    server.terminate()
    raise SystemExit(f"the server does not start:\n{(place / 'log').read_text()[-2000:]}")


def request(observation: dict[str, Array]) -> bytes:
    """One HTTP request for the action of one observation."""
    kinds = {"float32": "FP32", "uint8": "UINT8"}
    inputs = [
        {"name": name, "datatype": kinds[str(part.dtype)], "shape": [1, *part.shape], "data": part.ravel().tolist()}
        for name, part in observation.items()
    ]  # fmt: skip
    body = json.dumps({"inputs": inputs}).encode()
    head = (
        f"POST {PATH}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    )
    return f"{head}{len(body)}\r\n\r\n".encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> bytes:
    """Send a request over an open connection, and return the body of the answer."""
    writer.write(message)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length:")[1].split("\r\n")[0])
    body = await reader.readexactly(length)
    if " 200 " not in head.splitlines()[0]:
        raise SystemExit(f"the server refuses: {body.decode()}")
    return body


async def clients(
    port: int, count: int, calls: int, messages: list[bytes]
) -> tuple[list[float], list[list[bytes]]]:
    """Ask with some clients at once; return the seconds of each call, and the answers of each client."""
    seconds: list[float] = []

    async def client() -> list[bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = []
        for message in itertools.islice(itertools.cycle(messages), calls // count):
            begin = time.perf_counter()
            answers.append(await ask(reader, writer, message))
            seconds.append(time.perf_counter() - begin)
        writer.close()
        return answers

    answers = await asyncio.gather(*(client() for _ in range(count)))
    return seconds, answers


def percentiles(seconds: list[float]) -> dict[str, float]:
    """The median and the 99th percentile, in milliseconds."""
    p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
    return {"p50, ms": round(float(p50), 3), "p99, ms": round(float(p99), 3)}


def cpu_seconds(server: subprocess.Popen[bytes]) -> float:
    """CPU seconds of the server since its start."""
    used = psutil.Process(server.pid).cpu_times()
    return used.user + used.system


def directly(policy: ExportedPolicy, observations: list[dict[str, Array]], calls: int) -> dict[str, float]:
    """The same calls without a server."""
    seconds = []
    for observation in itertools.islice(itertools.cycle(observations), calls):
        begin = time.perf_counter()
        policy.select_action(observation)
        seconds.append(time.perf_counter() - begin)
    return {**percentiles(seconds), "actions/s": round(len(seconds) / sum(seconds)), SERVER: 0.0}


def examples(policy: ExportedPolicy, count: int = 100) -> list[dict[str, Array]]:
    """Random observations within the range of the log, and random images."""
    generator, found = np.random.default_rng(0), []
    for _ in range(count):
        parts = {}
        for part in policy.contract["observations"]:
            if part["dtype"] == "uint8":
                parts[part["name"]] = generator.integers(0, 256, part["shape"], dtype=np.uint8)
            else:
                numbers = generator.uniform(part["low"], part["high"])
                parts[part["name"]] = numbers.astype(np.float32)
        found.append(parts)
    return found


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an exported folder")
    parser.add_argument("--server", required=True, help="the command mlserver")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of all clients together")
    options = parser.parse_args()
    policy = load_policy(options.folder, outside="ignore")
    observations = examples(policy)
    messages = [request(observation) for observation in observations]
    wanted = [np.asarray(policy.select_action(observation)) for observation in observations]
    rows: list[dict[str, Any]] = [{"": "the runner alone", **directly(policy, observations, options.calls)}]
    with tempfile.TemporaryDirectory() as temporary:
        server, port = start(options.server, options.folder.resolve(), Path(temporary))
        try:
            asyncio.run(clients(port, 1, 200, messages))  # the first calls take longer
            different = 0
            for count in CLIENTS:
                begin, used = time.perf_counter(), cpu_seconds(server)
                seconds, answers = asyncio.run(clients(port, count, options.calls, messages))
                calls, used = len(seconds), cpu_seconds(server) - used
                rates = {
                    "actions/s": round(calls / (time.perf_counter() - begin)),
                    SERVER: round(1e3 * used / calls, 2),
                }
                rows.append({"": f"MLServer, clients: {count}", **percentiles(seconds), **rates})
                for client in answers:
                    for answer, action in zip(client, itertools.cycle(wanted), strict=False):
                        (output,) = json.loads(answer)["outputs"]
                        different += not np.array_equal(np.float32(output["data"]), action.ravel())
        finally:
            server.terminate()
            server.wait()
    about = policy.contract["about"]
    write_record(
        RESULTS / "serving.json", policy={key: about[key] for key in ("task", "method")}, calls=options.calls,
        different_actions=different, rows=rows,
    )  # fmt: skip
    table = markdown(pd.DataFrame(rows))
    print(table, f"actions that differ from the runner's: {different}", sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
