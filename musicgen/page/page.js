// Not provided by gradio: switching between two clips at one position, and scrolling to a field's error.

// After a prediction: scroll to the first input that was refused. On a narrow screen, where the result
// is below the form, scroll to the result.
function afterRun() {
  const error = document.querySelector(".field-error");
  if (error) {
    const name = error.closest("[id^=error-]").id.replace("error-", "field-");
    document.getElementById(name)?.querySelector("input, textarea, button")?.focus();
    error.scrollIntoView({ block: "center" });
  } else if (document.querySelector("#status .ready")) {
    const result = document.getElementById("result");
    if (result.getBoundingClientRect().top > innerHeight) result.scrollIntoView();
  }
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
