// The timeline: a lane per class, true actions above detections, drawn as SVG for the part in view.

const SVG = "http://www.w3.org/2000/svg";
const lanesSvg = byId("lanes");
const BAND = 13, BAR = 9, ROW = 12, PAD = 5; // pixels: a true action, a detection, a row of them, a lane's margin
const LEAST_OPACITY = 0.22;
const NARROW = 560; // pixels, as in viewer.css: names lie above their lanes
const SHORTEST_VIEW = 0.2; // seconds
let lanes = [];

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

let width = 1; // of the lanes in pixels; asked once per drawing, as each question makes the browser lay out
const toPixel = (seconds) => ((seconds - state.start) / (state.end - state.start)) * width;
const toSeconds = (pixel) => state.start + (pixel / width) * (state.end - state.start);

// --- the part in view ---

function setView(start, end) {
  const span = Math.min(Math.max(end - start, Math.min(SHORTEST_VIEW, length)), length);
  state.start = Math.min(Math.max(start, 0), length - span);
  state.end = state.start + span;
  draw();
}

function zoom(factor, at = (state.start + state.end) / 2) {
  const span = Math.min(Math.max((state.end - state.start) * factor, Math.min(SHORTEST_VIEW, length)), length);
  const part = (at - state.start) / (state.end - state.start);
  setView(at - part * span, at + (1 - part) * span);
}

function pan(part) {
  const shift = part * (state.end - state.start);
  setView(state.start + shift, state.end + shift);
}

/** Moves the view so that it begins at these seconds, its length kept. */
function showFrom(seconds) {
  setView(seconds, seconds + state.end - state.start);
}

/** Brings a segment into view; zooms out if it is longer than the view. */
function reveal(one) {
  const span = state.end - state.start;
  if (one.start >= state.start && one.end <= state.end) return;
  const wanted = Math.max(span, 1.2 * (one.end - one.start));
  const middle = (one.start + one.end) / 2;
  setView(middle - wanted / 2, middle + wanted / 2);
}

function stretch(seconds) {
  const whole = state.start === 0 && state.end === length;
  length = seconds;
  if (whole) state.end = length;
  draw();
}

// --- drawing ---

/** Rebuilds the lanes and their heights: to be called when the shown set or the page's width changes. */
function layout() {
  const above = window.innerWidth <= NARROW ? 18 : 0;
  let top = 0;
  lanes = lanesOf().map((lane) => {
    const band = data.hasGroundTruth ? BAND + 3 : 0;
    const height = above + 2 * PAD + band + lane.rows * ROW - (ROW - BAR);
    const placed = { ...lane, top, height, actionTop: top + above + PAD, barTop: top + above + PAD + band };
    top += height;
    return placed;
  });
  lanesSvg.setAttribute("height", Math.max(top, 30));
  const names = lanes.map((lane) => {
    const name = document.createElement("div");
    name.textContent = name.title = lane.name;
    const line = above ? 18 : lane.height;
    Object.assign(name.style, { top: `${lane.top + (above ? 2 : 0)}px`, height: `${line}px`, lineHeight: `${line}px` });
    return name;
  });
  byId("names").replaceChildren(...names);
  const longest = Math.max(4, ...data.classes.map((name) => name.length));
  byId("timeline").style.setProperty("--names", `${Math.min(7.6 * longest + 24, 190)}px`);
  draw();
}

function stripes() {
  const pattern = shape("pattern", { id: "stripes", width: 5, height: 5, patternUnits: "userSpaceOnUse",
    patternTransform: "rotate(45)" });
  pattern.append(shape("rect", { width: 2.4, height: 5 }));
  const holder = shape("defs", {});
  holder.append(pattern);
  return holder;
}

function box(one, y, height, kind) {
  const left = toPixel(one.start);
  const size = Math.max(toPixel(one.end) - left, 2);
  const element = shape("rect", { x: left, y, width: size, height, rx: Math.min(2, size / 5), class: kind });
  element.dataset[one.kind] = one.number;
  if (one === state.chosen) element.classList.add("chosen");
  return element;
}

function drawLane(lane, parts) {
  const inView = (one) => one.end >= state.start && one.start <= state.end;
  for (const one of lane.actions.filter(inView)) {
    const missed = bestShown(one).tiou < FOUND_TIOU;
    parts.push(box(one, lane.actionTop, BAND, missed ? "action missed" : "action"));
  }
  for (let i = lane.placed.length - 1; i >= 0; i -= 1) { // the best on top
    const { one, row } = lane.placed[i];
    if (!inView(one)) continue;
    const kind = one.right || !data.hasGroundTruth ? "det right" : "det wrong";
    const element = box(one, lane.barTop + row * ROW, BAR, kind);
    const strength = Math.min(Math.max(one.score / highest, 0), 1);
    element.setAttribute("fill-opacity", (LEAST_OPACITY + (1 - LEAST_OPACITY) * strength).toFixed(3));
    parts.push(element);
  }
}

/** Round times to mark: at most one each 90 pixels. */
function ticks() {
  const rough = (90 * (state.end - state.start)) / width;
  const steps = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200];
  const step = steps.find((one) => one >= rough) || 3600 * Math.ceil(rough / 3600);
  const marks = [];
  for (let i = Math.ceil(state.start / step); i * step <= state.end + 1e-9; i += 1) marks.push(i * step);
  return { marks, digits: step >= 1 ? 0 : step >= 0.1 ? 1 : 2 };
}

function draw() {
  width = lanesSvg.clientWidth || 1;
  const height = Number(lanesSvg.getAttribute("height"));
  const parts = [stripes()];
  lanes.forEach((lane, i) => {
    if (i % 2) parts.push(shape("rect", { x: 0, y: lane.top, width, height: lane.height, class: "stripe" }));
  });
  const ruler = [];
  const { marks, digits } = ticks();
  for (const mark of marks) {
    const x = toPixel(mark);
    parts.push(shape("line", { x1: x, x2: x, y1: 0, y2: height, class: "tick" }));
    const anchor = x < 20 ? "start" : x > width - 24 ? "end" : "middle";
    const label = shape("text", { x: anchor === "start" ? x + 5 : x, y: 17, "text-anchor": anchor });
    label.textContent = timeText(mark, digits);
    ruler.push(label);
  }
  for (const lane of lanes) drawLane(lane, parts);
  lanesSvg.replaceChildren(...parts);
  byId("ruler").replaceChildren(...ruler);
  drawOverview();
  drawCursor();
}

/** The whole video under the timeline: true actions above, detections below, and the window that is in view. */
function drawOverview() {
  const parts = [shape("rect", { x: 0, y: 0, width, height: 18, rx: 3, class: "track" })];
  const speck = (one, y, height, kind) => shape("rect", { x: (one.start / length) * width, y, height,
    width: Math.max(((one.end - one.start) / length) * width, 1.5), class: `speck ${kind}` });
  for (const one of actions) parts.push(speck(one, 3, 5, ""));
  for (const one of state.shown) {
    parts.push(one.right || !data.hasGroundTruth ? speck(one, 9, 5, "right") : speck(one, 13, 3, "wrong"));
  }
  parts.push(shape("rect", { x: (state.start / length) * width + 0.5, y: 0.5, rx: 3, height: 17, class: "window",
    width: Math.max(((state.end - state.start) / length) * width - 1, 5) }));
  byId("overview").replaceChildren(...parts);
}

function drawCursor() {
  const cursor = byId("cursor");
  const x = toPixel(player.position);
  cursor.hidden = x < -1 || x > width + 1;
  const left = lanesSvg.getBoundingClientRect().left - byId("timeline").getBoundingClientRect().left;
  cursor.style.transform = `translateX(${left - 2 + x}px)`;
}

/** The segment that an element of the timeline stands for, or null. */
function segmentOf(element) {
  if (!element.dataset) return null;
  if (element.dataset.detection) return detections[Number(element.dataset.detection)];
  return element.dataset.action ? actions[Number(element.dataset.action)] : null;
}
