// Elements without markup in strings: nothing that a model or a server says can become part of the page.

export const $ = (id) => document.getElementById(id);

/** An element. props: attributes; `class`, `text` and `on` (listeners by event) are known by these names. */
export function h(name, props = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else if (key === "on") for (const [event, hear] of Object.entries(value)) made.addEventListener(event, hear);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** An element of a drawing. */
export function drawn(name, props = {}) {
  const made = document.createElementNS(document.querySelector("svg").namespaceURI, name);
  for (const [key, value] of Object.entries(props)) made.setAttribute(key, value);
  return made;
}

/** Say something to those who listen instead of looking. */
export function announce(text) {
  $("announce").textContent = text;
}

export const seconds = (s) => (s < 10 ? `${s.toFixed(1)} s` : s < 120 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`);
export const rounded = (x) => (x >= 100 ? Math.round(x).toLocaleString("en") : x >= 10 ? x.toFixed(1) : x.toFixed(2));

/** Calls `draw` once per frame, however often it is asked for. */
export function perFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
}
