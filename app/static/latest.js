// Only the newest of several questions is answered.

/** Numbers questions: each new one aborts the one before, whose answer, should it still come, is stale. */
export class Latest {
  #controller = new AbortController();
  #number = 0;

  /** Begin a question: its `signal` aborts, and `isCurrent` turns false, as soon as there is a newer one. */
  next() {
    this.cancel();
    this.#controller = new AbortController();
    const number = this.#number;
    return { signal: this.#controller.signal, isCurrent: () => number === this.#number };
  }

  /** No question is current any more. */
  cancel() {
    this.#controller.abort();
    this.#number += 1;
  }
}

/** `action`, run once calls have paused for `pauseMs`, but at the latest `patienceMs` after the first of them. */
export function debounced(action, pauseMs, patienceMs) {
  let timer;
  let since = null;
  return () => {
    clearTimeout(timer);
    since ??= performance.now();
    const patience = Math.max(0, since + patienceMs - performance.now());
    timer = setTimeout(() => {
      since = null;
      action();
    }, Math.min(pauseMs, patience));
  };
}

/** Resolves after so many milliseconds, or rejects when the signal aborts. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
