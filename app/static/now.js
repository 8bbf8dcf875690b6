// What the server is doing now.

import { say, whole } from "./dom.js";
import { currentKey, fetchStats } from "./server.js";
import { rates, withSample } from "./stats.js";
import { Trouble, percent } from "./words.js";

const STATS_EVERY_MS = 2000;

let samples = [];

/** Ask every other second, while the page is looked at. */
export async function watchServer() {
  let refusedKey; // not asked with again
  for (;;) {
    if (!document.hidden && currentKey() !== refusedKey) {
      try {
        samples = withSample(samples, await fetchStats());
        showServer(samples.at(-1), rates(samples));
      } catch (trouble) {
        if (!(trouble instanceof Trouble)) throw trouble;
        samples = [];
        say("now-state", trouble.title);
        if (trouble.wantsKey) refusedKey = currentKey();
      }
    }
    await new Promise((wake) => setTimeout(wake, STATS_EVERY_MS));
  }
}

function showServer(now, { imagesPerSecond, batchFill, imagesPerBatch }) {
  say("now-state", now.engines_ready === 1 ? "One worker ready." : `${now.engines_ready} workers ready.`);
  say("now-waiting", whole.format(now.queue_images));
  say("now-limit", `limit: ${whole.format(now.queue_limit_images)}`);
  say("now-fill", batchFill === null ? "–" : percent(batchFill));
  say("now-per-batch", imagesPerBatch === null ? "idle" : `${imagesPerBatch.toFixed(1)} images per batch`);
  say("now-rate", imagesPerSecond === null ? "–" : imagesPerSecond.toFixed(1));
  say("now-answered", whole.format(now.images_answered));
  say("now-compute", now.compute === null ? "none yet" : `at ${percent(now.compute, 0)} of the unpruned cost`);
}
