// Elements in one line each. Attributes only: the page's policy allows no inline styles.

/** An element with attributes and children; false and null attributes are left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return fill(element, attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A number as people read it: `digits` significant, no exponent where avoidable. */
export function shown(value, digits = 3) {
  if (value == null) return "not recorded";
  const rounded = Number(Number(value).toPrecision(digits));
  return Math.abs(rounded) > 0 && Math.abs(rounded) < 1e-4
    ? rounded.toExponential()
    : String(rounded);
}

/** The largest of any number of values; 0 where there is none above. */
export function highest(values) {
  return values.reduce((high, value) => Math.max(high, value), 0);
}

/** Show a sentence in an alert, or hide it. */
export function say(alert, sentence) {
  alert.textContent = sentence ?? "";
  alert.hidden = !sentence;
}
