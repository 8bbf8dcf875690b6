// One answer in numbers and words: labels, cost, times.

import { bar, byId, element, say } from "./dom.js";
import { duration, percent, shortLabel } from "./words.js";

const PHASES = { decode: "decode", queue: "queue", compute: "compute", rest: "the rest" };

/** Show the result of a question; `query` is what was asked. */
export function showResult(came, query) {
  const [answer] = came.results;
  const { labels = [] } = answer; // none of a model without a head
  const [best] = labels;
  byId("answer").classList.remove("stale");
  for (const id of ["verdict", "labels"]) byId(id).hidden = !best;
  say("label", best ? shortLabel(best.label) : "");
  say("score", best ? percent(best.score) : "");
  say("remark", remarks(answer, query).join(" "));
  byId("labels").replaceChildren(
    ...labels.map(({ label, score }) =>
      element("li", {}, element("span", { className: "name" }, shortLabel(label)), bar(score), percent(score, 1)),
    ),
  );
  const { total, kept, per_stage } = answer.patches;
  const saved = 1 - answer.compute;
  say("saved", saved >= 0 ? percent(saved, 0) : "none");
  say("spent", `${percent(answer.compute, 0)} of the unpruned cost`);
  say("left", `${kept} of ${total}`);
  say("per-stage", [total, ...per_stage].join(" → "));
  showTimings(came);
  say(
    "status",
    `${best ? `${shortLabel(best.label)}, ${percent(best.score)}. ` : ""}${percent(Math.max(0, saved), 0)} of the compute saved, ` +
      `${kept} of ${total} patches left, ${duration(came.timings_ms.total)}.`,
  );
}

/** What is worth knowing of an answer beyond its numbers. */
function remarks({ labels = [], keep_ratio, runs, cached }, query) {
  const said = [];
  if (cached) said.push("This answer is from the server's cache, so nothing was decoded or computed.");
  if (labels[0]?.score < 0.5) said.push("The model is uncertain: no label has a probability of 50 % or more.");
  if (runs === 2) said.push("The first run was uncertain, so the image was computed again without pruning.");
  else if (query.has("cascade")) said.push(`The first run, at keep ratio ${keep_ratio}, was certain enough.`);
  if (query.has("compute") || query.has("keep_mass")) said.push(`The resulting keep ratio is ${Number(keep_ratio.toFixed(3))}.`);
  return said;
}

function showTimings({ timings_ms: timings, roundTripMs }) {
  const known = timings.decode + timings.queue + timings.compute;
  const phases = { ...timings, rest: Math.max(0, timings.total - known) };
  say("total", duration(timings.total));
  say("round-trip", `${duration(roundTripMs)} including the network`);
  byId("phases").replaceChildren(
    ...Object.entries(PHASES).map(([phase, name]) =>
      element("li", { className: phase }, `${name} `, element("b", {}, duration(phases[phase]))),
    ),
  );
  byId("phase-bar").replaceChildren(
    ...Object.keys(PHASES).map((phase) => {
      const part = element("span", { className: phase });
      part.style.flexGrow = String(phases[phase]);
      return part;
    }),
  );
}
