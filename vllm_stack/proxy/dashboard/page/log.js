// The end of one program's log. It follows as long as its end is in view.

import { Away, get } from "./ask.js";
import { byId, make, say } from "./dom.js";

const LINES = 200;
const NEAR = 40; // pixels from the end

export class Log {
  constructor() {
    this.select = byId("program");
    this.text = byId("log");
    this.state = byId("log-state");
    this.follows = true;
    this.select.addEventListener("change", () => this.#turn());
    this.text.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.text;
      this.follows = scrollHeight - scrollTop - clientHeight < NEAR;
    });
  }

  /** Offer the logs of these programs; the choice stays where it is still among them. */
  offer(programs) {
    if (programs.join() === [...this.select.options].map((option) => option.value).join()) return;
    const chosen = this.select.value;
    this.select.replaceChildren(...programs.map((name) => make("option", { value: name }, name)));
    if (programs.includes(chosen)) this.select.value = chosen;
  }

  open(program) {
    this.select.value = program;
    this.text.focus();
    this.#turn();
  }

  /** Show another one at once; that the proxy is away is said by the next look. */
  #turn() {
    this.refresh().catch((error) => {
      if (!(error instanceof Away)) throw error;
    });
  }

  /** Look at the log again; throws `Away`. */
  async refresh() {
    const program = this.select.value;
    if (!program) return;
    const text = await get(`logs?worker=${encodeURIComponent(program)}&lines=${LINES}`);
    if (program !== this.select.value) return;
    const follows = this.follows || this.shown !== program;
    say(this.text, text);
    const what = follows ? `last ${LINES} lines at most` : "scrolled up, so it does not follow";
    say(this.state, text ? what : "There is nothing in this log yet.");
    this.text.setAttribute("aria-label", `End of the log of ${program}`);
    this.shown = program;
    if (follows) this.text.scrollTop = this.text.scrollHeight;
  }
}
