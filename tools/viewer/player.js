// The video: where it comes from, playing exactly one segment, and the message when it cannot be played.

const video = byId("video");
const player = { playable: false, ready: false, until: null, position: 0, origin: 0, inSight: true, used: false };

// Times of the page count from where the file begins. Some browsers count so, too; some keep a clock that the file
// starts late, such as a cut from the middle of a broadcast: then the origin is the time on it where the file begins.
const now = () => video.currentTime - player.origin;
const videoEnd = () => video.duration - player.origin;

/** The embedded bytes as an address that can be sought in; decoded in chunks to spare memory. */
function embeddedAddress() {
  const holder = byId("media");
  const text = holder.textContent.trim();
  holder.textContent = "";
  const chunk = 1 << 20; // a multiple of 4: base64 can be cut there
  const parts = [];
  for (let at = 0; at < text.length; at += chunk) {
    parts.push(Uint8Array.from(atob(text.slice(at, at + chunk)), (letter) => letter.charCodeAt(0)));
  }
  return URL.createObjectURL(new Blob(parts, { type: data.video.type }));
}

function showUnplayable(reason) {
  player.playable = false;
  player.until = null;
  byId("stage").classList.add("mute");
  byId("play").disabled = true;
  byId("notice").textContent = reason;
  byId("notice").hidden = false;
}

function cannotPlay() {
  const name = data.video.name;
  const missing = data.video.url ? ", or the file is no longer where the page looks for it" : "";
  showUnplayable(`This browser cannot play ${name}: it lacks the codec or the container${missing}. The timeline and the `
    + `table work without it. To watch it, convert it, as in: ffmpeg -i INPUT -c:v libvpx-vp9 OUTPUT.webm`);
}

function openVideo() {
  if (data.unread) {
    showUnplayable(`This video could not be read, so nothing was detected in it: ${data.unread}.`);
    return;
  }
  if (!data.video) {
    showUnplayable(`No video (${data.why}). The timeline and the table work without it.`);
    return;
  }
  player.playable = true;
  video.addEventListener("error", cannotPlay);
  video.addEventListener("loadedmetadata", () => {
    if (!video.videoWidth) cannotPlay(); // sound alone
  });
  video.addEventListener("loadeddata", () => { // only now is the clock for sure where the file begins
    player.origin = video.currentTime > data.video.begin / 2 ? data.video.begin : 0;
    player.ready = true;
    if (player.position > 0) video.currentTime = player.position + player.origin; // was asked for before
    if (Number.isFinite(video.duration)) compareLengths();
  });
  video.addEventListener("timeupdate", follow); // animation frames stop in a hidden tab
  video.addEventListener("seeking", () => {
    const early = player.until && now() < player.until.start - 0.25;
    if (early || (player.until && now() > player.until.end + 0.25)) player.until = null;
  });
  for (const event of ["play", "pause"]) {
    video.addEventListener(event, () => {
      byId("play").textContent = video.paused ? "Play" : "Pause";
      player.used ||= !video.paused;
      if (!video.paused) requestAnimationFrame(tick);
      dock();
    });
  }
  video.src = data.video.url || embeddedAddress();
}

/** A video that was played and then scrolled out of sight stays in a corner. */
function dock() {
  byId("screen").classList.toggle("away", player.playable && !player.inSight && player.used);
}

/** The axis reaches the file's end; a file that ends long before the last segment is probably another one. */
function compareLengths() {
  if (videoEnd() > length) stretch(videoEnd());
  const last = Math.max(0, ...actions.concat(detections).map((one) => one.end));
  byId("mismatch").hidden = videoEnd() > last - Math.max(0.5, 0.02 * last);
  byId("mismatch").textContent = `The video ends at ${timeText(videoEnd())}, the last segment at ${timeText(last)}: `
    + "is it the right file?";
}

function tick() {
  follow();
  if (!video.paused && !video.ended) requestAnimationFrame(tick);
}

/** Stop at the segment's end, and move the page's other parts to the video's time. */
function follow() {
  if (!player.ready) return;
  if (player.until && now() >= player.until.end && !video.paused) {
    const { end } = player.until;
    video.pause();
    player.until = null;
    video.currentTime = Math.min(end, videoEnd() || end) + player.origin;
  }
  moved(now());
}

function moved(seconds) {
  player.position = seconds;
  byId("clock").textContent = `${timeText(seconds)} / ${timeText(length)}`;
  if (player.playable && !video.paused && (seconds > state.end || seconds < state.start)) {
    showFrom(seconds);
  }
  drawCursor();
}

function seek(seconds) {
  const time = Math.min(Math.max(seconds, 0), length);
  player.until = null;
  if (player.playable && player.ready) video.currentTime = time + player.origin;
  moved(time);
}

function start() {
  // A pause that overtakes the start rejects this promise; an unplayable file has its own event.
  video.play().catch(() => {});
}

function playSegment(one) {
  seek(one.start);
  if (!player.playable) return;
  player.until = one;
  start();
}

function togglePlay() {
  if (!player.playable) return;
  if (video.paused) start();
  else video.pause();
}
