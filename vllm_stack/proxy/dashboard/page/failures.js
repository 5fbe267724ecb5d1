// The latest failures of all workers, with their causes and last words.

import { byId, make } from "./dom.js";
import { why } from "./card.js";
import { clock, span } from "./words.js";

/** Changes whenever a worker has failed once more. */
export function seen(state) {
  return JSON.stringify(state.servers.map((server) => [server.failures, server.last_failure]));
}

export function showFailures(failures) {
  byId("no-failures").hidden = failures.length > 0;
  byId("failures").replaceChildren(...failures.map(entry));
}

function entry(failure) {
  const when = `${clock(failure.at)}, ${failure.phase}, after ${span(failure.seconds_alive)}`;
  const head = make("p", {}, make("strong", {}, failure.worker), ` ${failure.how} `);
  head.append(make("span", { class: "quiet" }, when));
  const item = make("li", {}, head, make("p", { class: "cause" }, why(failure)));
  if (failure.evidence) item.append(make("p", { class: "quiet" }, `Evidence: ${failure.evidence}`));
  if (failure.lines.length) {
    const label = `Last words of ${failure.worker}`;
    const words = make("pre", { tabindex: "0", role: "region", "aria-label": label }, failure.lines.join("\n"));
    item.append(make("details", {}, make("summary", {}, "Last words"), words));
  }
  return item;
}
