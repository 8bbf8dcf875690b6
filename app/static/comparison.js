// Several keep ratios side by side.

import { bar, byId, element, say } from "./dom.js";
import { Latest } from "./latest.js";
import { MaskedPicture } from "./picture.js";
import { queryOf } from "./request.js";
import { answerPatiently } from "./server.js";
import { Trouble, duration, percent, shortLabel } from "./words.js";

const COMPARED = [1, 0.9, 0.7, 0.5, 0.3];
const comparisons = new Latest();

/** Forget what was compared. */
export function clearComparison() {
  comparisons.cancel();
  byId("cards").replaceChildren();
  say("compare", "Compare");
  byId("compare").disabled = false;
}

/**
 * Ask for the five ratios one after the other, so that none waits in another's batch.
 * `onChoose` is told of the ratio whose card is clicked, `onTrouble` of what went wrong.
 */
export async function compare(photograph, model, chosen, { onChoose, onTrouble }) {
  clearComparison();
  const turn = comparisons.next();
  const cards = COMPARED.map((ratio) => card(ratio, model, onChoose));
  byId("cards").replaceChildren(...cards.map(({ item }) => item));
  byId("compare").disabled = true;
  say("compare", "Comparing …");
  try {
    let unpruned = null;
    for (const [index, ratio] of COMPARED.entries()) {
      const query = queryOf({ ...chosen, way: "keep_ratio", value: ratio });
      const came = await answerPatiently("v1/classify", photograph.blob, query, turn.signal, (trouble) => {
        say("status", `${trouble.title} Trying again in ${trouble.retryAfterS} s.`);
        say("compare", "Waiting for the server …");
      });
      if (!turn.isCurrent()) return;
      say("compare", "Comparing …");
      unpruned ??= came.results[0].labels[0].index;
      cards[index].fill(came, photograph.seen, unpruned);
    }
    say("status", "Compared five ratios.");
  } catch (trouble) {
    if (!turn.isCurrent()) return;
    if (!(trouble instanceof Trouble)) throw trouble;
    clearComparison();
    onTrouble(trouble);
  }
  byId("compare").disabled = false;
  say("compare", "Compare again");
}

/** A place for one ratio's answer. */
function card(ratio, model, onChoose) {
  const canvas = element("canvas");
  canvas.setAttribute("aria-hidden", "true");
  canvas.width = model.input.width;
  canvas.height = model.input.height;
  const label = element("span", { className: "label" }, "…");
  const cost = element("span", { className: "cost" });
  const button = element("button", { type: "button", disabled: true });
  const text = element("span", { className: "text" });
  text.append(element("span", { className: "ratio" }, String(ratio)), label, cost);
  button.append(canvas, text);
  button.addEventListener("click", () => onChoose(ratio));
  const item = element("li", {}, button);
  const fill = (came, seen, unpruned) => {
    const { labels, compute, mask } = came.results[0];
    if (seen) {
      const small = new MaskedPicture(canvas);
      small.setPhotograph(seen, model);
      small.show(mask ? mask.at(-1).indices : null);
    }
    label.replaceChildren(shortLabel(labels[0].label), " ", element("i", {}, percent(labels[0].score)));
    label.classList.toggle("differs", labels[0].index !== unpruned);
    if (labels[0].index !== unpruned) label.append(element("span", { className: "apart" }, ", not what the unpruned model says"));
    cost.replaceChildren(bar(compute), `${percent(compute, 0)} of the compute, ${duration(came.timings_ms.total)}`);
    button.disabled = false;
  };
  return { item, fill };
}
