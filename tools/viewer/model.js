// The page's state: the data, which detections are shown, which part of the video is in view.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const FOUND_TIOU = 0.5; // a true action counts as found from here on

const actions = data.actions.map(([label, start, end, tiouByScore], number) => (
  { kind: "action", number, label, start, end, tiouByScore, name: data.classes[label] }));
const detections = data.detections.map(([label, start, end, score, tiou, match, right], number) => (
  { kind: "detection", number, label, start, end, score, tiou, match, right: right === 1, name: data.classes[label] }));

const state = { threshold: data.threshold, shown: [], chosen: null, start: 0, end: data.length };
let length = data.length; // seconds; grows if the file turns out longer

/** The best tIoU of a true action with a shown detection of its class, and that detection's score. */
function bestShown(action) {
  let best = [0, 0];
  for (const pair of action.tiouByScore) {
    if (pair[0] < state.threshold) break;
    best = pair;
  }
  return { score: best[0], tiou: best[1] };
}

function setThreshold(value) {
  state.threshold = value;
  state.shown = detections.filter((one) => one.score >= value); // they come by falling score
  if (state.chosen && state.chosen.kind === "detection" && state.chosen.score < value) state.chosen = null;
}

// The slider runs evenly over the scores, or over their logarithms where half of them would fill the first tenth.
const scores = detections.map((one) => one.score);
const highest = Math.max(data.topScore, state.threshold, ...scores.slice(0, 1));
const lowest = scores.length ? Math.min(scores[scores.length - 1], state.threshold) : 0;
const positive = scores.filter((score) => score > 0);
const logarithmic = lowest >= 0 && positive.length > 1
  && positive[Math.floor(positive.length / 2)] < highest / 10;
const bottom = logarithmic ? Math.min(positive[positive.length - 1], highest / 10) : lowest;
const SLIDER_STEPS = 1000;

/** The score at a position of the slider; at its left end every detection is shown. */
function scoreAt(position) {
  if (position <= 0) return Math.min(lowest, bottom);
  const part = position / SLIDER_STEPS;
  return logarithmic ? bottom * (highest / bottom) ** part : bottom + (highest - bottom) * part;
}

function positionOf(score) {
  const part = logarithmic
    ? Math.log(Math.max(score, bottom) / bottom) / Math.log(highest / bottom)
    : (score - bottom) / (highest - bottom || 1);
  return Math.round(SLIDER_STEPS * Math.min(Math.max(part, 0), 1));
}

// --- texts ---

const scoreText = (score) => (Math.abs(score) >= 0.001 || score === 0 ? score.toFixed(3) : score.toExponential(1));

/** A time: seconds, or minutes and hours in a long video. */
function timeText(seconds, digits = 2) {
  if (length <= 180) return `${seconds.toFixed(digits)} s`;
  const rounded = Number(seconds.toFixed(digits)); // first: 119.996 is 2:00.00, not 1:60.00
  const whole = Math.floor(rounded / 60);
  const rest = (rounded - 60 * whole).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return length < 3600 ? `${whole}:${rest}` : `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}:${rest}`;
}

const spanText = (one) => `${timeText(one.start)} to ${timeText(one.end)}`;
const matchText = (one) => (one.right ? "right" : "wrong");

/** The numbers of a segment, a line each. */
function describe(one) {
  if (one.kind === "action") {
    const { score, tiou } = bestShown(one);
    return [`${one.name}: true action`, spanText(one),
      tiou > 0 ? `best tIoU ${tiou.toFixed(2)}, by a detection of score ${scoreText(score)}` : "no shown detection overlaps"];
  }
  const lines = [one.name, spanText(one), `score ${scoreText(one.score)}`];
  if (!data.hasGroundTruth) return lines;
  const match = actions[one.match];
  lines.push(match ? `tIoU ${one.tiou.toFixed(2)} with the true ${spanText(match)}` : "tIoU 0: no true action of this class here");
  lines.push(one.right ? "right" : one.tiou >= FOUND_TIOU ? "wrong: a repeat, its action is taken by a higher score" : "wrong");
  return lines;
}

// --- lanes ---

const MOST_ROWS = 6; // detections that overlap lie in rows; beyond these they lie over each other

/** Each shown detection of a class gets the first row that is free at its time, the best first. */
function inRows(members) {
  const rows = [];
  return members.map((one) => {
    let row = rows.findIndex((taken) => taken.every((other) => other.end <= one.start || one.end <= other.start));
    if (row < 0) row = Math.min(rows.length, MOST_ROWS - 1);
    (rows[row] ||= []).push(one);
    return { one, row };
  });
}

/** The classes with something to show: those with true actions first, by their first; then by best score. */
function lanesOf() {
  const lanes = new Map();
  const lane = (label) => {
    if (!lanes.has(label)) lanes.set(label, { label, name: data.classes[label], actions: [], members: [] });
    return lanes.get(label);
  };
  for (const one of [...actions].sort((a, b) => a.start - b.start)) lane(one.label).actions.push(one);
  for (const one of state.shown) lane(one.label).members.push(one);
  return [...lanes.values()].map((one) => {
    const placed = inRows(one.members);
    return { ...one, placed, rows: 1 + Math.max(0, ...placed.map(({ row }) => row)) };
  });
}
