// The page: what is chosen goes to the server, and what comes back is shown.

import { showResult } from "./answer.js";
import { choice, chooseRatio, offer, showChoice, showValue } from "./choice.js";
import { clearComparison, compare } from "./comparison.js";
import { byId, element, say, whole } from "./dom.js";
import { Latest, debounced } from "./latest.js";
import { watchServer } from "./now.js";
import { MaskedPicture, cropped, movesAllowed } from "./picture.js";
import { clearNearest, showNearest } from "./nearest.js";
import { addressOf, curlCommand, modelOf, queryOf } from "./request.js";
import { answer as answered, answerPatiently, answering, currentKey, fetchModels, route, useKey } from "./server.js";
import { Trouble, shortLabel, tooLarge, unreachable } from "./words.js";

const FEW_LABELS = 20;
const STAGE_SHOWN_MS = 850;
const MODEL_AGAIN_MS = 2000;
const THEMES = ["system", "light", "dark"];

let models = []; // those that are served, the default one first
let model = null;
let photograph = null; // {blob, name, url?, opening: of a bitmap, seen: canvas or null}
let reloadedFor = null; // the name of a model; asked for once only, as two servers may take turns
let answer = null; // the newest
let stage = 0; // shown: 0 is the whole photograph
const picture = new MaskedPicture(byId("picture"));
const questions = new Latest();
const openings = new Latest();
const plays = new Latest();

// --- the model ---------------------------------------------------------------------------------------

async function loadModels() {
  for (;;) {
    try {
      models = await fetchModels();
      hideTrouble();
      chooseModel(modelOf(models, location.search));
      return;
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      say("served", trouble.title);
      if (trouble.wantsKey) {
        showTrouble(trouble);
        return; // and again once there is a key
      }
      showTrouble(trouble, "Trying again until it answers.");
      await new Promise((wake) => setTimeout(wake, (trouble.retryAfterS ?? 0) * 1000 || MODEL_AGAIN_MS));
    }
  }
}

/** From now on this model is asked, and the address says so. */
function chooseModel(chosen) {
  history.replaceState(null, "", addressOf(location.href, models, chosen));
  clearComparison();
  clearNearest();
  stopPlaying();
  showModel(chosen);
  if (photograph) {
    seePhotograph();
    ask();
  }
}

function showModel(loaded) {
  model = loaded;
  answer = null;
  say("served", `${model.name} on ${model.device}, ${model.dtype}`);
  const names = model.labels.map(shortLabel);
  const few = names.length <= FEW_LABELS;
  say(
    "knows-text",
    names.length === 0
      ? `The model has no labels. It computes ${whole.format(model.embedding_size)} features of a photograph, by which pictures can be compared.`
      : `The model knows ${whole.format(names.length)} labels and always answers with the best match among them, whatever the ` +
      `photograph shows${few ? `: ${names.join(", ")}` : ""}.`,
  );
  byId("knows-all").hidden = few;
  say("knows-list", few ? "" : names.join(", "));
  byId("knows").hidden = false;
  byId("nearest").hidden = false;

  offer(model, models);
  const legend = byId("stages").firstElementChild;
  byId("stages").replaceChildren(
    legend,
    ...["Whole", ...model.stages.map((block) => `Block ${block}`)].map((name, index) => {
      const input = element("input", { type: "radio", name: "stage", value: String(index), checked: index === 0 });
      return element("label", {}, input, element("span", {}, name, element("small")));
    }),
  );
  stage = model.stages.length;
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
  if (model) hideTrouble(); // else it says why there is none yet, and may be asking for the key
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
    const query = queryOf({ ...choice(), way: "keep_ratio", value: 1 }, { labels: model.labels.length > 0 });
    query.set("mask", "png");
    query.delete("mask_stages");
    const { results } = await answered(answering(model), blob, query);
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

/** An example of the page, as a picture. */
async function exampleOf(button) {
  const { src } = button.querySelector("img");
  return { blob: await (await fetch(src)).blob(), name: button.textContent };
}

/** Compare pictures by their features, with the model and the pruning that are chosen now. */
function compareFeatures(pictures) {
  if (!model) return;
  hideTrouble();
  showNearest(pictures, model, choice(), showTrouble);
}

// --- asking ------------------------------------------------------------------------------------------

/** Ask about the photograph as it is chosen now. Only the newest question's answer is shown. */
async function ask() {
  if (!photograph || !model) return;
  const turn = questions.next();
  const asked = photograph;
  const path = answering(model);
  const query = queryOf(choice(), { labels: model.labels.length > 0 });
  setBusy(true);
  try {
    const came = await answerPatiently(path, asked.blob, query, turn.signal, (trouble) => {
      if (turn.isCurrent()) showTrouble(trouble, `Trying again in ${trouble.retryAfterS} s.`);
    });
    if (!turn.isCurrent()) return;
    hideTrouble();
    showAnswer(came, asked, query);
  } catch (trouble) {
    if (!turn.isCurrent()) return;
    if (!(trouble instanceof Trouble)) throw trouble;
    if (trouble.isGone && model.name !== models[0].name && model.name !== reloadedFor) {
      reloadedFor = model.name;
      loadModels();
      return;
    }
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
    loadModels();
    return;
  }
  const first = answer === null;
  answer = came.results[0];
  if (!asked.seen) seePhotograph();
  showResult(came, query);
  showCounts();
  say("curl", curlCommand(route(answering(model), query), asked, currentKey() !== null));
  for (const id of ["answer", "command", "through"]) byId(id).hidden = false;
  byId("comparison").hidden = model.labels.length === 0;
  if (first && movesAllowed() && stage === model.stages.length) play();
  else showStage({ fade: true });
}

// --- stages ------------------------------------------------------------------------------------------

/** The patches left after the stage that is shown; null for all, and where tokens are left that are none. */
function keptNow() {
  return answer?.mask && stage > 0 ? answer.mask[stage - 1].indices : null;
}

/** How many patches each stage left, beside its name. */
function showCounts() {
  const { total, per_stage } = answer.patches;
  for (const [index, label] of [...byId("stages").querySelectorAll("label")].entries()) {
    label.querySelector("small").textContent = whole.format(index === 0 ? total : per_stage[index - 1]);
  }
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

/** Ask again at a ratio of the comparison. */
function lookCloser(ratio) {
  chooseRatio(ratio);
  stopPlaying();
  ask();
  byId("frame").scrollIntoView({ block: "nearest", behavior: movesAllowed() ? "smooth" : "auto" });
}

// --- trouble -----------------------------------------------------------------------------------------

function showTrouble(trouble, next = "") {
  say("trouble-title", trouble.title);
  say("trouble-detail", trouble.detail);
  say("trouble-next", next);
  byId("again").hidden = next !== "" || trouble.wantsKey || photograph === null;
  byId("key-form").hidden = !trouble.wantsKey;
  byId("trouble").hidden = false;
  if (model) byId("trouble").scrollIntoView({ block: "nearest" });
}

function hideTrouble() {
  byId("trouble").hidden = true;
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

for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", ({ target }) => {
    openFirst(target.files);
    target.value = ""; // so that the same file may be chosen again
  });
}
byId("pictures").addEventListener("change", ({ target }) => {
  const chosen = [...target.files].map((file) => ({ blob: file, name: file.name || "picture" }));
  target.value = "";
  if (chosen.length) compareFeatures(chosen);
});
byId("nearest-examples").addEventListener("click", async () => {
  try {
    compareFeatures(await Promise.all([...document.querySelectorAll("[data-example]")].map(exampleOf)));
  } catch {
    showTrouble(unreachable());
  }
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
  if (target.id === "model") {
    chooseModel(models.find(({ name }) => name === target.value));
    return;
  }
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
byId("compare").addEventListener("click", () => {
  compare(photograph, model, choice(), { onChoose: lookCloser, onTrouble: showTrouble });
});
byId("again").addEventListener("click", () => {
  hideTrouble();
  ask();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  hideTrouble();
  loadModels();
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
loadModels();
watchServer();
