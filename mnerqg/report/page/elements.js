"use strict";
// The data of the page, and how elements are made. Texts become text nodes: nothing here takes a string for HTML, and
// the page's policy would not let it.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PALETTE_SIZE = 8;

/** An element with attributes (null: left out) and children (elements or strings; null: left out). */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

/** The class with the colour of an entity type. */
function typeClass(type) {
  const place = DATA.types.indexOf(type);
  return `type-${(place < 0 ? 0 : place) % PALETTE_SIZE}`;
}

function percent(score) {
  return score === null ? "–" : `${(100 * score).toFixed(0)} %`;
}

function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
