"use strict";
// One post as a card: its text with the entities, its pictures with the boxes, and what became of it.

// Characters that would not be seen, or would turn the order of what follows: shown by name and not in effect. Marks
// that only say which way a character reads (U+200E, U+200F) and joiners belong to many scripts and stay.
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufeff]/u;
const CONTROL_NAMES = {
  "\u0000": "NUL", "\u001b": "ESC", "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO",
  "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\ufeff": "BOM",
};
const VERDICTS = { right: "right", type: "another type", span: "another span", false: "false" };
const RIGHT_IOU = 0.5;

/** The card of a post. */
function postCard(post) {
  const card = element("article", {
    class: "post", id: `post-${post.hash}`, tabindex: "-1", "aria-label": `Post ${post.id ?? post.hash}`,
  });
  card.append(picturesOf(post), wordsOf(post));
  connect(card, post);
  return card;
}

// ---- text ---------------------------------------------------------------------------------------

function wordsOf(post) {
  const words = element("div", { class: "words" });
  words.append(textOf(post));
  if (post.cut) words.append(element("p", { class: "dim" }, `${count(post.cut, "more character is", "more characters are")} not in this page.`));
  if (post.entities.length || post.gold?.missed.length) words.append(listOf(post));
  else words.append(element("p", { class: "dim" }, "No entity was found."));
  // What went wrong with a picture stands in its place.
  if (post.error && !post.pictures.some((picture) => picture.error === post.error)) words.append(element("p", { class: "error" }, post.error, post.retryable ? " (worth a retry)" : ""));
  words.append(moreOf(post), metaOf(post));
  return words;
}

function textOf(post) {
  if (post.text === null || !post.text.trim()) {
    const why = post.textStatus === "empty" ? "The post has no text." : "The text is not at hand.";
    return element("p", { class: "text none" }, why);
  }
  // Offsets are code points, not the UTF-16 units of JavaScript.
  const points = Array.from(post.text);
  const marks = [
    ...post.entities.map((entity, index) => ({ ...entity, index })),
    ...(post.gold?.missed ?? []).map((span) => ({ ...span, missed: true })),
  ];
  const cuts = new Set([0, points.length]);
  for (const mark of marks) for (const end of [mark.start, mark.end]) if (end < points.length) cuts.add(end);
  const ends = [...cuts].sort((one, other) => one - other);
  const text = element("p", { class: "text", dir: "auto" });
  ends.slice(0, -1).forEach((start, place) => {
    const end = ends[place + 1];
    const around = marks.filter((mark) => mark.start <= start && mark.end >= end);
    // Entities may overlap: the shortest one is the innermost.
    around.sort((one, other) => (one.end - one.start) - (other.end - other.start));
    let inner = visible(points.slice(start, end).join(""));
    for (const mark of around) inner = [markOf(post, mark, inner, start, end)];
    text.append(...inner);
  });
  return text;
}

/** Text nodes, with characters that cannot be seen by their names. */
function visible(text) {
  return text.split(new RegExp(`(${CONTROLS.source})`, "u")).filter(Boolean).map((part) => {
    if (!CONTROLS.test(part)) return document.createTextNode(part);
    const code = `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    return element("span", { class: "control", title: code }, CONTROL_NAMES[part] ?? code);
  });
}

/** A piece of an entity: the first one takes the focus, the last one bears the type. */
function markOf(post, mark, inner, start, end) {
  if (mark.missed) {
    const label = end === mark.end ? element("small", {}, `${mark.type} missed`) : null;
    return element("mark", { class: `entity missed ${typeClass(mark.type)}` }, inner, label);
  }
  const verdict = post.gold?.verdicts[mark.index] ?? null;
  const made = element("mark", {
    class: `entity ${typeClass(mark.type)}${verdict && verdict !== "right" ? " wrong-one" : ""}`,
    "data-entity": mark.index,
    title: describeEntity(post, mark),
    ...(start === mark.start ? { tabindex: "0", role: "button", "aria-pressed": "false" } : {}),
  }, inner);
  if (end === mark.end) made.append(element("small", {}, mark.type));
  return made;
}

function describeEntity(post, entity) {
  const verdict = post.gold ? `, ${VERDICTS[post.gold.verdicts[entity.index]]}` : "";
  return `${entity.type}, score ${percent(entity.score)}${entity.region === null ? ", no box" : ""}${verdict}`;
}

function listOf(post) {
  const list = element("ul", { class: "found", "aria-label": "Entities" });
  post.entities.forEach((entity, index) => {
    const verdict = post.gold?.verdicts[index] ?? null;
    list.append(element("li", { class: typeClass(entity.type), "data-entity": index },
      element("b", {}, entity.type), element("bdi", {}, visible(entity.text)),
      element("span", { class: "number" }, percent(entity.score)),
      verdict && element("span", { class: `verdict ${verdict === "right" ? "good" : "bad"}` },
        `${verdict === "right" ? "✓" : "✗"} ${VERDICTS[verdict]}`)));
  });
  for (const span of post.gold?.missed ?? []) {
    list.append(element("li", { class: typeClass(span.type) },
      element("b", {}, span.type), element("bdi", {}, visible(span.text)),
      element("span", { class: "verdict bad" }, "✗ missed")));
  }
  return list;
}

function moreOf(post) {
  const rows = [
    ["row_hash", post.hash],
    ["text", post.textStatus],
    ["picture", post.pictures.map((picture) => picture.status).join(", ") || "none"],
    ...post.existence.map(([type, score]) => [`${type} in the text`, percent(score)]),
    ...post.more,
  ];
  const list = element("dl");
  for (const [name, value] of rows) list.append(element("dt", {}, name), element("dd", {}, element("bdi", {}, visible(value))));
  return element("details", { class: "more" }, element("summary", {}, "All of the row"), list);
}

function metaOf(post) {
  const meta = element("p", { class: "meta" }, element("bdi", {}, visible(post.id ?? "no post_id")));
  if (post.textStatus !== "ok") meta.append(element("span", {}, `text ${post.textStatus}`));
  meta.append(element("a", { href: `#post=${post.hash}`, "aria-label": `Link to post ${post.id ?? post.hash}` }, "link"));
  return meta;
}

// ---- pictures -----------------------------------------------------------------------------------

function picturesOf(post) {
  const column = element("div", { class: `pictures${post.pictures.length > 1 ? " several" : ""}` });
  post.pictures.forEach((picture, place) => column.append(pictureOf(post, picture, place)));
  if (!post.pictures.length) column.append(placeholder({ status: "none", why: "the post has no picture", error: null }));
  return column;
}

function pictureOf(post, picture, place) {
  if (picture.uri === null) return placeholder(picture);
  const which = post.pictures.length > 1 ? `Picture ${place + 1} of ${post.pictures.length}` : "Picture";
  const image = element("img", {
    src: picture.uri, alt: `${which} of the post, ${picture.width} by ${picture.height} pixels`,
    width: picture.width, height: picture.height, loading: "lazy", decoding: "async",
  });
  const shown = element("div", { class: "picture" }, image);
  // Large boxes first, so that a small one inside them can be reached.
  const regions = post.regions.map((region, index) => ({ ...region, index })).filter((region) => region.picture === place);
  regions.sort((one, other) => area(other.box) - area(one.box));
  for (const region of regions) shown.append(boxOf(post, picture, region));
  if (place === 0) for (const box of post.gold?.boxes ?? []) shown.append(goldBoxOf(picture, box));
  return shown;
}

function placeholder(picture) {
  const sign = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  sign.setAttribute("viewBox", "0 0 24 24");
  sign.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M3 5h18v14H3zM3 16l5-5 5 5 3-3 5 5M4 21 20 3");
  sign.append(path);
  return element("div", { class: "placeholder" }, sign,
    element("strong", {}, picture.status === "ok" ? "not shown" : picture.status.replace("_", " ")),
    element("span", {}, picture.why), picture.error && element("span", { class: "error" }, picture.error));
}

function area([left, top, right, bottom]) {
  return (right - left) * (bottom - top);
}

function boxOf(post, picture, region) {
  const iou = post.gold?.ious[region.index] ?? null;
  const names = post.entities.filter((entity) => entity.region === region.index).map((entity) => entity.text);
  const overlap = iou === null ? "" : `, IoU with gold ${iou.toFixed(2)}`;
  const label = `${region.type} box, score ${percent(region.score)}${overlap}${names.length ? `: ${names.join(", ")}` : ""}`;
  const made = element("button", {
    type: "button", class: `box ${typeClass(region.type)}${insideClass(region.box[1], picture)}`, "data-region": region.index,
    "aria-label": label, "aria-pressed": "false", title: label,
  }, element("span", {}, iou === null ? `${region.type} ${percent(region.score)}` : `${region.type} IoU ${iou.toFixed(2)} ${iou >= RIGHT_IOU ? "✓" : "✗"}`));
  return placed(made, picture, region.box);
}

function goldBoxOf(picture, box) {
  const label = `gold ${box.type}${box.missed ? ", missed" : ""}`;
  const made = element("div", { class: `box gold${insideClass(picture.height - box.box[3], picture)}`, role: "img", "aria-label": `Box of ${label}` },
    element("span", {}, label));
  return placed(made, picture, box.box);
}

/** Where there is no room above a box, or below a gold one, its label stands inside. */
function insideClass(room, picture) {
  return room < 0.1 * picture.height ? " inside" : "";
}

/** Lays an element over the picture; through the element's style, since the policy allows no style attribute. */
function placed(made, picture, [left, top, right, bottom]) {
  made.style.left = `${100 * left / picture.width}%`;
  made.style.top = `${100 * top / picture.height}%`;
  made.style.width = `${100 * (right - left) / picture.width}%`;
  made.style.height = `${100 * (bottom - top) / picture.height}%`;
  return made;
}

// ---- entities and boxes light each other --------------------------------------------------------

/** Entities and regions that belong together: by the region that an entity names, else by their type. */
function partners(post, target) {
  if (target.dataset.entity !== undefined) {
    const entity = post.entities[target.dataset.entity];
    return { type: entity.type, entities: [Number(target.dataset.entity)], regions: entity.region === null ? [] : [entity.region] };
  }
  const index = Number(target.dataset.region);
  const type = post.regions[index].type;
  const all = [...post.entities.keys()];
  const own = all.filter((place) => post.entities[place].region === index);
  return { type, entities: own.length ? own : all.filter((place) => post.entities[place].type === type), regions: [index] };
}

/** Hover and focus light an entity and its box; a click, or Enter, keeps them lit. */
function connect(card, post) {
  let kept = null;
  const light = (target) => {
    const { entities, regions } = target ? partners(post, target) : { entities: [], regions: [] };
    for (const one of card.querySelectorAll("[data-entity]")) one.classList.toggle("lit", entities.includes(Number(one.dataset.entity)));
    for (const one of card.querySelectorAll("[data-region]")) one.classList.toggle("lit", regions.includes(Number(one.dataset.region)));
    card.classList.toggle("lighting", regions.length > 0);
  };
  const targetOf = (event) => event.target.closest("[data-entity], [data-region]");
  const keep = (target) => {
    kept?.setAttribute("aria-pressed", "false");
    kept = target === kept ? null : target;
    kept?.setAttribute("aria-pressed", "true");
    light(kept);
  };
  for (const name of ["mouseover", "focusin"]) card.addEventListener(name, (event) => light(targetOf(event) ?? kept));
  for (const name of ["mouseleave", "focusout"]) card.addEventListener(name, () => light(kept));
  card.addEventListener("click", (event) => {
    const target = targetOf(event);
    if (target?.hasAttribute("aria-pressed")) keep(target);
  });
  card.addEventListener("keydown", (event) => {
    const target = targetOf(event);
    if (target?.matches("mark") && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      keep(target);
    }
  });
}
