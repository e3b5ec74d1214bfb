// The table of the shown detections, sortable; filled in parts as it is scrolled, which keeps the slider quick.

const ROWS_AT_ONCE = 60; // added when the end comes near
const order = { by: "score", falling: true };
const compare = {
  name: (a, b) => a.name.localeCompare(b.name),
  start: (a, b) => a.start - b.start,
  end: (a, b) => a.end - b.end,
  score: (a, b) => a.score - b.score,
  tiou: (a, b) => a.tiou - b.tiou,
  right: (a, b) => Number(a.right) - Number(b.right),
};
const rowOf = new Map();
let inOrder = [];

function makeRow(one) {
  const row = document.createElement("tr");
  const cell = (text, kind) => {
    const made = row.insertCell();
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  cell(one.name).title = one.name;
  cell(timeText(one.start), "num");
  cell(timeText(one.end), "num");
  cell(scoreText(one.score), "num");
  cell(one.tiou.toFixed(2), "num with-gt");
  cell(matchText(one), `with-gt match ${matchText(one)}`);
  row.dataset.detection = one.number;
  return row;
}

function listed(one) {
  if (!rowOf.has(one)) rowOf.set(one, makeRow(one));
  return rowOf.get(one);
}

function moreRows() {
  const from = byId("rows").childElementCount;
  byId("rows").append(...inOrder.slice(from, from + ROWS_AT_ONCE).map(listed));
}

/** Rebuilds the rows: what is shown, in the chosen order; the score decides between equals. */
function fillTable() {
  const sign = order.falling ? -1 : 1;
  inOrder = [...state.shown].sort((a, b) => sign * compare[order.by](a, b) || b.score - a.score);
  byId("rows").replaceChildren();
  moreRows();
  byId("none").hidden = inOrder.length > 0;
  for (const button of document.querySelectorAll("[data-sort]")) {
    const mine = button.dataset.sort === order.by;
    button.parentElement.setAttribute("aria-sort", mine ? (order.falling ? "descending" : "ascending") : "none");
  }
}

function sortBy(name) {
  order.falling = order.by === name ? !order.falling : ["score", "tiou", "right"].includes(name);
  order.by = name;
  fillTable();
}

function markRow() {
  for (const row of byId("rows").querySelectorAll(".chosen")) row.classList.remove("chosen");
  const position = inOrder.indexOf(state.chosen);
  if (position < 0) return;
  while (byId("rows").childElementCount <= position) moreRows();
  const row = rowOf.get(state.chosen);
  row.classList.add("chosen");
  const list = byId("list"), head = list.querySelector("thead").offsetHeight;
  // Not scrollIntoView, which would move the whole page too.
  if (row.offsetTop < list.scrollTop + head) list.scrollTop = row.offsetTop - head;
  const below = row.offsetTop + row.offsetHeight - list.clientHeight;
  if (below > list.scrollTop) list.scrollTop = below;
}
