// What is chosen on the page -> a request to /v1/classify, and the curl command that says the same.

/**
 * @typedef {object} Choice
 * @property {"keep_ratio" | "compute" | "keep_mass" | "cascade"} way how the patches to keep are chosen
 * @property {number} value of the way, above 0 and at most 1; a cascade reads none
 * @property {string} criterion
 * @property {string} reducer
 * @property {string | null} model its name, or null for the default one
 */

export const LABELS = 5;
/** Reducers that read no criterion, and so compute no importance. */
export const WITHOUT_CRITERION = ["merge", "pool"];
const MODEL = "model"; // in the page's own query

/**
 * What a choice says of pruning. A cascade has a criterion and a reducer of its own, and some reducers read no
 * criterion.
 */
function pruningOf(/** @type {Choice} */ { way, value, criterion, reducer, model = null }) {
  const query = new URLSearchParams();
  if (model !== null) query.set("model", model);
  if (way === "cascade") {
    query.set("cascade", "true");
  } else {
    query.set(way, String(value));
    if (!WITHOUT_CRITERION.includes(reducer)) query.set("criterion", criterion);
    query.set("reducer", reducer);
  }
  return query;
}

/** The query of a request; of a model without labels, that for its features. What is pooled has no mask. */
export function queryOf(/** @type {Choice} */ choice, { labels = true } = {}) {
  const query = pruningOf(choice);
  if (labels) query.set("top_k", String(LABELS));
  if (choice.reducer !== "pool") {
    query.set("mask", "indices");
    query.set("mask_stages", "true");
  }
  return query;
}

/** The query of a request for features alone, as vectors of length 1. */
export function featuresQueryOf(/** @type {Choice} */ choice) {
  const query = pruningOf(choice);
  query.set("normalize", "true");
  query.set("encoding", "base64");
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

/** The model that the page's address names, if it is one of these; else the first. */
export function modelOf(models, search) {
  const name = new URLSearchParams(search).get(MODEL);
  return models.find((model) => model.name === name) ?? models[0];
}

/** The page's address, which names the model; the first of the `models` needs no name. */
export function addressOf(href, models, model) {
  const url = new URL(href);
  if (model.name === models[0].name) url.searchParams.delete(MODEL);
  else url.searchParams.set(MODEL, model.name);
  return url.href;
}
