"""A minimal server: one FastAPI route in one uvicorn process, which reads the body and returns a small JSON.
It is the lower bound for servers with these libraries, and benchmarks.host compares `trimvit serve` with it.

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
    """Return the size of the body."""
    return {"bytes": len(await request.body())}


def main() -> None:
    loop = sys.argv[1] if len(sys.argv) > 1 else "auto"
    config = uvicorn.Config(
        app, http="httptools", loop=loop, ws="none", access_log=False, log_level="error", server_header=False
    )
    # asyncio only disables Nagle's algorithm if the socket specifies TCP. It would delay responses by 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
