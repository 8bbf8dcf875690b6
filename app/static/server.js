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

/** The model that is served. */
export async function fetchModel() {
  return (await fetchJson(route("v1/models"))).models[0];
}

export function fetchStats() {
  return fetchJson(route("v1/stats"));
}

/** One photograph's answer, and how long it took as seen from here, in milliseconds. */
export async function classify(blob, query, signal) {
  const started = performance.now();
  const headers = { "Content-Type": blob.type.startsWith("image/") ? blob.type : "application/octet-stream" };
  const answer = await fetchJson(route("v1/classify", query), { method: "POST", body: blob, headers, signal });
  return { ...answer, roundTripMs: performance.now() - started };
}

/** As `classify`, but where the server says when to come back, it is asked again; `onWait` is told of it. */
export async function classifyPatiently(blob, query, signal, onWait) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await classify(blob, query, signal);
    } catch (trouble) {
      if (!(trouble instanceof Trouble) || trouble.retryAfterS === null || tries === TRIES) throw trouble;
      onWait(trouble);
      await pause(trouble.retryAfterS * 1000, signal);
    }
  }
}
