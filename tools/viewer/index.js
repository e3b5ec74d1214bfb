// The list of all videos: sorted, searched, and put on the page in parts, so that thousands scroll well.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const ROWS_AT_ONCE = 80; // added when the end comes near

const videos = data.videos.map(([page, name, length, actions, shown, missed, wrong, top, segments, found, reason], rank) => (
  { page, name, length, actions, shown, missed, wrong, error: missed + wrong, top, segments, found, reason, rank }));

const falling = (field) => (a, b) => b[field] - a[field] || a.rank - b.rank;
const rising = (field) => (a, b) => a[field] - b[field] || a.rank - b.rank;
const byName = (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true });
const inRank = (a, b) => a.rank - b.rank;
const errorOrders = { "error, largest first": inRank, "error, smallest first": rising("error"),
  "missed": falling("missed"), "false": falling("wrong"), "true actions": falling("actions") };
const orders = { ...(data.hasGroundTruth ? errorOrders : { "detections shown": inRank }),
  "score, highest first": falling("top"), ...(data.hasGroundTruth ? { "detections shown": falling("shown") } : {}),
  "length": falling("length"), "name": byName };

const columns = [
  ...(data.hasGroundTruth ? [["error", (v) => v.error.toFixed(2)], ["missed", (v) => v.missed.toFixed(2)],
    ["false", (v) => v.wrong.toFixed(2)], ["true", (v) => v.actions]] : []),
  ["shown", (v) => (v.reason ? "-" : v.shown)],
  ...(data.hasGroundTruth ? [] : [["top score", (v) => (v.reason ? "-" : v.top.toFixed(3))]]),
];

/** One path for all rectangles of a kind: x and width in thousandths of the video. */
function bars(kind, spans, y, height) {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("class", kind);
  path.setAttribute("d", spans.map(([a, b]) => `M${a} ${y}H${Math.max(b, a + 3)}V${y + height}H${a}Z`).join(""));
  return path;
}

function miniTimeline(video) {
  const image = document.createElementNS(SVG, "svg");
  image.setAttribute("class", "mini-timeline");
  image.setAttribute("viewBox", "0 0 1000 24");
  image.setAttribute("preserveAspectRatio", "none");
  image.setAttribute("aria-hidden", "true");
  const right = video.found.filter((one) => one[2] || !data.hasGroundTruth);
  const wrong = video.found.filter((one) => !one[2] && data.hasGroundTruth);
  image.append(bars("ground", [[0, 1000]], 0, 24), bars("action", video.segments, 2, 8),
    bars("right", right, 12, 7), bars("wrong", wrong, 20, 4));
  return image;
}

function element(name, text, kind) {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function rowOf(video) {
  const link = element("a", "", "row");
  link.href = video.page;
  const name = element("span", video.name, "name");
  name.title = video.name;
  link.append(name, video.reason ? element("span", `not read: ${video.reason}`, "unread") : miniTimeline(video));
  columns.forEach(([title, text], i) => {
    const cell = element("span", "", i ? "number" : "number main");
    cell.append(element("small", `${title} `), String(text(video)));
    link.append(cell);
  });
  const item = document.createElement("li");
  item.append(link);
  return item;
}

let matching = [];

function more() {
  const list = byId("videos");
  const from = list.childElementCount;
  list.append(...matching.slice(from, from + ROWS_AT_ONCE).map(rowOf));
}

function refresh() {
  const parts = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  matching = videos.filter((video) => parts.every((part) => video.name.toLowerCase().includes(part)));
  matching.sort(orders[byId("sort").value]);
  byId("videos").replaceChildren();
  byId("count").textContent = matching.length === videos.length ? `${videos.length} videos`
    : `${matching.length} of ${videos.length} videos`;
  byId("none").hidden = matching.length > 0;
  more();
  watchEnd();
}

/** Checks again whether the end of the list is near: an observer only reports changes. */
function watchEnd() {
  observer.disconnect();
  observer.observe(byId("more"));
}

const observer = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting) && byId("videos").childElementCount < matching.length) {
    more();
    watchEnd();
  }
}, { rootMargin: "800px" });

function explain() {
  const legend = data.hasGroundTruth ? [["action", "true action"], ["right", "detection, right"],
    ["wrong", "detection, wrong (thin, below)"]] : [["right", "detection"]];
  const keys = legend.map(([kind, text]) => {
    const key = element("span", "", "key");
    key.append(element("i", "", kind), text);
    return key;
  });
  const level = Number(data.threshold.toPrecision(3));
  const nothingRight = !videos.some((video) => video.found.some((one) => one[2])); // then no F1 is best
  const readable = ": 0.3 of the usual best score, or more where that leaves over ten per video";
  const chosen = !data.hasGroundTruth ? readable
    : nothingRight ? `${readable}; none is right at tIoU 0.5` : ", where F1 at tIoU 0.5 over all videos is best";
  const order = data.hasGroundTruth
    ? "Error, 0 to 2, is missed + false. Missed: 1 - mean over the true actions of the best tIoU with a shown detection "
      + "of the class. False: share of the shown score that is wrong or a repeat at tIoU 0.5."
    : "With --ground-truth, the list is sorted by error.";
  const text = `Detections with a score of at least ${level}${chosen}. ${order}`;
  byId("meaning").append(...keys, element("br", ""), text);
}

document.body.style.setProperty("--columns", columns.length);
byId("head").append(...["video", "timeline", ...columns.map(([title]) => title)].map((text) => element("span", text)));
byId("sort").append(...Object.keys(orders).map((name) => new Option(name, name)));
byId("search").addEventListener("input", refresh);
byId("sort").addEventListener("change", refresh);
explain();
refresh();
