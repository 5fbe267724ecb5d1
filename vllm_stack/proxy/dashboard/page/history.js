// What the page has seen of the stack: bounded, and turned from counters into rates.
//
// A counter that fell has begun anew, and what was not seen is a gap, never a line through it.

const SPANS = [60, 120, 300, 600]; // seconds that plots show, as far as there is something
const SPAN = SPANS.at(-1);
const MOST = 400; // points; one every other second, and some room
const RECENT = 60; // seconds behind "now", for rates and quantiles of the header and the cards
const SMOOTH = 30; // seconds behind each point of the quantiles' plot
const GAP = 10; // seconds without a look

/** The quantile of a histogram by upper bounds, as Prometheus estimates it; Infinity above the last bound. */
export function quantile(q, bounds, counts) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return null;
  const rank = q * total;
  let below = 0;
  for (let i = 0; i < counts.length; i++) {
    if (counts[i] > 0 && below + counts[i] >= rank) {
      if (i === bounds.length) return Infinity;
      const low = i === 0 ? 0 : bounds[i - 1];
      return low + ((bounds[i] - low) * (rank - below)) / counts[i];
    }
    below += counts[i];
  }
  return null;
}

const minus = (after, before) => after.map((count, i) => count - before[i]);
const plus = (one, other) => one.map((count, i) => count + other[i]);

/** Growth per second between two looks at a counter; null where that cannot be known. */
function rate(after, before, seconds) {
  if (after === null || before === null || after === undefined || before === undefined) return null;
  return seconds > 0 && after >= before ? (after - before) / seconds : null;
}

export class History {
  constructor() {
    this.points = []; // what is plotted
    this.looks = []; // states of the last minute, the newest last
  }

  get now() {
    return this.looks.at(-1) ?? null;
  }

  /** The seconds that plots show. */
  get shown() {
    const seen = this.now ? this.now.time - this.points[0].time : 0;
    return SPANS.find((span) => span >= seen) ?? SPAN;
  }

  /** Take a state in; gives the point that came of it. */
  add(state) {
    const before = this.now;
    // Of one life of the proxy: its counters go on.
    const known = before && before.proxy.started === state.proxy.started;
    if (known && state.at <= before.at) return this.points.at(-1); // many who look are told the same
    if (!known) this.looks = [];
    const gap = before && (!known || state.at - before.at > GAP);
    if (gap) this.points.push({ time: state.time - 0.001, gap });
    this.looks.push(state);
    while (this.looks.length > 2 && state.at - this.looks[1].at > RECENT) this.looks.shift();
    const point = known ? this.#point(before, state) : this.#point(state, state);
    this.points.push(point);
    while (this.points.length > MOST || this.points[0].time < state.time - SPAN) this.points.shift();
    return point;
  }

  #point(before, after) {
    const seconds = after.at - before.at;
    const point = {
      time: after.time,
      requests: rate(after.proxy.totals.requests, before.proxy.totals.requests, seconds),
      errors: rate(after.proxy.answers.server_error ?? 0, before.proxy.answers.server_error ?? 0, seconds),
      waiting: after.proxy.waiting,
      p50: this.#firstByte(0.5, null, SMOOTH),
      p99: this.#firstByte(0.99, null, SMOOTH),
      servers: {},
    };
    for (const server of after.servers) {
      const past = before.servers.find((one) => one.name === server.name);
      point.servers[server.name] = this.#figures(past, server);
    }
    return point;
  }

  #figures(before, after) {
    const [was, is] = [before?.engine, after.engine];
    const figures = { inFlight: after.in_flight, kvCache: is?.kv_cache ?? null };
    Object.assign(figures, { generated: null, prompted: null });
    // Asked once a second for all who look: two states may tell the same.
    if (was && is && was.at === is.at) {
      const last = this.points.at(-1)?.servers?.[after.name];
      return { ...figures, generated: last?.generated ?? null, prompted: last?.prompted ?? null };
    }
    if (was && is) {
      figures.generated = rate(is.generation_tokens, was.generation_tokens, is.at - was.at);
      figures.prompted = rate(is.prompt_tokens, was.prompt_tokens, is.at - was.at);
    }
    return figures;
  }

  /** The look that lies `seconds` back, or the oldest there is. */
  #back(seconds) {
    return this.looks.find((look) => this.now.at - look.at <= seconds) ?? this.now;
  }

  #firstByte(q, name, seconds) {
    const grown = minus(counts(this.now, name), counts(this.#back(seconds), name));
    return quantile(q, this.now.first_byte_bounds, grown);
  }

  /** A quantile of the time to first byte, of one server or of all: `value`, and whether it is `recent`.
   *
   * Of what ended in the last minute; if nothing did, of all that the proxy has counted.
   */
  firstByte(q, name = null) {
    const value = this.#firstByte(q, name, RECENT);
    if (value !== null) return { value, recent: true };
    return { value: quantile(q, this.now.first_byte_bounds, counts(this.now, name)), recent: false };
  }

  /** The share of answers of the last minute that were a failure of the stack; null without an answer. */
  errorShare() {
    const [is, was] = [this.now.proxy.answers, this.#back(RECENT).proxy.answers];
    const grown = (kind) => (is[kind] ?? 0) - (was[kind] ?? 0);
    const all = grown("good") + grown("client_error") + grown("server_error") + grown("left");
    return all > 0 ? grown("server_error") / all : null;
  }

  /** The share of asked tokens that a worker's prefix cache had, as `firstByte` but since its own start. */
  prefixHits(name) {
    const find = (look) => look.servers.find((server) => server.name === name)?.engine;
    const [is, was] = [find(this.now), find(this.#back(RECENT))];
    if (!is || is.prefix_queries === null || is.prefix_hits === null) return { value: null, recent: false };
    const asked = was ? is.prefix_queries - was.prefix_queries : 0;
    const hit = was ? is.prefix_hits - was.prefix_hits : 0;
    if (asked > 0 && hit >= 0) return { value: hit / asked, recent: true };
    return { value: is.prefix_queries > 0 ? is.prefix_hits / is.prefix_queries : null, recent: false };
  }
}

function counts(look, name) {
  const none = new Array(look.first_byte_bounds.length + 1).fill(0);
  return look.servers
    .filter((server) => name === null || server.name === name)
    .reduce((sum, server) => plus(sum, server.first_byte), none);
}
