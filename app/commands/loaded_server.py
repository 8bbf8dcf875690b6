"""The server that `trimvit bench` loads: its model, and one image sent to it."""

import random
from collections.abc import Sequence

import httpx

from app.commands.load import ANSWERED, Outcome
from app.wrong_values import no_such

CLASSIFY, EMBED = "/v1/classify", "/v1/embed"

_PROBLEM = "urn:trimvit:problem:"


async def described(client: httpx.AsyncClient, url: str, asked: str | None) -> tuple[dict[str, str], str]:
    """The server's description of the requested model, by default its first one, and the route for it.

    Raises ValueError if the server is not ready, is not a TrimViT server or has no such model, and
    httpx.RequestError if it cannot be reached.
    """
    answer = await client.get("/v1/models")
    try:
        document = answer.json()
        if answer.status_code == 200:
            models = {str(model["name"]): model for model in document["models"]}
            name = next(iter(models)) if asked is None else asked
            if name in models:
                path = CLASSIFY if models[name]["labels"] else EMBED
                return {each: models[name][each] for each in ("name", "device", "dtype")}, path
            refusal = f"{url}: {no_such('model', name, models)}"
        else:
            refusal = f"{url} responds with {answer.status_code}: {document['detail']}"
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise ValueError(
            f"{url} does not respond like a TrimViT server (/v1/models: {answer.status_code}); check the "
            "address"
        ) from error
    raise ValueError(refusal)


async def check_is_accepted(client: httpx.AsyncClient, request: httpx.Request, url: str) -> None:
    """Send one image before all others, so that a request that the server always refuses fails at once.
    Raises ValueError with the server's reason."""
    answer = await client.send(request)
    if answer.is_client_error and answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
        try:
            detail = answer.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = answer.text[:200]
        raise ValueError(f"{url} refused the image with {answer.status_code}: {detail}")


class Sender:
    """Sends images, drawn at random, over persistent connections."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        path: str,
        images: Sequence[bytes],
        options: dict[str, str],
        draw: random.Random,
    ) -> None:
        self._client = client
        self._path = path
        self._images = images
        self._options = options
        self._draw = draw

    def request(self, keep_ratio: float | None) -> httpx.Request:
        """The request for one image. None is the server's default ratio."""
        own = {} if keep_ratio is None else {"keep_ratio": repr(keep_ratio)}
        image = self._draw.choice(self._images)
        return self._client.build_request("POST", self._path, content=image, params={**self._options, **own})

    async def __call__(self, keep_ratio: float | None) -> Outcome:
        """Send the image and return its outcome."""
        try:
            answer = await self._client.send(self.request(keep_ratio))
        except httpx.TimeoutException:
            return Outcome("timeout")
        except httpx.TransportError as error:
            return Outcome(f"no answer ({type(error).__name__})")
        status = str(answer.status_code)
        try:
            document = answer.json()
            if status == ANSWERED:
                (result,) = document["results"]
                return Outcome(status, compute=result["compute"], cached=result.get("cached", False))
            return Outcome(status, document["type"].removeprefix(_PROBLEM))
        except (ValueError, KeyError, TypeError, IndexError):
            return Outcome(f"{status} (not TrimViT's)")
