// Numbers and problems in words.

const NO_BREAK = "\u00a0";

/** 0.4918 -> "49 %"; small shares with a decimal. */
export function percent(share, digits = share < 0.0995 ? 1 : 0) {
  return `${(share * 100).toFixed(digits)}${NO_BREAK}%`;
}

/** 4.305 -> "4.3 ms", 43.0 -> "43 ms", 1234 -> "1.23 s". */
export function duration(milliseconds) {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)}${NO_BREAK}s`;
  return `${milliseconds.toFixed(milliseconds < 9.95 ? 1 : 0)}${NO_BREAK}ms`;
}

/** 33554432 -> "32 MiB". */
export function bytes(count) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${Number(count.toFixed(1))}${NO_BREAK}${units[unit]}`;
}

/** A label as ImageNet's lists have it, "tench, Tinca tinca", by its first name. */
export function shortLabel(label) {
  return label.split(",")[0];
}

const TITLES = {
  unauthorized: "A valid API key is required.",
  "too-large": "The photograph is too large.",
  "unsupported-media-type": "The server does not support this file type.",
  "undecodable-image": "The file is not a complete, valid image.",
  "invalid-value": "The server does not allow this option.",
  "queue-full": "Too many images are waiting.",
  "not-ready": "The model is not ready yet.",
  "engine-lost": "A worker died while processing this image.",
  "deadline-passed": "The deadline has passed.",
  "internal-fault": "Internal server error.",
};

/** What went wrong with a request, for a person. `retryAfterS` is null where trying again would not help. */
export class Trouble extends Error {
  constructor(title, detail, { retryAfterS = null, aboutPhotograph = false, wantsKey = false, isGone = false } = {}) {
    super(title);
    this.title = title;
    this.detail = detail;
    this.retryAfterS = retryAfterS;
    this.aboutPhotograph = aboutPhotograph;
    this.wantsKey = wantsKey;
    this.isGone = isGone;
  }
}

/**
 * An answer that is none, in words.
 * @param {number} status of HTTP
 * @param {{type?: string, title?: string, detail?: string} | null} problem the document (RFC 9457), if there was one
 * @param {string | null} retryAfter the header, in seconds
 */
export function troubleOf(status, problem, retryAfter) {
  const slug = problem?.type?.split(":").at(-1) ?? "";
  const title = TITLES[slug] ?? (problem?.title ? sentence(problem.title) : `The server answered with status ${status}.`);
  const seconds = Number.parseFloat(retryAfter ?? "");
  return new Trouble(title, sentence(problem?.detail ?? ""), {
    retryAfterS: Number.isFinite(seconds) ? Math.max(seconds, 0) : null,
    aboutPhotograph: ["too-large", "unsupported-media-type", "undecodable-image"].includes(slug),
    wantsKey: status === 401,
    isGone: status === 404, // the model was unloaded
  });
}

export function unreachable() {
  return new Trouble("The server cannot be reached.", "It may have stopped, or the connection was lost.");
}

export function tooLarge(size, limit) {
  const detail = `It has ${bytes(size)}; at most ${bytes(limit)} are allowed.`;
  return new Trouble(TITLES["too-large"], detail, { aboutPhotograph: true });
}

/** A text as a sentence: a capital first, a full stop last. */
export function sentence(text) {
  if (!text) return "";
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
