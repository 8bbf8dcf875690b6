// The controls: what a person chooses for the next question.

import { byId, element, say } from "./dom.js";
import { WITHOUT_CRITERION } from "./request.js";
import { percent } from "./words.js";

const WAYS = {
  keep_ratio: {
    label: "Kept at each stage",
    meaning: "Share of the remaining patches that each stage keeps; 1 prunes nothing.",
    value: 0.5,
  },
  compute: {
    label: "Maximum compute",
    meaning: "Share of the unpruned model's cost. The keep ratio is computed from it.",
    value: 0.6,
  },
  keep_mass: {
    label: "Importance kept at the first stage",
    meaning: "The keep ratio is computed from it for each photograph.",
    value: 0.8,
  },
};
const CRITERIA = {
  variance: "Keeps patches on which the attention heads disagree most.",
  mad: "The same, but robust to a single outlying head (median absolute deviation).",
  iqr: "The same, but of the middle half of the heads (interquartile range).",
  mean: "Keeps patches with the highest mean attention (EViT).",
  mean_value_norm: "Mean attention times the norm of the value vector (ATS).",
  renyi_half: "Keeps patches that attend to few others (Rényi entropy of order 1/2).",
  renyi_1: "Keeps patches that attend to few others (Shannon entropy).",
  renyi_2: "Keeps patches that attend to few others (Rényi entropy of order 2).",
  renyi_inf: "Keeps patches with the largest maximum attention weight (min-entropy).",
  column_l2: "Keeps patches to which some others attend strongly (Col-Ln).",
  life: "Keeps patches that the model expects to need longest, predicted once (life regression).",
  random: "Keeps random patches, as a baseline.",
};
const REDUCERS = {
  drop: "The other patches are dropped.",
  fuse: "The other patches are fused into one token per stage (EViT).",
  merge: "The other patches are merged into the most similar ones (ToMe). Uses no criterion.",
  transform: "The kept patches become weighted means of all, by similarity (Token Transforming).",
  pool: "No patch is kept: learned queries make fewer tokens of all of them. Uses no criterion, and has no mask.",
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
    reducer: way() === "cascade" ? model.cascade.reducer : byId("reducer").value,
    model: named ? model.name : null,
  };
}

/** Bring the controls in line with each other: what a way leaves no choice about cannot be chosen beside it. */
export function showChoice() {
  const chosen = way();
  const cascade = chosen === "cascade";
  const reducer = byId("reducer");
  for (const option of reducer.options) option.disabled = WITHOUT_CRITERION.includes(option.value) && chosen === "keep_mass";
  if (reducer.selectedOptions[0]?.disabled) reducer.value = "drop";
  byId("criterion").disabled = WITHOUT_CRITERION.includes(reducer.value);
  byId("slider").hidden = cascade;
  byId("selects").hidden = cascade;
  if (cascade) {
    const { keep_ratio, criterion, reducer: reduced, agreement, compute } = model.cascade;
    say(
      "way-meaning",
      `First a run at keep ratio ${keep_ratio} (${[criterion, reduced].filter(Boolean).join(", ")}), then one ` +
        `without pruning if the result is uncertain. Calibrated to agree with the unpruned model on ` +
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
