"use strict";

const el = (id) => document.getElementById(id);
const NUMBERS = ["seed", "temperature", "waveform_temperature", "fine_temperature", "max_duration_s"];
const BINS_A_SECOND = 100;
const MOST_KEPT = 8;

/** Sound that comes in pieces: it plays as it comes, and remembers what it played when. */
class Player {
  constructor() {
    this.context = null;
    this.clear(24000);
  }

  clear(rate) {
    for (const source of this.sources || []) source.stop();
    this.rate = rate;
    this.sources = [];
    this.times = []; // [when on the context's clock, from which sample, how many]
    this.parts = [];
    this.peaks = [];
    this.samples = 0;
    this.until = 0;
  }

  wake() { // in a click or key press, else browsers keep it silent
    this.context = this.context || new AudioContext();
    return this.context.resume();
  }

  add(part) {
    this.parts.push(part);
    const bin = this.rate / BINS_A_SECOND;
    part.forEach((sample, i) => {
      const at = Math.floor((this.samples + i) / bin);
      this.peaks[at] = Math.max(this.peaks[at] || 0, Math.abs(sample) / 32768);
    });
    const buffer = this.context.createBuffer(1, part.length, this.rate);
    buffer.copyToChannel(Float32Array.from(part, (sample) => sample / 32768), 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    const when = Math.max(this.until, this.context.currentTime + 0.05);
    source.start(when);
    this.until = when + buffer.duration;
    this.sources.push(source);
    this.times.push([when, this.samples, part.length]);
    this.samples += part.length;
  }

  get seconds() { return this.samples / this.rate; }

  get cursor() { // seconds of the sound that have been heard
    let heard = 0;
    const now = this.context ? this.context.currentTime : 0;
    for (const [when, first, count] of this.times) {
      if (when <= now) heard = first + Math.min(count, (now - when) * this.rate);
    }
    return heard / this.rate;
  }

  get isPlaying() {
    return Boolean(this.context) && this.context.state === "running" && this.context.currentTime < this.until;
  }
}

const player = new Player();
let running = null; // the request that is being heard
let kept = []; // what was said before, newest first

let frame = 0;

function draw() {
  cancelAnimationFrame(frame);
  const canvas = el("wave");
  const pen = canvas.getContext("2d");
  const { width, height } = canvas;
  const style = getComputedStyle(canvas);
  pen.clearRect(0, 0, width, height);
  const bins = Math.max(player.peaks.length, BINS_A_SECOND);
  pen.fillStyle = style.color;
  const columns = Math.min(bins, width / 2);
  for (let column = 0; column < columns; column++) {
    const first = Math.floor((column * bins) / columns);
    const peaks = player.peaks.slice(first, Math.max(first + 1, ((column + 1) * bins) / columns));
    if (!peaks.length) break;
    const tall = Math.max(2, Math.max(...peaks) * height);
    pen.fillRect((column * width) / columns, (height - tall) / 2, Math.max(1, width / columns - 0.5), tall);
  }
  if (player.samples) {
    pen.fillStyle = style.getPropertyValue("--accent");
    pen.fillRect(Math.min(width - 3, (player.cursor * BINS_A_SECOND * width) / bins), 0, 3, height);
  }
  if (running || player.isPlaying) frame = requestAnimationFrame(draw);
}

function buttons() {
  el("stop").disabled = !running && !player.isPlaying;
  el("pause").disabled = !player.samples || !(running || player.context.currentTime < player.until);
  el("speak").disabled = Boolean(running);
}

const say = (sentence) => { el("status").textContent = sentence; };

function complain(words, then = "No sound came of it.") {
  const sentence = words.charAt(0).toUpperCase() + words.slice(1);
  el("error").textContent = /[.?!]$/.test(sentence) ? sentence : `${sentence}.`;
  if (words) say(then);
}

function clearError() { el("error").textContent = el("warning").textContent = ""; }

// A header is ASCII: what is not comes as Python writes it.
function unescaped(words) {
  const escapes = /\\(?:(\\)|x([\da-f]{2})|u([\da-f]{4})|U([\da-f]{8}))/g;
  return words.replace(escapes, (all, slash, ...hex) =>
    slash || String.fromCodePoint(parseInt(hex.slice(0, 3).find(Boolean), 16)));
}

function headers() {
  const key = el("key").value.trim();
  if (!/^[ -~]*$/.test(key)) throw new Error("the key has characters that no key can have; it is plain letters, digits and signs");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function refusal(response) {
  if (response.status === 401) el("key-row").hidden = false;
  const body = await response.json().catch(() => null);
  const error = new Error(body?.error?.message || `the server answered with ${response.status}`);
  return Object.assign(error, { status: response.status });
}

/** The answer, if it is a good one; a network that fails is told apart from all else. */
async function ask(path, options = {}) {
  const wanted = { ...options, headers: headers() };
  const response = await fetch(path, wanted).catch((error) => {
    throw error instanceof TypeError ? new Error("the server cannot be reached") : error;
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

function asked() {
  const body = { input: el("text").value, response_format: "pcm" };
  if (el("voice").value) body.voice = el("voice").value;
  for (const id of NUMBERS) if (el(id).value !== "") body[id] = Number(el(id).value);
  return body;
}

async function speak() {
  stop(); // what is running
  clearError();
  const body = asked();
  const mine = new AbortController();
  running = mine; // before anything is waited for, so that the next one finds it
  buttons();
  await player.wake();
  if (mine.signal.aborted) return;
  unpause();
  const begin = performance.now();
  const since = () => (performance.now() - begin) / 1000;
  for (const id of ["first", "length", "rtf", "used-seed"]) el(id).textContent = "–";
  say("The model is at work.");
  buttons();
  player.clear(24000);
  draw();
  let seed = "", isOne = false, isBroken = false;
  try {
    const response = await ask("v1/audio/speech", {
      method: "POST", body: JSON.stringify(body), signal: mine.signal,
    });
    mine.signal.throwIfAborted();
    const warning = response.headers.get("x-warning");
    if (warning) el("warning").textContent = `Note: ${unescaped(warning)}.`;
    isOne = response.headers.has("content-length"); // the sound of one piece comes whole
    seed = response.headers.get("x-seed") || "";
    player.clear(Number(response.headers.get("x-sample-rate")) || 24000);
    el("used-seed").textContent = seed;
    const reader = response.body.getReader();
    let left = new Uint8Array(0); // half a sample
    for (;;) {
      const { done, value } = await reader.read();
      mine.signal.throwIfAborted();
      if (done) break;
      const bytes = new Uint8Array(left.length + value.length);
      bytes.set(left);
      bytes.set(value, left.length);
      const even = bytes.length - (bytes.length % 2);
      left = bytes.slice(even);
      if (!even) continue;
      if (!player.samples) {
        el("first").textContent = `${since().toFixed(2)} s`;
        say("Sound is coming.");
      }
      player.add(new Int16Array(bytes.slice(0, even).buffer));
      el("length").textContent = `${player.seconds.toFixed(1)} s`;
      el("rtf").textContent = (since() / player.seconds).toFixed(2);
      buttons();
    }
    say(`All is said: ${player.seconds.toFixed(1)} seconds of sound.`);
  } catch (error) {
    if (mine.signal.aborted) return;
    isBroken = true;
    if (player.samples) complain("The sound broke off before its end", `${player.seconds.toFixed(1)} seconds of sound came, which are not kept.`);
    else complain(error instanceof TypeError ? "The sound broke off before it began" : error.message);
  } finally {
    if (running === mine) running = null;
  }
  if (player.samples && !isBroken) keep({ ...body, seed: Number(seed) }, isOne);
  el("wave").setAttribute("aria-label", player.samples ? `Wave of ${player.seconds.toFixed(1)} seconds of sound` : "No sound");
  buttons();
}

function stop() {
  if (running) running.abort();
  running = null;
  for (const source of player.sources) source.stop();
  player.until = 0;
  buttons();
}

function unpause() {
  el("pause").setAttribute("aria-pressed", "false");
}

async function pause() {
  const isPaused = player.context.state === "suspended";
  await (isPaused ? player.context.resume() : player.context.suspend());
  el("pause").setAttribute("aria-pressed", String(!isPaused));
  draw();
}

function wav(parts, rate) {
  const size = parts.reduce((sum, part) => sum + 2 * part.length, 0);
  const head = new DataView(new ArrayBuffer(44));
  const word = (at, text) => [...text].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF");
  head.setUint32(4, size + 36, true);
  word(8, "WAVEfmt ");
  [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, rate, 4], [28, 2 * rate, 4], [32, 2, 2], [34, 16, 2], [40, size, 4]]
    .forEach(([at, value, bytes]) => (bytes === 4 ? head.setUint32(at, value, true) : head.setUint16(at, value, true)));
  word(36, "data");
  return new Blob([head, ...parts], { type: "audio/wav" });
}

function keep(body, isOne) {
  const { input: text, voice, seed } = body;
  const { parts, rate } = player;
  const url = URL.createObjectURL(wav(parts, rate));
  const item = document.createElement("li");
  const words = document.createElement("span");
  words.dir = "auto";
  const brief = text.length > 80 ? `${text.slice(0, 80)}…` : text;
  words.textContent = `${brief} (${voice || "no voice"}, seed ${seed})`;
  const again = document.createElement("button");
  again.type = "button";
  again.textContent = "Replay";
  again.setAttribute("aria-label", `Replay: ${brief}`);
  again.addEventListener("click", () => replay(parts, rate));
  const link = document.createElement("a");
  link.className = "download";
  link.href = url;
  link.download = `minibark-${seed}.wav`;
  link.textContent = "WAV";
  link.setAttribute("aria-label", `Download as WAV: ${brief}`);
  item.append(words, again, link);
  if (isOne) item.append(study(body, brief));
  kept.unshift({ item, url });
  el("history").prepend(item);
  for (const old of kept.splice(MOST_KEPT)) {
    old.item.remove();
    URL.revokeObjectURL(old.url);
  }
}

/** A button that has the study page made, and becomes the link to it. */
function study(body, brief) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Study";
  button.setAttribute("aria-label", `Study how this was made: ${brief}`);
  button.addEventListener("click", async () => {
    clearError();
    button.disabled = true;
    say("The study page is being made.");
    try {
      const response = await ask("study", { method: "POST", body: JSON.stringify(body) });
      const link = document.createElement("a");
      link.className = "download";
      link.href = (await response.json()).url;
      link.target = "_blank";
      link.rel = "noopener";
      link.textContent = "Study page";
      link.setAttribute("aria-label", `Study page: ${brief}`);
      button.replaceWith(link);
      link.focus();
      say("The study page is ready.");
    } catch (error) {
      button.disabled = false;
      complain(error.message, "No study page came of it.");
    }
  });
  return button;
}

async function replay(parts, rate) {
  stop();
  await player.wake();
  unpause();
  player.clear(rate);
  parts.forEach((part) => player.add(part));
  el("length").textContent = `${player.seconds.toFixed(1)} s`;
  say("Replaying.");
  buttons();
  draw();
}

async function listVoices() {
  const response = await ask("v1/audio/voices");
  const groups = new Map();
  for (const { id, language } of (await response.json()).voices) {
    const name = language || "Voices";
    if (!groups.has(name)) {
      const group = document.createElement("optgroup");
      group.label = name;
      groups.set(name, group);
    }
    groups.get(name).append(new Option(id, id));
  }
  el("voice").replaceChildren(el("voice").options[0], ...groups.values());
}

async function start() {
  for (;;) { // while the model loads
    const health = await fetch("health").catch(() => null);
    if (health?.ok) {
      el("model").textContent = `The model is ${(await health.json()).model}.`;
      break;
    }
    el("model").textContent = health ? "The model is being loaded." : "The server cannot be reached.";
    await new Promise((done) => setTimeout(done, 1000));
  }
  await listVoices().catch((error) => {
    if (error.status === 401) say("This server has a key: give it first, above the buttons.");
    else complain(error.message, "The voices cannot be listed.");
  });
}

el("form").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
el("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) el("form").requestSubmit();
});
el("voice").addEventListener("change", () => {
  const code = /(?:^|\/)([a-z]{2})_speaker/.exec(el("voice").value);
  el("text").lang = code ? code[1] : "";
});
el("form").addEventListener("invalid", (event) => { // before the browser looks where to point at
  if (event.target !== el("form").querySelector("input:invalid, textarea:invalid")) return;
  const details = event.target.closest("details");
  if (details) details.open = true;
  complain(`${event.target.labels[0].textContent}: ${event.target.validationMessage}`);
}, true);
el("key").addEventListener("change", () => listVoices().then(() => {
  clearError();
  say("The key is right.");
}, (error) => complain(error.message, "The voices cannot be listed.")));
el("stop").addEventListener("click", () => {
  stop();
  unpause();
  if (player.context) player.context.resume();
  say("Stopped.");
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
el("pause").addEventListener("click", pause);
setInterval(buttons, 500);
start();
