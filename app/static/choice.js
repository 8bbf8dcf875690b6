// The controls: what a person chooses for the next question.

import { byId, element, say } from "./dom.js";
import { percent } from "./words.js";

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
  renyi_half: "Keeps patches that attend to few others, by Renyi entropy of order 1/2.",
  renyi_1: "Keeps patches that attend to few others, by Shannon entropy.",
  renyi_2: "Keeps patches that attend to few others, by Renyi entropy of order 2.",
  renyi_inf: "Keeps patches whose largest attention weight is large.",
  column_l2: "Keeps patches that some others attend to strongly (Col-Ln).",
  life: "Keeps patches that the model expects to need longest, predicted once (life regression).",
  random: "Keeps patches by lot, for comparison.",
};
const REDUCERS = {
  drop: "The other patches are dropped.",
  fuse: "The others are fused into one token a stage (EViT).",
  merge: "The others are merged into those most like them (ToMe); reads no criterion.",
};

const SHOWN_RATIO = WAYS.keep_ratio.value; // where the default prunes nothing, so that there is something to see

let model = null;
let named = false; // whether requests must name the model: it is not the default one

/**
 * Offer what the model, one of these, offers. Another model has its own defaults; of the same one, what was
 * chosen before stays chosen where it can.
 */
export function offer(loaded, models) {
  const another = model?.name !== loaded.name;
  if (another) WAYS.keep_ratio.value = loaded.default_keep_ratio < 1 ? loaded.default_keep_ratio : SHOWN_RATIO;
  model = loaded;
  named = model.name !== models[0].name;
  fillSelect("model", models.map(({ name }) => name), model.name, another);
  byId("model-choice").hidden = models.length === 1;
  fillSelect("criterion", model.criteria, model.default_criterion, another);
  fillSelect("reducer", model.reducers, model.default_reducer, another);
  byId("way-cascade").hidden = model.cascade === null;
  if (way() === "cascade" && model.cascade === null) document.forms.controls.way.value = "keep_ratio";
  showChoice();
}

/** Choose a keep ratio. */
export function chooseRatio(ratio) {
  document.forms.controls.way.value = "keep_ratio";
  WAYS.keep_ratio.value = ratio;
  showChoice();
}

function fillSelect(id, names, chosen, afresh) {
  const select = byId(id);
  const kept = !afresh && names.includes(select.value) ? select.value : chosen;
  const words = (name) => (id === "model" ? name : name.replaceAll("_", " "));
  select.replaceChildren(...names.map((name) => element("option", { value: name }, words(name))));
  select.value = kept;
}

function way() {
  return document.forms.controls.way.value;
}

/** @returns {import("./request.js").Choice} */
export function choice() {
  return {
    way: way(),
    value: Number(byId("value").value),
    criterion: byId("criterion").value,
    reducer: byId("reducer").value,
    model: named ? model.name : null,
  };
}

/** Bring the controls in line with each other: what a way leaves no choice about cannot be chosen beside it. */
export function showChoice() {
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

/** Show and remember where the slider is. */
export function showValue() {
  const slider = byId("value");
  const value = Number(slider.value);
  WAYS[way()].value = value;
  say("value-shown", value.toFixed(2));
  slider.style.setProperty("--filled", `${((value - slider.min) / (slider.max - slider.min)) * 100}%`);
}
