"use strict";
// Which posts of the sample are shown, and in which order.

const byId = (id) => document.getElementById(id);

const ORDERS = {
  drawn: ["as drawn", () => 0],
  unsure: ["least sure first", (post) => Math.min(2, ...post.entities.map((entity) => entity.score ?? 0))],
  most: ["most entities first", (post) => -post.entities.length],
  id: ["by post_id", null],
};
const GOLD_LABELS = {
  right: "right", false: "false", missed: "missed", "box right": "box right", "box wrong": "box wrong", "box missed": "box missed",
};

/** The filter as the form has it. */
function readFilter() {
  const checked = (id) => new Set([...document.querySelectorAll(`#${id} input:checked`)].map((input) => input.value));
  return {
    search: byId("search").value.trim(),
    types: checked("filter-types"),
    from: Number(byId("score-from").value) / 100,
    to: Number(byId("score-to").value) / 100,
    picture: byId("filter-picture").value,
    text: byId("filter-text").value,
    error: byId("filter-error").value,
    gold: byId("filter-gold") ? checked("filter-gold") : new Set(),
    order: byId("order").value,
  };
}

function picturesStatuses(post) {
  return post.pictures.length ? post.pictures.map((picture) => picture.status) : ["none"];
}

function fits(post, filter) {
  const { types, from, to, search, picture, text, error, gold } = filter;
  if (types.size || from > 0 || to < 1) {
    const inside = (entity) => (!types.size || types.has(entity.type)) && (entity.score ?? 0) >= from && (entity.score ?? 0) <= to;
    const missed = gold.size && (post.gold?.missed ?? []).some((span) => types.has(span.type));
    if (!post.entities.some(inside) && !missed) return false;
  }
  if (picture && !picturesStatuses(post).includes(picture)) return false;
  if (text && post.textStatus !== text) return false;
  if (error === "no" && post.error !== null) return false;
  if (error === "any" && post.error === null) return false;
  if (error.startsWith("reason:") && !post.reasons.includes(error.slice("reason:".length))) return false;
  if (gold.size && !(post.gold?.labels ?? []).some((label) => gold.has(label))) return false;
  if (!search) return true;
  const words = post.text ?? post.entities.map((entity) => entity.text).join("\n");
  return words.toLowerCase().includes(search.toLowerCase());
}

function filtered(filter) {
  const posts = DATA.posts.filter((post) => fits(post, filter));
  if (filter.order === "id") return posts.sort((one, other) => (one.id ?? "").localeCompare(other.id ?? ""));
  const key = ORDERS[filter.order][1];
  return posts.sort((one, other) => key(one) - key(other)); // stable: what is equal stays as drawn
}

// ---- the form -----------------------------------------------------------------------------------

function chips(place, values, colour) {
  for (const [value, words] of values) {
    const input = element("input", { type: "checkbox", value });
    place.append(element("label", { class: `chip ${colour ? typeClass(value) : ""}` }, input, element("span", {}, words)));
  }
}

function options(select, values) {
  for (const [value, words] of values) select.append(element("option", { value }, words.length > 70 ? `${words.slice(0, 69)}…` : words));
}

function counted(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort((one, other) => other[1] - one[1]);
}

/** Fills the form with what the sample has. */
function fillForm() {
  const posts = DATA.posts;
  const words = ([value, number]) => [value, `${value.replace("_", " ")} (${number})`];
  chips(byId("filter-types"), DATA.types.map((type) => [type, type]), true);
  options(byId("filter-picture"), counted(posts.flatMap((post) => [...new Set(picturesStatuses(post))])).map(words));
  options(byId("filter-text"), counted(posts.map((post) => post.textStatus)).map(words));
  const reasons = counted(posts.flatMap((post) => [...new Set(post.reasons)]));
  options(byId("filter-error"), [["no", "none"], ["any", "with an error"],
    ...reasons.map(([reason, number]) => [`reason:${reason}`, `${reason} (${number})`])]);
  if (byId("filter-gold")) {
    chips(byId("filter-gold"), Object.entries(GOLD_LABELS), false);
    ORDERS.worst = ["worst first", (post) => -(post.gold?.faults ?? -1)];
  }
  options(byId("order"), Object.entries(ORDERS).map(([value, [name]]) => [value, name]));
}

/** The shown values of the sliders, none of which may pass the other. */
function showScores(moved) {
  const [from, to] = [byId("score-from"), byId("score-to")];
  if (Number(from.value) > Number(to.value)) {
    if (moved === from) to.value = from.value;
    else from.value = to.value;
  }
  for (const slider of [from, to]) byId(`${slider.id}-shown`).textContent = `${slider.value} %`;
}
