"""boto3 alone: Sign in threads, as fast as it goes.

boto3_loop.py ENDPOINT KEY_ARN PROCESSES THREADS SECONDS     (THREADS are those of one process)
Prints {"count": N, "seconds": S} as JSON.
"""

import hashlib
import json
import os
import sys
import threading
import time

import boto3
from botocore.config import Config

ENDPOINT, KEY = sys.argv[1:3]
PROCESSES, THREADS, SECONDS = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])


def make_client():
    return boto3.client(
        "kms",
        region_name=KEY.split(":")[3],
        endpoint_url=ENDPOINT,
        aws_access_key_id="AKIATESTTESTTESTTEST",
        aws_secret_access_key="secret",
        config=Config(
            max_pool_connections=THREADS + 4,
            retries={"mode": "standard", "total_max_attempts": 1},
            tcp_keepalive=True,
        ),
    )


def sign(client, number):
    client.sign(
        KeyId=KEY,
        Message=hashlib.sha256(number.to_bytes(8, "big")).digest(),
        MessageType="DIGEST",
        SigningAlgorithm="ECDSA_SHA_256",
    )


def run(ready, go):
    """How many signatures one process got in SECONDS, from the moment that ``go`` is closed."""
    client, counts = make_client(), [0] * THREADS
    sign(client, 0)
    os.write(ready, b"r")
    os.read(go, 1)
    end = time.monotonic() + SECONDS

    def work(mine):
        while time.monotonic() < end:
            sign(client, counts[mine])
            counts[mine] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def main():
    go, start = os.pipe()
    results = []
    for _ in range(PROCESSES):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(start)
            os.close(reader)
            os.write(writer, str(run(writer, go)).encode())
            os._exit(0)
        os.close(writer)
        assert os.read(reader, 1) == b"r", "a process failed"
        results.append(reader)
    began = time.monotonic()
    os.close(start)
    counts = [int(os.read(reader, 20) or b"-1") for reader in results]
    seconds = time.monotonic() - began
    for _ in results:
        os.wait()
    assert min(counts) > 0, "a process failed"
    print(json.dumps({"count": sum(counts), "seconds": seconds}))


if __name__ == "__main__":
    main()
