// The card of a server: a worker of ours, or an upstream.

import { make, measure, say, terms } from "./dom.js";
import { NONE, clock, latency, number, percent, span } from "./words.js";

// Each state: how it looks, whether it passes by itself, and what it means.
const STATES = {
  ready: ["good", false, "requests go to it"],
  drained: ["idle", false, "gets nothing new"],
  draining: ["busy", true, "gets nothing new, and finishes what it has"],
  loading: ["busy", true, "vLLM starts and loads the model"],
  waiting: ["busy", true, "waits before it starts again"],
  queued: ["busy", true, "another worker starts first"],
  blocked: ["busy", true, "the memory of its GPUs is not free"],
  stopping: ["idle", true, "was told to stop"],
  stopped: ["idle", false, "does not run"],
  wedged: ["bad", false, "its engine hangs; evidence is taken, then it is killed"],
  failed: ["bad", true, "has ended; it starts again"],
  "not answering": ["bad", false, "its /health does not answer"],
  unknown: ["busy", true, "was not asked yet"],
};
const FULL = 0.95; // of the KV cache

const REMOTE_TERMS = ["In flight", "First byte p50"];
const TERMS = [...REMOTE_TERMS, "Generated", "Prompt", "KV cache", "Prefix hits", "Uptime", "Restarts"];

export class Card {
  constructor(server, openLog) {
    this.state = make("span", { class: "state" });
    this.place = make("span", { class: "place quiet" });
    this.model = make("p", { class: "quiet" });
    this.story = make("p", { class: "story" });
    const figures = make("dl", { class: "figures" });
    this.values = terms(figures, server.remote ? REMOTE_TERMS : TERMS);
    const head = make("div", { class: "head" }, make("h3", {}, server.name), this.state, this.place);
    this.element = make("article", { class: "card", "aria-label": server.name });
    this.element.append(head, this.model, this.story, figures);
    if (server.remote) return;
    this.bar = make("i");
    this.values["KV cache"].after(make("dd", { class: "bar", "aria-hidden": "true" }, this.bar));
    this.last = make("p", { class: "last" });
    const button = make("button", { type: "button", "aria-label": `Log of ${server.name}` }, "Log");
    button.addEventListener("click", () => openLog(server.name));
    this.element.append(this.last, make("p", { class: "foot" }, button));
  }

  show(server, history) {
    const [tone, moves, meaning] = STATES[server.state] ?? ["idle", false, ""];
    say(this.state, server.state);
    Object.assign(this.state.dataset, { tone, moves });
    say(this.place, place(server));
    say(this.model, server.model);
    say(this.story, story(server, meaning, history.now.time));
    const { values } = this;
    const limit = history.now.proxy.limit;
    measure(values["In flight"], limit ? `${server.in_flight} of ${limit}` : number(server.in_flight));
    measure(values["First byte p50"], withSpan(latency, history.firstByte(0.5, server.name)));
    if (!server.remote) this.#showEngine(server, history);
  }

  #showEngine(server, history) {
    const { values } = this;
    const figures = history.points.at(-1).servers[server.name];
    measure(values.Generated, figures.generated === null ? NONE : `${number(figures.generated)} tokens/s`);
    measure(values.Prompt, figures.prompted === null ? NONE : `${number(figures.prompted)} tokens/s`);
    measure(values["KV cache"], percent(figures.kvCache));
    this.bar.style.width = `${100 * (figures.kvCache ?? 0)}%`;
    this.bar.dataset.full = String((figures.kvCache ?? 0) >= FULL);
    measure(values["Prefix hits"], withSpan(percent, history.prefixHits(server.name)));
    const up = ["ready", "draining", "drained"].includes(server.state);
    measure(values.Uptime, up && server.since ? span(history.now.time - server.since) : NONE);
    measure(values.Restarts, number(Math.max(0, server.starts - 1)));
    const last = server.last_failure;
    this.last.hidden = !last;
    if (last) say(this.last, `${times(server.failures)}${clock(last.at)}: ${end(last)}: ${why(last)}`);
  }
}

/** Word a value that is of the last minute, or says that it is not. */
export function withSpan(show, { value, recent }) {
  return show(value) + (value === null || recent ? "" : " since start");
}

function place(server) {
  if (server.remote) return server.address;
  if (!server.gpus?.length) return server.address;
  return `${server.gpus.length === 1 ? "GPU" : "GPUs"} ${server.gpus.join(", ")}`;
}

function story(server, meaning, now) {
  // Why it waits stands below, with its last failure.
  const waits = server.state === "waiting" && server.until !== null;
  if (waits) return `starts again in ${span(server.until - now)}`;
  return server.detail || meaning;
}

const end = (failure) => `vLLM ${failure.how} after ${span(failure.seconds_alive)}`;
const times = (count) => (count === 1 ? "Failed once, " : `Failed ${count} times, last `);

/** Why a worker failed, in words. */
export const why = (failure) => failure.cause ?? "the cause is not known";
