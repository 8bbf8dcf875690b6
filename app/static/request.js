// What is chosen on the page -> a request to /v1/classify, and the curl command that says the same.

/**
 * @typedef {object} Choice
 * @property {"keep_ratio" | "compute" | "keep_mass" | "cascade"} way how the patches to keep are chosen
 * @property {number} value of the way, above 0 and at most 1; a cascade reads none
 * @property {string} criterion
 * @property {string} reducer
 */

export const LABELS = 5;

/** The query of a request. A cascade chooses criterion and reducer itself, and merging reads no criterion. */
export function queryOf(/** @type {Choice} */ { way, value, criterion, reducer }) {
  const query = new URLSearchParams();
  if (way === "cascade") {
    query.set("cascade", "true");
  } else {
    query.set(way, String(value));
    if (reducer !== "merge") query.set("criterion", criterion);
    query.set("reducer", reducer);
  }
  query.set("top_k", String(LABELS));
  query.set("mask", "indices");
  query.set("mask_stages", "true");
  return query;
}

/** One word of a POSIX shell, whatever is in it. */
export function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * The command that asks what the page asked.
 * @param {URL} url with the query
 * @param {{name: string, url?: URL}} photograph a file of that name, or one that the server has at `url`
 * @param {boolean} withKey whether the server asks for an API key, which the command takes from the shell
 */
export function curlCommand(url, photograph, withKey = false) {
  const from = photograph.url ? "@-" : `@${photograph.name}`;
  const key = withKey ? '-H "X-API-Key: $TRIMVIT_KEY" ' : "";
  const ask = `curl ${key}--data-binary ${shellWord(from)} ${shellWord(url.href)}`;
  return photograph.url ? `curl -s ${shellWord(photograph.url.href)} | ${ask}` : ask;
}
