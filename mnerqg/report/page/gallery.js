"use strict";
// The cards of the posts that fit the filter, a page at a time: thousands of cards at once would be slow.

const CARDS_A_PAGE = 20;
const gallery = { posts: [], page: 0 };

function pages() {
  return Math.max(1, Math.ceil(gallery.posts.length / CARDS_A_PAGE));
}

function applyFilter() {
  gallery.posts = filtered(readFilter());
  showPage(0);
}

function showPage(page) {
  gallery.page = Math.min(Math.max(page, 0), pages() - 1);
  const start = gallery.page * CARDS_A_PAGE;
  const shown = gallery.posts.slice(start, start + CARDS_A_PAGE);
  byId("posts").replaceChildren(...shown.map(postCard));
  byId("nothing").hidden = gallery.posts.length > 0;
  byId("found").textContent = `${gallery.posts.length.toLocaleString("en")} of ${count(DATA.posts.length, "post", "posts")}`;
  byId("page").textContent = gallery.posts.length ? `Page ${gallery.page + 1} of ${pages()}` : "";
  for (const end of ["", "-below"]) {
    byId(`previous-page${end}`).disabled = gallery.page === 0;
    byId(`next-page${end}`).disabled = gallery.page === pages() - 1;
  }
}

function turnPage(step) {
  showPage(gallery.page + step);
  byId("gallery").scrollIntoView();
}

/** Moves the focus to a post of the filter, on whatever page it is. */
function focusPost(place) {
  if (place < 0 || place >= gallery.posts.length) return;
  const page = Math.floor(place / CARDS_A_PAGE);
  if (page !== gallery.page) showPage(page);
  const card = byId("posts").children[place - page * CARDS_A_PAGE];
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "start" });
}

function movePost(step) {
  const card = document.activeElement.closest?.(".post");
  const here = card ? [...byId("posts").children].indexOf(card) : -1;
  const place = here < 0 ? (step > 0 ? 0 : CARDS_A_PAGE - 1) : here + step;
  focusPost(Math.min(gallery.page * CARDS_A_PAGE + place, gallery.posts.length - (here < 0 ? 1 : 0)));
}

/** Shows the post that the address names (`#post=HASH`), whatever the filter was. */
function followLink() {
  const hash = /^#post=(\d+)$/.exec(location.hash)?.[1];
  if (hash === undefined) return;
  const place = () => gallery.posts.findIndex((post) => post.hash === hash);
  if (place() >= 0) {
    focusPost(place());
  } else {
    byId("filter-form").reset();
    setTimeout(() => focusPost(place())); // after what the reset itself has put off
  }
}

const KEYS = { n: 1, j: 1, ArrowRight: 1, p: -1, k: -1, ArrowLeft: -1 };

/** Keys of the gallery; not while somebody types, and not with a modifier, which is the browser's. */
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  if (KEYS[event.key]) {
    event.preventDefault();
    movePost(KEYS[event.key]);
  } else if (event.key === "/") {
    event.preventDefault();
    byId("filters").open = true;
    byId("search").focus();
  }
}

async function copyQuery() {
  const query = duckdbQuery(readFilter());
  let done = true;
  try {
    await navigator.clipboard.writeText(query);
  } catch {
    // A page from disk may not be allowed to: then by way of a selection.
    const area = element("textarea", { class: "hidden", "aria-label": "DuckDB query" });
    area.value = query;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  byId("copied").textContent = done ? "Copied: it asks all posts, not only the sample." : "The browser does not let the page copy.";
}

function startGallery() {
  fillForm();
  const form = byId("filter-form");
  form.addEventListener("input", (event) => {
    showScores(event.target);
    applyFilter();
  });
  // The event comes before the fields have their first values again.
  form.addEventListener("reset", () => setTimeout(() => {
    showScores();
    applyFilter();
  }));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const end of ["", "-below"]) {
    byId(`previous-page${end}`).addEventListener("click", () => turnPage(-1));
    byId(`next-page${end}`).addEventListener("click", () => turnPage(1));
  }
  byId("copy-query").addEventListener("click", copyQuery);
  byId("gallery").addEventListener("keydown", onKey);
  // On a phone the posts come first.
  if (matchMedia("(max-width: 63.99rem)").matches) byId("filters").open = false;
  applyFilter();
  addEventListener("hashchange", followLink);
  followLink();
}
