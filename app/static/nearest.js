// Which of a few pictures are nearest to each other, by the features that the model makes of them.

import { byId, element, say } from "./dom.js";
import { floatsOf, neighbours } from "./features.js";
import { Latest } from "./latest.js";
import { cropped } from "./picture.js";
import { featuresQueryOf } from "./request.js";
import { embedPatiently } from "./server.js";
import { Trouble, tooLarge } from "./words.js";

const FEWEST = 2;
const MOST = 8;
const turns = new Latest();

/** Forget what was compared. */
export function clearNearest() {
  turns.cancel();
  byId("neighbours").replaceChildren();
  say("nearest-note", "");
  setBusy(false);
}

/**
 * Ask for the features of these pictures, {blob, name} each, and show for each one the others in order.
 * `onTrouble` is told of what went wrong.
 */
export async function showNearest(pictures, model, choice, onTrouble) {
  clearNearest();
  if (pictures.length < FEWEST || pictures.length > MOST) {
    say("nearest-note", `Choose ${FEWEST} to ${MOST} pictures; you chose ${pictures.length}.`);
    return;
  }
  const limit = Number(document.body.dataset.maxBodyBytes);
  const large = pictures.find(({ blob }) => blob.size > limit);
  if (large) {
    onTrouble(tooLarge(large.blob.size, limit));
    return;
  }
  const turn = turns.next();
  setBusy(true);
  try {
    const query = featuresQueryOf(choice);
    const vectors = [];
    const seen = [];
    for (const [index, { blob }] of pictures.entries()) {
      say("nearest-note", `Computing picture ${index + 1} of ${pictures.length} …`);
      const came = await embedPatiently(blob, query, turn.signal, (trouble) => {
        say("nearest-note", `${trouble.title} Trying again in ${trouble.retryAfterS} s.`);
      });
      vectors.push(floatsOf(came.results[0].embedding));
      seen.push(await createImageBitmap(blob).then((bitmap) => cropped(bitmap, model.input), () => null));
      if (!turn.isCurrent()) return;
    }
    show(pictures, seen, neighbours(vectors));
    say("nearest-note", `Cosine similarity of ${vectors[0].length} features, ${said(query)}.`);
    say("status", `Compared ${pictures.length} pictures.`);
  } catch (trouble) {
    if (!turn.isCurrent()) return;
    clearNearest();
    if (!(trouble instanceof Trouble)) throw trouble;
    onTrouble(trouble);
  } finally {
    if (turn.isCurrent()) setBusy(false);
  }
}

function said(query) {
  const [name, value] = [...query].find(([option]) => option !== "model");
  return name === "cascade" ? "with the cascade" : `at ${name.replaceAll("_", " ")} ${value}`;
}

function setBusy(busy) {
  byId("neighbours").setAttribute("aria-busy", String(busy));
}

function show(pictures, seen, nearest) {
  const rows = pictures.map(({ name }, own) => {
    const others = element("ol", { className: "others" });
    others.setAttribute("aria-label", `Nearest to ${name}, in order`);
    others.append(
      ...nearest[own].map(({ index, cosine }) =>
        element("li", {}, small(seen[index], pictures[index].name), element("span", {}, cosine.toFixed(2))),
      ),
    );
    const whose = element("div", { className: "whose" }, small(seen[own], name), element("span", {}, name));
    return element("li", {}, whose, others);
  });
  byId("neighbours").replaceChildren(...rows);
}

/** A picture in small; its name, where this browser cannot show it. */
function small(seen, name) {
  if (seen === null) return element("span", { className: "unseen" }, name);
  const canvas = element("canvas", { width: seen.width, height: seen.height });
  canvas.getContext("2d").drawImage(seen, 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  return canvas;
}
