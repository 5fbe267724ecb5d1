// The page: asks for the state every other second while somebody looks, and shows it.

import { Away, getValue } from "./ask.js";
import { Card, withSpan } from "./card.js";
import { byId, measure, say, terms } from "./dom.js";
import { seen, showFailures } from "./failures.js";
import { History } from "./history.js";
import { Log } from "./log.js";
import { Plot } from "./plot.js";
import { NONE, clock, latency, number, percent, perSecond, plural, span } from "./words.js";

const EVERY = 2000; // ms

const history = new History();
const log = new Log();
const cards = new Map();
const door = terms(byId("door"), [
  "Requests", "Server errors", "First byte p50", "First byte p99", "Generated", "In flight", "Waiting", "Proxy up",
]);
let version = null;
let awaySince = null;
let failuresSeen = null;

const ofServer = (state, key, remote = true) =>
  state.servers.filter((server) => remote || !server.remote).map((server) => ({
    name: server.name, value: (point) => point.servers[server.name]?.[key] ?? null,
  }));
const all = (name, key, more = {}) => ({ name, value: (point) => point[key], ...more });
const QUIET = { colour: "quiet", dashed: true };
const PLOTS = [
  [new Plot("Requests per second", { show: perSecond, least: 1, nothing: "no request yet" }),
    () => [all("all", "requests"), all("server errors", "errors", { colour: "bad", dashed: true })]],
  [new Plot("Time to first byte", { show: latency, least: 0.01, nothing: "no answer in this time" }),
    () => [all("p50", "p50"), all("p99", "p99", { colour: "series-1" })]],
  [new Plot("In flight", { show: number, least: 4, nothing: "nothing in flight" }),
    (state) => [...ofServer(state, "inFlight"), all("waiting", "waiting", QUIET)]],
  [new Plot("Generated tokens per second", { show: perSecond, least: 10, nothing: "no worker tells" }),
    (state) => ofServer(state, "generated", false)],
  [new Plot("Prompt tokens per second", { show: perSecond, least: 10, nothing: "no worker tells" }),
    (state) => ofServer(state, "prompted", false)],
  [new Plot("KV cache in use", { show: percent, least: 1, most: 1, nothing: "no worker tells" }),
    (state) => ofServer(state, "kvCache", false)],
];
byId("plots").append(...PLOTS.map(([plot]) => plot.element));

function show(state) {
  const point = history.add(state);
  showHead(state);
  showDoor(state, point);
  showCards(state);
  for (const [plot, series] of PLOTS) plot.draw(history.points, state.time, history.shown, series(state));
  const workers = state.servers.filter((server) => !server.remote);
  log.offer([...workers.map((server) => server.name), "proxy", "supervisord"]);
}

function showHead(state) {
  const ready = state.servers.filter((server) => server.state === "ready").length;
  const every = state.servers.length;
  const noun = state.servers.some((server) => server.remote) ? "server" : "worker";
  say(byId("verdict"), verdict(ready, every, noun));
  say(byId("stack"), state.stack);
  say(byId("asof"), `as of ${clock(state.time)}, every ${EVERY / 1000} s`);
  say(byId("version"), `vllm-stack ${state.version}.`);
  document.title = `${ready}/${every} ready · ${state.stack}`;
}

function verdict(ready, every, noun) {
  if (ready === 0) return `No ${noun} is ready`;
  if (ready < every) return `${ready} of ${plural(every, noun)} ${ready === 1 ? "is" : "are"} ready`;
  if (every === 1) return `The ${noun} is ready`;
  return `${every === 2 ? `Both ${noun}s` : `All ${plural(every, noun)}`} are ready`;
}

function showDoor(state, point) {
  const told = Object.values(point.servers).map((server) => server.generated).filter((value) => value !== null);
  const generated = told.length ? told.reduce((sum, value) => sum + value) : null;
  measure(door.Requests, perSecond(point.requests));
  measure(door["Server errors"], percent(history.errorShare()));
  measure(door["First byte p50"], withSpan(latency, history.firstByte(0.5)));
  measure(door["First byte p99"], withSpan(latency, history.firstByte(0.99)));
  measure(door.Generated, generated === null ? NONE : `${number(generated)} tokens/s`);
  measure(door["In flight"], number(state.servers.reduce((total, server) => total + server.in_flight, 0)));
  measure(door.Waiting, number(state.proxy.waiting));
  measure(door["Proxy up"], span(state.time - state.proxy.started));
}

function showCards(state) {
  const names = state.servers.map((server) => server.name);
  if (names.join("\n") !== [...cards.keys()].join("\n")) {
    cards.clear();
    for (const server of state.servers) cards.set(server.name, new Card(server, (name) => log.open(name)));
    const elements = (remote) =>
      state.servers.filter((server) => server.remote === remote).map((server) => cards.get(server.name).element);
    byId("workers").replaceChildren(...elements(false));
    byId("upstreams").replaceChildren(...elements(true));
    byId("upstreams-section").hidden = !elements(true).length;
  }
  for (const server of state.servers) cards.get(server.name).show(server, history);
}

async function look() {
  const state = await getValue("state");
  if (version !== null && version !== state.version) location.reload(); // what is shown would not fit
  version = state.version;
  show(state);
  if (failuresSeen !== seen(state)) {
    showFailures((await getValue("failures")).failures);
    failuresSeen = seen(state);
  }
  await log.refresh();
}

/** Say that the proxy is away, and since when; nothing once it is back. */
function showAway(away) {
  if (away) awaySince ??= Date.now() / 1000;
  else awaySince = null;
  byId("main").classList.toggle("stale", away);
  const words = away ? `The proxy does not answer since ${clock(awaySince)}. It is asked again and again.` : "";
  say(byId("away"), words);
}

async function run() {
  for (;;) {
    const begun = Date.now();
    if (!document.hidden) {
      try {
        await look();
        showAway(false);
      } catch (error) {
        if (!(error instanceof Away)) throw error; // a bug of ours: better no number than a wrong one
        showAway(true);
      }
    }
    await pause(Math.max(0, EVERY - (Date.now() - begun)));
  }
}

/** Wait, but not when somebody looks again. */
function pause(ms) {
  return new Promise((go) => {
    const back = () => document.hidden || end();
    const timer = setTimeout(() => end(), ms);
    const end = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", back);
      go();
    };
    document.addEventListener("visibilitychange", back);
  });
}

run();
