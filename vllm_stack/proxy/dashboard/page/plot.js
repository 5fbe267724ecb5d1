// One plot: lines over the last minutes, the values of a moment under the cursor, and all of it as a table.

import { drawn, make, say } from "./dom.js";
import { NONE, clock, span } from "./words.js";

const WIDTH = 1000;
const HEIGHT = 200;
const COLOURS = 8;
const ROWS = 20; // of the table
const STEPS = [1, 2, 4, 6, 8, 10]; // half of each is round, too

/** The least round number that is not below `value`. */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return STEPS.find((step) => step * power >= value * 0.999999) * power;
}

export class Plot {
  /** `show` words a value; `least` is the least top of the axis, `most` its only one where there is one. */
  constructor(title, { show, least, most = null, nothing }) {
    Object.assign(this, { title, show, least, most, names: null, lines: [] });
    Object.assign(this, { points: [], now: 0, span: 60, cursor: null });
    this.moment = make("span", { class: "quiet" }, "now");
    this.legend = make("div", { class: "legend" });
    const viewBox = `0 0 ${WIDTH} ${HEIGHT}`;
    this.svg = drawn("svg", { viewBox, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.svg.append(drawn("path", { class: "grid", d: `M0 1H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}` }));
    this.rule = drawn("path", { class: "cursor", d: "" });
    [this.top, this.middle] = [make("span", { class: "top" }), make("span", { class: "middle" })];
    this.begin = make("span");
    this.nothing = make("span", { class: "nothing quiet" }, nothing);
    this.area = make("div", {
      class: "area", tabindex: "0", role: "slider", "aria-label": `${title}, moment`,
      "aria-valuemax": "0",
    }, this.svg, this.top, this.middle, this.nothing);
    this.table = make("table");
    const scroll = { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, table` };
    this.details = make("details", {}, make("summary", {}, "As a table"), make("div", scroll, this.table));
    const head = make("figcaption", { class: "title" }, make("h3", {}, title), this.moment);
    const ends = make("div", { class: "ends", "aria-hidden": "true" }, this.begin, make("span", {}, "now"));
    this.element = make("figure", { class: "plot" }, head, this.legend, this.area, ends, this.details);
    this.#listen();
  }

  /** Draw the points of the last `seconds`; `series` are `{name, value(point), colour?, dashed?}`. */
  draw(points, now, seconds, series) {
    Object.assign(this, { points, now, series, span: seconds });
    const names = series.map((one) => one.name).join("\n");
    if (names !== this.names) this.#begin(names);
    const values = points.flatMap((point) => (point.gap ? [] : series.map((one) => one.value(point))));
    const finite = values.filter((value) => value !== null && Number.isFinite(value));
    const top = this.most ?? roundUp(Math.max(this.least, ...finite));
    say(this.begin, `${seconds / 60} min ago`);
    this.area.setAttribute("aria-valuemin", String(-seconds));
    say(this.top, this.show(top));
    say(this.middle, this.show(top / 2));
    this.nothing.hidden = finite.length > 0;
    this.series.forEach((one, index) => this.lines[index].path.setAttribute("d", this.#path(one, top)));
    this.#read();
    if (this.details.open) this.#fillTable();
  }

  #begin(names) {
    this.names = names;
    this.lines = this.series.map((one, index) => {
      const colour = `var(--${one.colour ?? `series-${index % COLOURS}`})`;
      const dashed = one.dashed ?? index >= COLOURS;
      const path = drawn("path");
      path.style.stroke = colour;
      if (dashed) path.setAttribute("stroke-dasharray", "6 4");
      const swatch = make("span", { class: "swatch", "data-dashed": String(dashed) });
      swatch.style.borderColor = colour;
      const value = make("span", { class: "value" });
      return { path, value, entry: make("span", {}, swatch, `${one.name} `, value) };
    });
    this.svg.replaceChildren(this.svg.firstChild, ...this.lines.map((line) => line.path), this.rule);
    this.legend.replaceChildren(...this.lines.map((line) => line.entry));
  }

  #x(point) {
    return ((point.time - this.now + this.span) / this.span) * WIDTH;
  }

  #path(one, top) {
    let path = "";
    let open = false;
    for (const point of this.points) {
      const value = point.gap ? null : one.value(point);
      if (value === null) {
        open = false;
        continue;
      }
      const y = HEIGHT - 1 - (Math.min(value, top) / top) * (HEIGHT - 2);
      // A point alone is a line to itself, which is drawn as a dot.
      path += `${open ? "L" : "M"}${this.#x(point).toFixed(1)} ${y.toFixed(1)}${open ? "" : "h0"}`;
      open = true;
    }
    return path;
  }

  /** Show the values of the moment under the cursor, else of now. */
  #read() {
    const seen = this.points.filter((point) => !point.gap);
    const wanted = this.now + (this.cursor ?? 0);
    const point = seen.reduce((best, one) =>
      best && Math.abs(best.time - wanted) <= Math.abs(one.time - wanted) ? best : one, null);
    const past = this.cursor !== null && point !== null;
    const when = past ? `${span(this.now - point.time)} ago` : "now";
    say(this.moment, when);
    this.rule.setAttribute("d", past ? `M${this.#x(point).toFixed(1)} 0V${HEIGHT}` : "");
    const words = this.series.map((one, index) => {
      const value = point ? this.show(one.value(point)) : NONE;
      say(this.lines[index].value, value);
      return `${one.name} ${value}`;
    });
    this.area.setAttribute("aria-valuenow", String(Math.round(this.cursor ?? 0)));
    this.area.setAttribute("aria-valuetext", `${when}: ${words.join(", ")}`);
  }

  #fillTable() {
    const seen = this.points.filter((point) => !point.gap);
    const every = Math.max(1, Math.ceil(seen.length / ROWS));
    const rows = seen.filter((_, index) => (seen.length - 1 - index) % every === 0).reverse();
    const names = ["Time", ...this.series.map((one) => one.name)];
    const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
    this.table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows.map((point) =>
      make("tr", {}, make("th", { scope: "row" }, clock(point.time)),
        ...this.series.map((one) => make("td", {}, this.show(one.value(point))))))));
  }

  #listen() {
    const point = (event) => {
      const box = this.area.getBoundingClientRect();
      this.#move(((event.clientX - box.left) / box.width - 1) * this.span);
    };
    this.area.addEventListener("pointermove", point);
    this.area.addEventListener("pointerdown", point);
    this.area.addEventListener("pointerleave", () => this.#move(null));
    this.area.addEventListener("blur", () => this.#move(null));
    this.area.addEventListener("keydown", (event) => {
      const at = this.cursor ?? 0;
      const to = {
        ArrowLeft: at - 10, ArrowDown: at - 10, PageDown: at - 60, Home: -this.span,
        ArrowRight: at + 10, ArrowUp: at + 10, PageUp: at + 60, End: 0, Escape: null,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.#move(to);
    });
    this.details.addEventListener("toggle", () => this.details.open && this.series && this.#fillTable());
  }

  #move(cursor) {
    this.cursor = cursor === null ? null : Math.min(0, Math.max(-this.span, cursor));
    if (this.series) this.#read();
  }
}
