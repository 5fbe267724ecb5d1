// Elements by hand. Text goes in as text: nothing that a model, a log or a client said is taken for markup.

/** Make an element of a tag, with attributes, and text or children in it. */
export function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

export function drawn(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Set text where it differs: a selection survives, and nothing is laid out anew. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const byId = (id) => document.getElementById(id);

/** A list of terms with a place for each value: the elements by term. */
export function terms(list, names) {
  const places = {};
  for (const name of names) {
    places[name] = make("dd");
    list.append(make("div", {}, make("dt", {}, name), places[name]));
  }
  return places;
}

/** Set a value with its unit in a quieter type: "12 /s", "3.4 GiB". */
export function measure(element, text) {
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  const [, value, unit] = /^((?:[<>] )?\S+)(.*)$/s.exec(text) ?? [null, text, ""];
  element.replaceChildren(value);
  if (unit) element.append(make("span", { class: "unit" }, unit));
}
