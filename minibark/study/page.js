"use strict";
// The page is whole without this. Here: one cursor in all rows, clicks, keys, and what is under it.
(() => {
  const player = document.getElementById("player");
  const now = document.getElementById("now");
  const root = document.documentElement;
  const lanes = [...document.querySelectorAll(".lane:not(.still)")];
  const words = [...document.querySelectorAll(".words button")];
  const marks = [...document.querySelectorAll("g.word")];
  const readouts = [...document.querySelectorAll("[data-readout]")];
  const rows = (name) => {
    const table = document.getElementById(name);
    return table ? [...table.tBodies[0].rows].map((row) => [...row.cells].map((c) => c.textContent)) : [];
  };
  const semantic = rows("semantic-data");
  const frames = rows("frame-data");
  const times = rows("word-times");
  const duration = () => (Number.isFinite(player.duration) ? player.duration : 0);
  let until = Infinity;

  root.classList.add("live");
  for (const lane of lanes) {
    const cursor = document.createElement("div");
    cursor.className = "cursor";
    lane.append(cursor);
    lane.addEventListener("click", (event) => {
      const box = lane.getBoundingClientRect();
      seek(((event.clientX - box.left) / box.width) * duration());
    });
  }

  function last(table, at) {
    let low = 0;
    let high = table.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (Number(table[middle][1]) <= at + 1e-3) low = middle;
      else high = middle - 1;
    }
    return table[low];
  }

  const tell = {
    semantic(at) {
      const row = last(semantic, at);
      if (!row) return "";
      const end = row[7] ? `, P(end) ${row[7]}` : "";
      return `token ${row[0]}: id ${row[2]}, probability ${row[3]}, entropy ${row[5]} bits, rank ${row[6]}${end}`;
    },
    word(at) {
      const row = times.find((one) => Number(one[1]) <= at && at < Number(one[2]));
      return row ? `${row[0]}: ${row[1]} to ${row[2]} s` : "";
    },
    frame(at) {
      const row = last(frames, at);
      if (!row) return "";
      const n = (row.length - 3) / 2;
      return `frame ${row[0]}: codes ${row.slice(2, 2 + n).join(" ")}`;
    },
  };

  function draw() {
    const at = player.currentTime;
    const whole = duration();
    root.style.setProperty("--at", whole ? String(Math.min(1, at / whole)) : "0");
    const inside = (node) => Number(node.dataset.from) <= at && at < Number(node.dataset.to);
    for (const node of [...words, ...marks]) node.classList.toggle("on", inside(node));
    for (const node of readouts) node.textContent = tell[node.dataset.readout](at);
    now.textContent = `${at.toFixed(2)} s  ${tell.word(at).split(":")[0]}`;
  }

  function seek(at) {
    until = Infinity;
    player.currentTime = Math.max(0, Math.min(at, duration()));
    draw();
  }

  function hear(node) {
    seek(Number(node.dataset.from));
    until = Number(node.dataset.to);
    player.play();
  }

  function follow() {
    if (player.currentTime >= until) {
      player.pause();
      until = Infinity;
    }
    draw();
    if (!player.paused) requestAnimationFrame(follow);
  }

  for (const node of words) node.addEventListener("click", () => hear(node));
  for (const node of marks) {
    node.addEventListener("click", (event) => {
      event.stopPropagation();
      hear(node);
    });
  }
  player.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== player) other.pause();
    follow();
  });
  for (const other of document.querySelectorAll("audio[data-depth]")) {
    other.addEventListener("play", () => {
      for (const one of document.querySelectorAll("audio")) if (one !== other) one.pause();
    });
  }
  for (const event of ["timeupdate", "seeked", "loadedmetadata", "ended"]) player.addEventListener(event, draw);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest("audio, input, textarea")) return;
    const isControl = event.target.closest("button, summary, a");
    const step = event.shiftKey ? 0.5 : 0.02;
    if (event.key === " " && !isControl) {
      if (player.paused) player.play();
      else player.pause();
    } else if (event.key === "ArrowLeft") seek(player.currentTime - step);
    else if (event.key === "ArrowRight") seek(player.currentTime + step);
    else if (event.key === "[" || event.key === "]") {
      const at = player.currentTime;
      const node =
        event.key === "]"
          ? words.find((one) => Number(one.dataset.from) > at + 1e-3)
          : words.filter((one) => Number(one.dataset.from) < at - 1e-3).pop();
      if (node) seek(Number(node.dataset.from));
    } else return;
    event.preventDefault();
  });
  draw();
})();
