// Joins the parts: what pointer, wheel and keys do.

function update(value) {
  setThreshold(value);
  const right = state.shown.filter((one) => one.right).length;
  const found = actions.filter((one) => bestShown(one).tiou >= FOUND_TIOU).length;
  const parts = [`${state.shown.length} of ${detections.length} detections shown`];
  if (data.hasGroundTruth) {
    parts.push(`${right} right, ${state.shown.length - right} wrong`, `${found} of ${actions.length} true actions found`);
  }
  byId("summary").textContent = parts.join(" \u00b7 ");
  byId("level").textContent = scoreText(value);
  const slider = byId("threshold");
  slider.setAttribute("aria-valuetext", `${scoreText(value)}: ${parts[0]}`);
  if (scoreAt(Number(slider.value)) !== value) slider.value = positionOf(value);
  layout();
  fillTable();
  showChosen();
}

function showChosen() {
  markRow();
  byId("chosen").textContent = state.chosen ? describe(state.chosen).join(" \u00b7 ")
    : "Click a segment, or use the arrow keys, to play exactly it.";
}

function choose(one) {
  state.chosen = one;
  reveal(one);
  draw();
  showChosen();
  playSegment(one);
}

/** The shown detection before or after the chosen one (or the playhead) in time. */
function step(direction) {
  const inTime = [...state.shown].sort((a, b) => a.start - b.start || a.number - b.number);
  let at = inTime.indexOf(state.chosen);
  if (at < 0) {
    at = inTime.findIndex((one) => one.start >= player.position);
    if (at < 0) at = inTime.length;
    if (direction > 0) at -= 1;
  }
  const next = inTime[at + direction];
  if (next) choose(next);
}

function nudge(steps) {
  const slider = byId("threshold");
  slider.value = Number(slider.value) + steps;
  update(scoreAt(Number(slider.value)));
}

// --- pointer ---

function showTip(one, x, y) {
  const tip = byId("tip");
  tip.hidden = !one;
  if (!one) return;
  tip.textContent = describe(one).join("\n");
  const left = Math.min(x + 14, window.innerWidth - tip.offsetWidth - 8);
  const under = y + 18 + tip.offsetHeight < window.innerHeight;
  tip.style.transform = `translate(${Math.max(left, 4)}px, ${under ? y + 18 : y - tip.offsetHeight - 10}px)`;
}

function atPointer(event) {
  return toSeconds(event.clientX - lanesSvg.getBoundingClientRect().left);
}

/** Calls `move` while the pointer is held down, `click` if it never moved. */
function onDrag(element, move, click) {
  element.addEventListener("pointerdown", (down) => {
    if (down.button) return;
    let last = down.clientX, far = false;
    const moving = (event) => {
      far ||= Math.abs(event.clientX - down.clientX) > 4;
      if (far) {
        showTip(null);
        element.classList.add("moving");
        move(event, event.clientX - last);
        last = event.clientX;
      }
    };
    const done = (event) => {
      window.removeEventListener("pointermove", moving);
      window.removeEventListener("pointerup", done);
      window.removeEventListener("pointercancel", done);
      element.classList.remove("moving");
      if (!far && event.type === "pointerup") click(down);
    };
    window.addEventListener("pointermove", moving);
    window.addEventListener("pointerup", done);
    window.addEventListener("pointercancel", done);
  });
}

/** Zooms or moves. Over the lanes of a timeline taller than the window, the plain wheel scrolls the page. */
function onWheel(event) {
  const tall = byId("timeline").offsetHeight > 0.8 * window.innerHeight;
  if (event.currentTarget === lanesSvg && tall && !event.ctrlKey && !event.shiftKey && !event.deltaX) return;
  if (event.ctrlKey || (!event.shiftKey && Math.abs(event.deltaY) >= Math.abs(event.deltaX))) {
    const whole = state.end - state.start >= length;
    if (whole && event.deltaY > 0 && !event.ctrlKey) return; // nothing to zoom out: let the page scroll
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1;
    zoom(Math.exp(Math.min(Math.max(event.deltaY * lines, -300), 300) / 400), atPointer(event));
  } else {
    event.preventDefault();
    pan((event.deltaX || event.deltaY) / width);
  }
}

onDrag(lanesSvg, (_, shift) => pan(-shift / width), (event) => {
  const one = segmentOf(event.target);
  if (one) choose(one);
  else seek(atPointer(event));
});
onDrag(byId("ruler"), (event) => seek(atPointer(event)), (event) => seek(atPointer(event)));
function centre(event) {
  const box = byId("overview").getBoundingClientRect();
  const middle = ((event.clientX - box.left) / box.width) * length;
  setView(middle - (state.end - state.start) / 2, middle + (state.end - state.start) / 2);
}
onDrag(byId("overview"), centre, centre);
for (const id of ["lanes", "ruler", "overview"]) byId(id).addEventListener("wheel", onWheel, { passive: false });
lanesSvg.addEventListener("pointermove", (event) => {
  if (!event.buttons) showTip(segmentOf(event.target), event.clientX, event.clientY);
});
lanesSvg.addEventListener("pointerleave", () => showTip(null));
byId("list").addEventListener("scroll", ({ target }) => {
  if (target.scrollTop + target.clientHeight > target.scrollHeight - 300) moreRows();
});
byId("rows").addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row) choose(segmentOf(row));
});
for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => sortBy(button.dataset.sort));
}
byId("threshold").addEventListener("input", (event) => update(scoreAt(Number(event.target.value))));
const buttons = { play: togglePlay, previous: () => step(-1), next: () => step(1), closer: () => zoom(0.5),
  wider: () => zoom(2), fit: () => setView(0, length), ask: () => byId("help").showModal() };
for (const [id, action] of Object.entries(buttons)) byId(id).addEventListener("click", action);

// --- keys ---

const keys = { " ": togglePlay, ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  Enter: () => state.chosen && playSegment(state.chosen), "[": () => nudge(-20), "]": () => nudge(20),
  "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "0": () => setView(0, length),
  "?": () => byId("help").showModal() };

window.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const tag = event.target.tagName;
  if (tag === "INPUT" && event.key.startsWith("Arrow")) return; // the slider's own
  if (["BUTTON", "A"].includes(tag) && [" ", "Enter"].includes(event.key)) return;
  const shift = event.shiftKey && { ArrowLeft: () => pan(-0.25), ArrowRight: () => pan(0.25) }[event.key];
  const action = shift || keys[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}, { capture: true }); // before the video element takes space and arrows for itself

// --- start ---

document.body.classList.toggle("has-gt", data.hasGroundTruth);
document.body.classList.toggle("blank", Boolean(data.unread) && !actions.length); // there is no time to show
byId("threshold").value = positionOf(state.threshold);
update(state.threshold);
openVideo();
moved(0);
new IntersectionObserver((entries) => {
  player.inSight = entries[entries.length - 1].intersectionRatio >= 0.2;
  dock();
}, { threshold: [0, 0.2, 1] }).observe(byId("screen"));
let laidOut = byId("timeline").clientWidth;
new ResizeObserver(() => {
  if (byId("timeline").clientWidth === laidOut) return; // only higher: that was a layout's own doing
  laidOut = byId("timeline").clientWidth;
  layout();
}).observe(byId("timeline"));
