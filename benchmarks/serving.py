"""Serve an exported policy with MLServer on this machine: the same actions, and how long they take.

    python -m benchmarks.serving FOLDER

FOLDER is an exported one (docs/deploy.md). MLServer is installed from PyPI into ``.venv-peers`` on first use.
Clients ask one after another over connections that stay open (KServe v2, JSON).
``benchmarks.deploy`` does this for every actor.
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

from benchmarks.common import PROJECT, markdown
from benchmarks.speed import Contender, python_of
from cvl_pipeline.deploy.runner import ExportedPolicy, load_policy

CLIENTS, CALLS = (1, 8, 64), 4000
PATH = "/v2/models/policy"
SERVER = "CPU of the server per action, ms"
Array = NDArray[Any]
MLSERVER = Contender(
    "MLServer", "mlserver", (), "", environment="mlserver",
    requirements=(("mlserver==1.7.1", "onnxruntime", "tritonclient[grpc]"),),
)  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports that nothing uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def mlserver() -> str:
    """Return the command ``mlserver``; create its environment if it is missing."""
    return str(python_of(MLSERVER).with_name("mlserver"))


def start(command: str, folder: Path, place: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start the server, and return it with its ports of HTTP and gRPC when it answers."""
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
            return server, port, int(ports[names[1]])
        except (URLError, ConnectionError):
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


def grpc_answers(command: str, folder: Path, port: int) -> dict[str, Any]:
    """Ask over gRPC, by the environment of the server; return what ``peers/kserve_client.py`` prints."""
    client = str(PROJECT / "benchmarks/peers/kserve_client.py")
    python = str(Path(command).with_name("python"))
    result = subprocess.run(
        [python, "-I", client, str(folder.resolve()), f"127.0.0.1:{port}"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def measure(folder: Path, command: str, calls: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Serve a folder with MLServer; return a row for the runner alone and for each number of clients, and the answers.

    Args:
        folder: an exported one.
        command: ``mlserver`` of an environment that has tritonclient[grpc] as well.
        calls: of all clients together, for each row.

    Returns:
        The rows, and how many actions differ from the runner's over HTTP and over gRPC.
    """
    policy = load_policy(folder, outside="ignore")
    observations = examples(policy)
    messages = [request(observation) for observation in observations]
    wanted = [np.asarray(policy.select_action(observation)) for observation in observations]
    rows: list[dict[str, Any]] = [{"": "the runner alone", **directly(policy, observations, calls)}]
    with tempfile.TemporaryDirectory() as temporary:
        server, port, grpc = start(command, folder.resolve(), Path(temporary))
        try:
            asyncio.run(clients(port, 1, 100, messages))  # the first calls take longer
            different = 0
            for count in CLIENTS:
                begin, used = time.perf_counter(), cpu_seconds(server)
                seconds, answers = asyncio.run(clients(port, count, max(calls, count), messages))
                asked, used = len(seconds), cpu_seconds(server) - used
                rates = {
                    "actions/s": round(asked / (time.perf_counter() - begin)),
                    SERVER: round(1e3 * used / asked, 2),
                }
                rows.append({"": f"MLServer, clients: {count}", **percentiles(seconds), **rates})
                for client in answers:
                    for answer, action in zip(client, itertools.cycle(wanted), strict=False):
                        (output,) = json.loads(answer)["outputs"]
                        different += not np.array_equal(np.float32(output["data"]), action.ravel())
            over_grpc = grpc_answers(command, folder, grpc)
        finally:
            server.terminate()
            server.wait()
    return rows, {"different_actions_http": different, "grpc": over_grpc}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="an exported folder")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of all clients together")
    options = parser.parse_args()
    rows, answers = measure(options.folder, mlserver(), options.calls)
    print(markdown(pd.DataFrame(rows)), answers, sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
