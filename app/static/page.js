// The page: what is chosen goes to the server, and what comes back is shown.

import { Latest, debounced } from "./latest.js";
import { MaskedPicture, cropped, movesAllowed } from "./picture.js";
import { curlCommand, queryOf } from "./request.js";
import { classify, classifyPatiently, fetchModel, fetchStats, route } from "./server.js";
import { rates, withSample } from "./stats.js";
import { Trouble, duration, percent, shortLabel, tooLarge, unreachable } from "./words.js";

const WAYS = {
  keep_ratio: {
    label: "Kept at each stage",
    meaning: "Share of the patches that are still there; 1 prunes nothing.",
    value: 0.5,
  },
  compute: {
    label: "Compute spent at most",
    meaning: "Share of what the unpruned model costs; the keep ratio follows.",
    value: 0.6,
  },
  keep_mass: {
    label: "Importance kept at the first stage",
    meaning: "The keep ratio follows from it, for each photograph its own.",
    value: 0.8,
  },
};
const CRITERIA = {
  variance: "Keeps where the attention heads disagree most.",
  mad: "Keeps where most heads disagree, whatever a single one does.",
  iqr: "Keeps where the middle half of the heads disagrees.",
  mean: "Keeps where the heads look most on average (EViT).",
  mean_value_norm: "Average attention times the size of what it carries (ATS).",
  random: "Keeps patches by lot, for comparison.",
};
const REDUCERS = {
  drop: "The other patches are dropped.",
  fuse: "The others are fused into one token a stage (EViT).",
  merge: "The others are merged into those most like them (ToMe); reads no criterion.",
};
const PHASES = { decode: "decode", queue: "queue", compute: "compute", rest: "the rest" };
const COMPARED = [1, 0.9, 0.7, 0.5, 0.3];
const FEW_LABELS = 20;
const STAGE_SHOWN_MS = 850;
const STATS_EVERY_MS = 2000;
const MODEL_AGAIN_MS = 2000;
const THEMES = ["system", "light", "dark"];

const byId = (id) => document.getElementById(id);
const say = (id, text) => {
  byId(id).textContent = text;
};
const whole = new Intl.NumberFormat("en");

/** An element with these properties and children. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A bar of so large a share; its meaning stands beside it in words. */
function bar(share) {
  const filled = element("span");
  filled.style.width = `${Math.min(1, share) * 100}%`;
  const all = element("span", { className: "bar" }, filled);
  all.setAttribute("aria-hidden", "true");
  return all;
}

let model = null;
let photograph = null; // {blob, name, url?, opening: of a bitmap, seen: canvas or null}
let reloadedFor = null; // the name of a model; asked for once only, as two servers may take turns
let answer = null; // the newest
let stage = 0; // shown: 0 is the whole photograph
const picture = new MaskedPicture(byId("picture"));
const questions = new Latest();
const openings = new Latest();
const comparisons = new Latest();
const plays = new Latest();

// --- the model ---------------------------------------------------------------------------------------

async function loadModel() {
  for (;;) {
    try {
      showModel(await fetchModel());
      hideTrouble();
      if (photograph) {
        seePhotograph();
        ask();
      }
      return;
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      say("served", trouble.title);
      showTrouble(trouble, "Asking again until it answers.");
      await new Promise((wake) => setTimeout(wake, (trouble.retryAfterS ?? 0) * 1000 || MODEL_AGAIN_MS));
    }
  }
}

function showModel(loaded) {
  const first = model === null;
  model = loaded;
  say("served", `${model.name} on ${model.device}, ${model.dtype}`);
  const names = model.labels.map(shortLabel);
  const few = names.length <= FEW_LABELS;
  say(
    "knows-text",
    `The model knows ${whole.format(names.length)} labels and answers with the nearest of them, whatever the ` +
      `photograph shows${few ? `: ${names.join(", ")}` : ""}.`,
  );
  byId("knows-all").hidden = few;
  say("knows-list", few ? "" : names.join(", "));
  byId("knows").hidden = false;

  fillSelect("criterion", model.criteria, model.default_criterion);
  fillSelect("reducer", model.reducers, model.default_reducer);
  byId("way-cascade").hidden = model.cascade === null;
  if (first && model.default_keep_ratio < 1) WAYS.keep_ratio.value = model.default_keep_ratio;
  if (way() === "cascade" && model.cascade === null) document.forms.controls.way.value = "keep_ratio";
  const legend = byId("stages").firstElementChild;
  byId("stages").replaceChildren(
    legend,
    ...["Whole", ...model.stages.map((block) => `Block ${block}`)].map((name, index) => {
      const input = element("input", { type: "radio", name: "stage", value: String(index), checked: index === 0 });
      return element("label", {}, input, element("span", {}, name, element("small")));
    }),
  );
  stage = model.stages.length;
  showChoice();
}

function fillSelect(id, names, chosen) {
  const select = byId(id);
  const kept = names.includes(select.value) ? select.value : chosen;
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name.replaceAll("_", " "))));
  select.value = kept;
}

// --- what is chosen ----------------------------------------------------------------------------------

function way() {
  return document.forms.controls.way.value;
}

/** @returns {import("./request.js").Choice} */
function choice() {
  return {
    way: way(),
    value: Number(byId("value").value),
    criterion: byId("criterion").value,
    reducer: byId("reducer").value,
  };
}

/** Bring the controls in line with each other: what a way leaves no choice about cannot be chosen beside it. */
function showChoice() {
  const chosen = way();
  const cascade = chosen === "cascade";
  const reducer = byId("reducer");
  for (const option of reducer.options) option.disabled = option.value === "merge" && chosen === "keep_mass";
  if (reducer.selectedOptions[0]?.disabled) reducer.value = "drop";
  byId("criterion").disabled = reducer.value === "merge";
  byId("slider").hidden = cascade;
  byId("selects").hidden = cascade;
  if (cascade) {
    const { keep_ratio, criterion, reducer: reduced, agreement, compute } = model.cascade;
    say(
      "way-meaning",
      `A run at keep ratio ${keep_ratio} first (${[criterion, reduced].filter(Boolean).join(", ")}), and the ` +
        `unpruned model where that is unsure. Calibrated to agree with the unpruned model on ` +
        `${percent(agreement, 1)} of images, for ${percent(compute, 0)} of its compute on average.`,
    );
  } else {
    say("value-label", WAYS[chosen].label);
    say("way-meaning", WAYS[chosen].meaning);
    byId("value").value = String(WAYS[chosen].value);
    showValue();
  }
  say("criterion-meaning", CRITERIA[byId("criterion").value] ?? "");
  say("reducer-meaning", REDUCERS[reducer.value] ?? "");
}

function showValue() {
  const slider = byId("value");
  const value = Number(slider.value);
  WAYS[way()].value = value;
  say("value-shown", value.toFixed(2));
  slider.style.setProperty("--filled", `${((value - slider.min) / (slider.max - slider.min)) * 100}%`);
}

// --- the photograph ----------------------------------------------------------------------------------

/** Take a photograph: show what the model sees of it at once, and ask what it is. */
function open(blob, name, url) {
  openings.cancel();
  questions.cancel();
  setBusy(false);
  clearComparison();
  photograph = { blob, name, url, seen: null };
  answer = null;
  byId("answer").hidden = true;
  byId("command").hidden = true;
  stopPlaying();
  hideTrouble();
  const limit = Number(document.body.dataset.maxBodyBytes);
  if (blob.size > limit) {
    forgetPhotograph();
    showTrouble(tooLarge(blob.size, limit));
    return;
  }
  photograph.opening = createImageBitmap(blob).catch(() => null);
  seePhotograph();
  ask();
}

/** Show the photograph, as soon as it and the model are there. */
async function seePhotograph() {
  const shown = photograph;
  let bitmap = await shown.opening;
  // A picture that this browser cannot show, a TIFF perhaps, the server can once it has taken it.
  if (!bitmap && answer && photograph === shown) bitmap = await pictureFromServer(shown.blob);
  if (!bitmap || !model || photograph !== shown) return;
  shown.seen = cropped(bitmap, model.input);
  picture.setPhotograph(shown.seen, model);
  byId("picture").hidden = false;
  byId("empty").hidden = true;
  byId("another").hidden = false;
  if (answer) showStage({ fade: true });
  else describePicture();
}

/** The photograph as the model sees it: a mask that keeps everything. */
async function pictureFromServer(blob) {
  try {
    const { results } = await classify(blob, new URLSearchParams({ keep_ratio: "1", top_k: "1", mask: "png" }));
    const png = Uint8Array.from(atob(results[0].mask[0].png), (byte) => byte.charCodeAt(0));
    return await createImageBitmap(new Blob([png], { type: "image/png" }));
  } catch {
    return null; // labels without a picture are better than none
  }
}

function forgetPhotograph() {
  photograph = null;
  byId("picture").hidden = true;
  byId("through").hidden = true;
  byId("comparison").hidden = true;
  byId("empty").hidden = false;
}

async function openExample(name) {
  const image = document.querySelector(`[data-example="${name}"] img`);
  const turn = openings.next();
  let blob;
  try {
    blob = await (await fetch(image.src)).blob();
  } catch {
    if (turn.isCurrent()) showTrouble(unreachable());
    return;
  }
  if (turn.isCurrent()) open(blob, name, new URL(image.src));
}

// --- asking ------------------------------------------------------------------------------------------

/** Ask about the photograph as it is chosen now. Only the newest question's answer is shown. */
async function ask() {
  if (!photograph || !model) return;
  const turn = questions.next();
  const asked = photograph;
  const query = queryOf(choice());
  setBusy(true);
  try {
    const came = await classifyPatiently(asked.blob, query, turn.signal, (trouble) => {
      if (turn.isCurrent()) showTrouble(trouble, `Trying again in ${trouble.retryAfterS} s.`);
    });
    if (!turn.isCurrent()) return;
    hideTrouble();
    showAnswer(came, asked, query);
  } catch (trouble) {
    if (!turn.isCurrent()) return;
    if (!(trouble instanceof Trouble)) throw trouble;
    if (trouble.aboutPhotograph) {
      answer = null;
      byId("answer").hidden = true;
      forgetPhotograph();
    }
    byId("answer").classList.add("stale");
    showTrouble(trouble);
  } finally {
    if (turn.isCurrent()) setBusy(false);
  }
}

function setBusy(busy) {
  byId("answer").setAttribute("aria-busy", String(busy));
  byId("frame").classList.toggle("busy", busy);
}

const askSoon = debounced(ask, 60, 200);

function showAnswer(came, asked, query) {
  if (came.model !== model.name && came.model !== reloadedFor) {
    // The server was started anew with another model, whose patches may be others.
    reloadedFor = came.model;
    loadModel();
    return;
  }
  const first = answer === null;
  answer = came.results[0];
  if (!asked.seen) seePhotograph();
  const [best] = answer.labels;
  byId("answer").classList.remove("stale");
  say("label", shortLabel(best.label));
  say("score", percent(best.score));
  say("remark", remarks(answer, query).join(" "));
  byId("labels").replaceChildren(
    ...answer.labels.map(({ label, score }) =>
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
  for (const [index, label] of [...byId("stages").querySelectorAll("label")].entries()) {
    label.querySelector("small").textContent = whole.format(index === 0 ? total : per_stage[index - 1]);
  }
  say("curl", curlCommand(route("v1/classify", query), asked));
  for (const id of ["answer", "command", "comparison", "through"]) byId(id).hidden = false;
  say(
    "status",
    `${shortLabel(best.label)}, ${percent(best.score)}. ${percent(Math.max(0, saved), 0)} of the compute saved, ` +
      `${kept} of ${total} patches left, ${duration(came.timings_ms.total)}.`,
  );
  if (first && movesAllowed() && stage === model.stages.length) play();
  else showStage({ fade: true });
}

/** What is worth knowing of an answer beyond its numbers. */
function remarks({ labels, keep_ratio, runs }, query) {
  const said = [];
  if (labels[0].score < 0.5) said.push("The model is unsure: no label has half of the probability.");
  if (runs === 2) said.push("The cheap run was unsure, so the unpruned model was asked as well.");
  else if (query.has("cascade")) said.push(`The cheap run, at keep ratio ${keep_ratio}, was sure.`);
  if (query.has("compute") || query.has("keep_mass")) said.push(`This came to keep ratio ${Number(keep_ratio.toFixed(3))}.`);
  return said;
}

function showTimings({ timings_ms: timings, roundTripMs }) {
  const known = timings.decode + timings.queue + timings.compute;
  const phases = { ...timings, rest: Math.max(0, timings.total - known) };
  say("total", duration(timings.total));
  say("round-trip", `${duration(roundTripMs)} as seen from here`);
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

// --- stages ------------------------------------------------------------------------------------------

/** The patches left after the stage that is shown; null for all. */
function keptNow() {
  return answer && stage > 0 ? answer.mask[stage - 1].indices : null;
}

function showStage({ fade = false } = {}) {
  const radio = byId("stages").querySelector(`input[value="${stage}"]`);
  if (radio) radio.checked = true;
  picture.show(keptNow(), { fade });
  describePicture();
}

function describePicture() {
  const kept = keptNow();
  const left = kept ? `; ${kept.length} of ${answer.patches.total} patches are left after block ${model.stages[stage - 1]}` : "";
  byId("picture").setAttribute("aria-label", `${photograph?.name ?? "Photograph"} as the model sees it${left}`);
}

/** Show all stages one after the other, ending with the last. */
async function play() {
  const turn = plays.next();
  say("play", "Stop");
  for (stage = 0; stage <= model.stages.length; stage += 1) {
    showStage({ fade: stage > 0 });
    if (stage === model.stages.length) break;
    await new Promise((wake) => setTimeout(wake, STAGE_SHOWN_MS));
    if (!turn.isCurrent()) return;
  }
  stopPlaying();
}

function stopPlaying() {
  if (byId("play").textContent === "Stop" && model) stage = model.stages.length;
  plays.cancel();
  say("play", "Play");
}

// --- comparing ---------------------------------------------------------------------------------------

function clearComparison() {
  comparisons.cancel();
  byId("cards").replaceChildren();
  say("compare", "Compare");
  byId("compare").disabled = false;
}

/** Ask for the five ratios one after the other, so that none waits in another's batch. */
async function compare() {
  clearComparison();
  const turn = comparisons.next();
  const asked = photograph;
  const { criterion, reducer } = choice();
  const cards = COMPARED.map((ratio) => card(ratio));
  byId("cards").replaceChildren(...cards.map(({ item }) => item));
  byId("compare").disabled = true;
  say("compare", "Comparing …");
  try {
    let unpruned = null;
    for (const [index, ratio] of COMPARED.entries()) {
      const query = queryOf({ way: "keep_ratio", value: ratio, criterion, reducer });
      const came = await classifyPatiently(asked.blob, query, turn.signal, (trouble) =>
        say("status", `${trouble.title} Trying again in ${trouble.retryAfterS} s.`),
      );
      if (!turn.isCurrent()) return;
      unpruned ??= came.results[0].labels[0].index;
      cards[index].fill(came, asked.seen, unpruned);
    }
    say("status", "The five ratios are compared.");
  } catch (trouble) {
    if (!turn.isCurrent()) return;
    if (!(trouble instanceof Trouble)) throw trouble;
    clearComparison();
    showTrouble(trouble);
  }
  byId("compare").disabled = false;
  say("compare", "Compare again");
}

/** A place for one ratio's answer. */
function card(ratio) {
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
  button.addEventListener("click", () => lookCloser(ratio));
  const item = element("li", {}, button);
  const fill = (came, seen, unpruned) => {
    const { labels, compute, mask } = came.results[0];
    if (seen) {
      const small = new MaskedPicture(canvas);
      small.setPhotograph(seen, model);
      small.show(mask.at(-1).indices);
    }
    label.replaceChildren(shortLabel(labels[0].label), " ", element("i", {}, percent(labels[0].score)));
    label.classList.toggle("differs", labels[0].index !== unpruned);
    if (labels[0].index !== unpruned) label.append(element("span", { className: "apart" }, ", not what the unpruned model says"));
    cost.replaceChildren(bar(compute), `${percent(compute, 0)} of the compute, ${duration(came.timings_ms.total)}`);
    button.disabled = false;
  };
  return { item, fill };
}

function lookCloser(ratio) {
  document.forms.controls.way.value = "keep_ratio";
  WAYS.keep_ratio.value = ratio;
  showChoice();
  stopPlaying();
  ask();
  byId("frame").scrollIntoView({ block: "nearest", behavior: movesAllowed() ? "smooth" : "auto" });
}

// --- trouble -----------------------------------------------------------------------------------------

function showTrouble(trouble, next = "") {
  say("trouble-title", trouble.title);
  say("trouble-detail", trouble.detail);
  say("trouble-next", next);
  byId("again").hidden = next !== "" || photograph === null;
  byId("trouble").hidden = false;
  if (model) byId("trouble").scrollIntoView({ block: "nearest" });
}

function hideTrouble() {
  byId("trouble").hidden = true;
}

// --- the server now ----------------------------------------------------------------------------------

let samples = [];

async function watchServer() {
  for (;;) {
    if (!document.hidden) {
      try {
        samples = withSample(samples, await fetchStats());
        showServer(samples.at(-1), rates(samples));
      } catch (trouble) {
        if (!(trouble instanceof Trouble)) throw trouble;
        samples = [];
        say("now-state", trouble.title);
      }
    }
    await new Promise((wake) => setTimeout(wake, STATS_EVERY_MS));
  }
}

function showServer(now, { imagesPerSecond, batchFill, imagesPerBatch }) {
  say("now-state", now.engines_ready === 1 ? "One engine ready." : `${now.engines_ready} engines ready.`);
  say("now-waiting", whole.format(now.queue_images));
  say("now-limit", `room for ${whole.format(now.queue_limit_images)}`);
  say("now-fill", batchFill === null ? "–" : percent(batchFill));
  say("now-per-batch", imagesPerBatch === null ? "idle" : `${imagesPerBatch.toFixed(1)} images a batch`);
  say("now-rate", imagesPerSecond === null ? "–" : imagesPerSecond.toFixed(1));
  say("now-answered", whole.format(now.images_answered));
  say("now-compute", now.compute === null ? "none yet" : `at ${percent(now.compute, 0)} of the unpruned cost`);
}

// --- theme -------------------------------------------------------------------------------------------

function showTheme() {
  say("theme", `Theme: ${document.documentElement.dataset.theme ?? "system"}`);
}

function nextTheme() {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
  if (next === "system") delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    localStorage.setItem("trimvit-theme", next);
  } catch {
    // It holds until the page is left.
  }
  showTheme();
}

// --- what a person does ------------------------------------------------------------------------------

function openFirst(files) {
  const [file] = files;
  if (file) open(file, file.name || "photograph.png");
}

byId("file").addEventListener("change", ({ target }) => {
  openFirst(target.files);
  target.value = ""; // so that the same file may be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    openFirst(event.clipboardData.files);
  }
});
let dragDepth = 0; // dragenter and dragleave come for every element that is crossed
const dragging = (depth) => {
  dragDepth = Math.max(0, depth);
  byId("frame").classList.toggle("over", dragDepth > 0);
};
document.addEventListener("dragenter", () => dragging(dragDepth + 1));
document.addEventListener("dragleave", () => dragging(dragDepth - 1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  dragging(0);
  openFirst(event.dataTransfer.files);
});
for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", () => openExample(button.dataset.example));
}
byId("value").addEventListener("input", () => {
  showValue();
  stopPlaying();
  askSoon();
});
byId("controls").addEventListener("change", ({ target }) => {
  if (target.id === "value" || !model) return;
  showChoice();
  if (target.id === "criterion" || target.id === "reducer") clearComparison();
  ask();
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("stages").addEventListener("change", ({ target }) => {
  stopPlaying();
  stage = Number(target.value);
  showStage({ fade: true });
});
byId("play").addEventListener("click", () => {
  if (byId("play").textContent === "Play") {
    play();
    return;
  }
  stopPlaying();
  showStage({ fade: true });
});
byId("compare").addEventListener("click", compare);
byId("again").addEventListener("click", () => {
  hideTrouble();
  ask();
});
byId("copy").addEventListener("click", async () => {
  const command = byId("curl");
  try {
    await navigator.clipboard.writeText(command.textContent);
    say("copy", "Copied");
  } catch {
    // Not over plain HTTP from another machine: then the text is at least selected.
    getSelection().selectAllChildren(command);
    say("copy", "Selected");
  }
  setTimeout(() => say("copy", "Copy"), 2000);
});
byId("theme").addEventListener("click", nextTheme);

showTheme();
showChoice();
loadModel();
watchServer();
