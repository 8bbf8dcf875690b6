// The routes that the page asks, relative to it: it works under any path that a proxy gives it.

import { pause } from "./latest.js";
import { Trouble, troubleOf, unreachable } from "./words.js";

const TRIES = 6;
const KEY_PLACE = "trimvit-key"; // in the tab's own storage, which goes with the tab

let key = null;
try {
  key = sessionStorage.getItem(KEY_PLACE);
} catch {
  // A browser that keeps nothing asks again after a reload.
}

/** The API key that goes with every question, or null. */
export function currentKey() {
  return key;
}

export function useKey(given) {
  key = given;
  try {
    sessionStorage.setItem(KEY_PLACE, given);
  } catch {
    // It holds until the page is left.
  }
}

/** The address of a route. */
export function route(path, query) {
  const url = new URL(path, document.baseURI);
  if (query) url.search = query;
  return url;
}

/** The JSON of an answer. Throws a Trouble, or the signal's reason when it was aborted. */
async function fetchJson(url, options) {
  const headers = { ...options?.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(url, { ...options, headers, cache: "no-store" });
    if (response.ok) return await response.json();
  } catch {
    options?.signal?.throwIfAborted();
    throw unreachable();
  }
  const problem = await response.json().catch(() => null);
  options?.signal?.throwIfAborted();
  throw troubleOf(response.status, problem, response.headers.get("Retry-After"));
}

/** The models that are served, the default one first. */
export async function fetchModels() {
  return (await fetchJson(route("v1/models"))).models;
}

export function fetchStats() {
  return fetchJson(route("v1/stats"));
}

/** The route that answers with a model's labels, or with its features where it has none. */
export function answering({ labels }) {
  return labels.length ? "v1/classify" : "v1/embed";
}

/** One photograph's answer, and how long it took as seen from here, in milliseconds. */
export async function answer(path, blob, query, signal) {
  const started = performance.now();
  const headers = { "Content-Type": blob.type.startsWith("image/") ? blob.type : "application/octet-stream" };
  const came = await fetchJson(route(path, query), { method: "POST", body: blob, headers, signal });
  return { ...came, roundTripMs: performance.now() - started };
}

/** As `answer`, but where the server says when to come back, it is asked again; `onWait` is told of it. */
export async function answerPatiently(path, blob, query, signal, onWait) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await answer(path, blob, query, signal);
    } catch (trouble) {
      if (!(trouble instanceof Trouble) || trouble.retryAfterS === null || tries === TRIES) throw trouble;
      onWait(trouble);
      await pause(trouble.retryAfterS * 1000, signal);
    }
  }
}

export function embedPatiently(...given) {
  return answerPatiently("v1/embed", ...given);
}
