"""One FastAPI route that reads the body and answers a small JSON, in one uvicorn process:
the least that a server on these libraries does. benchmarks.host compares `trimvit serve` with it.

    python -m benchmarks.bare [asyncio | uvloop]

It prints the port that it listens on.
"""

import socket
import sys

import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/")
async def measure(request: Request) -> dict[str, int]:
    """The body's size."""
    return {"bytes": len(await request.body())}


def main() -> None:
    loop = sys.argv[1] if len(sys.argv) > 1 else "auto"
    config = uvicorn.Config(
        app, http="httptools", loop=loop, ws="none", access_log=False, log_level="error", server_header=False
    )
    # Of a socket that does not say TCP, asyncio leaves Nagle's algorithm on: every answer would take 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
