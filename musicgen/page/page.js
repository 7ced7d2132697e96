// Not provided by gradio: scrolling and focus, a shortcut, copied links, loops without a gap, and switching
// between two clips at one position.

function whenLoaded() {
  document.getElementById("said")?.setAttribute("aria-live", "polite");
}

// After a prediction: scroll to the first input that was refused. On a narrow screen, where the result
// is below the form, scroll to the result.
function afterRun() {
  const error = document.querySelector(".field-error");
  if (error) {
    const name = error.closest("[id^=error-]")?.id.replace("error-", "field-");
    document.getElementById(name)?.querySelector("input, textarea, button")?.focus();
    error.scrollIntoView({ block: "center" });
  } else if (document.querySelector("#status .ready")) {
    const result = document.getElementById("result");
    if (result.getBoundingClientRect().top > innerHeight) result.scrollIntoView();
  }
}

// After a take's settings were filled in: lead to the form.
function toForm() {
  const first = document.querySelector("#field-prompt textarea, [id^=field-] input");
  first?.focus({ preventScroll: true });
  first?.scrollIntoView({ block: "center" });
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  // gradio sends a field's value when it has handled its input event.
  setTimeout(() => document.getElementById("generate").click(), 100);
});

document.addEventListener("click", (event) => {
  // "Cancel" becomes disabled, which would leave the focus nowhere.
  if (event.target.closest("#cancel")) document.getElementById("generate").focus();
  const link = event.target.closest("[data-copy]");
  if (link && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    navigator.clipboard?.writeText(link.href).then(() => { link.textContent = "link copied"; }, () => {});
  }
  const button = event.target.closest("[data-loop]");
  if (button) playLoop(button);
});

// The browser's own repetition of an audio element leaves a gap, that of a buffer does not.
let looping = null;

function stopLoop() {
  looping.source?.stop();
  looping.context.close();
  looping.button.textContent = "▶";
  looping.button.setAttribute("aria-pressed", "false");
  looping = null;
}

async function playLoop(button) {
  const same = looping?.button === button;
  if (looping) stopLoop();
  if (same) return;
  const now = (looping = { button, context: new AudioContext() });
  button.textContent = "■";
  button.setAttribute("aria-pressed", "true");
  const file = await fetch(button.parentElement.querySelector("a").href);
  const buffer = await now.context.decodeAudioData(await file.arrayBuffer());
  if (looping !== now) return;
  now.source = new AudioBufferSourceNode(now.context, { buffer, loop: true });
  now.source.connect(now.context.destination);
  now.source.start();
}

// The elements of the comparison that contains `target`.
function comparison(target) {
  const root = target.closest(".ab");
  if (!root) return null;
  const [a, b] = root.querySelectorAll("audio");
  const heard = root.dataset.heard === "B" ? b : a;
  return { root, a, b, heard, silent: heard === a ? b : a };
}

function playBoth({ root, a, b, heard, silent }, playing) {
  silent.muted = true;
  heard.muted = false;
  silent.currentTime = heard.currentTime;
  for (const sound of [a, b]) playing ? sound.play().catch(() => {}) : sound.pause();
  const button = root.querySelector("[data-ab=play]");
  button.textContent = playing ? "❚❚" : "▶";
  button.setAttribute("aria-label", playing ? "Pause" : "Play");
}

document.addEventListener("click", (event) => {
  const side = event.target.dataset?.ab;
  const parts = side && comparison(event.target);
  if (!parts) return;
  if (side === "play") return playBoth(parts, parts.heard.paused);
  const at = parts.heard.currentTime;
  const playing = !parts.heard.paused;
  parts.root.dataset.heard = side;
  for (const button of parts.root.querySelectorAll("[aria-pressed]"))
    button.setAttribute("aria-pressed", String(button.dataset.ab === side));
  const next = comparison(parts.root);
  next.heard.currentTime = at;
  playBoth(next, playing);
});

document.addEventListener("input", (event) => {
  const parts = event.target.type === "range" && comparison(event.target);
  if (!parts) return;
  for (const sound of [parts.a, parts.b]) sound.currentTime = event.target.value * parts.heard.duration;
});

// These two events do not bubble, so listen in the capture phase.
document.addEventListener("timeupdate", (event) => {
  const parts = comparison(event.target);
  if (!parts || event.target !== parts.heard) return;
  parts.root.querySelector("input").value = parts.heard.currentTime / parts.heard.duration;
  parts.root.querySelector("output").textContent = `${parts.heard.currentTime.toFixed(1)} s`;
}, true);
document.addEventListener("ended", (event) => {
  const parts = comparison(event.target);
  if (parts && event.target === parts.heard) playBoth(parts, false);
}, true);
