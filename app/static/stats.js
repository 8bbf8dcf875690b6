// Two or more answers of /v1/stats -> what the server is doing now.

const WINDOW_S = 10;

/** Recent answers, oldest first, with a new one: what is older than the window, or from before a restart, goes. */
export function withSample(samples, sample) {
  return [...samples, sample].filter(
    ({ clock_s, batches, images_answered }) =>
      sample.clock_s - clock_s <= WINDOW_S && batches <= sample.batches && images_answered <= sample.images_answered,
  );
}

/**
 * Rates over the samples; null where there is nothing to tell yet.
 * @returns {{imagesPerSecond: number | null, batchFill: number | null, imagesPerBatch: number | null}}
 */
export function rates(samples) {
  const [first, last] = [samples[0], samples.at(-1)];
  const seconds = last.clock_s - first.clock_s;
  const batches = last.batches - first.batches;
  return {
    imagesPerSecond: seconds > 0 ? (last.images_answered - first.images_answered) / seconds : null,
    batchFill: batches > 0 ? (last.batch_fill_sum - first.batch_fill_sum) / batches : null,
    imagesPerBatch: batches > 0 ? (last.batch_images - first.batch_images) / batches : null,
  };
}
