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
  const alarm = document.getElementById("alarm");
  const rows = (name) => {
    const table = document.getElementById(name);
    return table ? [...table.tBodies[0].rows].map((row) => [...row.cells].map((c) => c.textContent)) : [];
  };
  const semantic = rows("semantic-data");
  const frames = rows("frame-data");
  // Exact; the tables have rounded times.
  const rate = (name) => Number(document.getElementById(name)?.dataset.rate);
  const semanticRate = rate("semantic-data");
  const frameRate = rate("frame-data");
  const duration = () => (Number.isFinite(player.duration) ? player.duration : 0);
  // Where a word that was asked for ends, and where the page itself went last.
  let until = Infinity;
  let aim = 0;

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

  // The row that lasts at a time; a seek to a row's beginning may come out a hair before it.
  const rowAt = (table, hz, at) => table[Math.min(table.length - 1, Math.floor(at * hz + 1e-3))];
  const isInside = (node, at) => Number(node.dataset.from) <= at + 1e-6 && at < Number(node.dataset.to);
  const wordAt = (at) => words.find((node) => isInside(node, at));

  const tell = {
    semantic(at) {
      const row = rowAt(semantic, semanticRate, at);
      if (!row) return "";
      const end = row[7] ? `, P(end) ${row[7]}` : "";
      return `token ${row[0]}: id ${row[2]}, probability ${row[3]}, entropy ${row[5]} bits, rank ${row[6]}${end}`;
    },
    word(at) {
      const node = wordAt(at);
      if (!node) return "";
      const [from, to] = [node.dataset.from, node.dataset.to].map((one) => Number(one).toFixed(2));
      return `${node.textContent}: ${from} to ${to} s`;
    },
    frame(at) {
      const row = rowAt(frames, frameRate, at);
      if (!row) return "";
      const n = (row.length - 3) / 2;
      return `frame ${row[0]}: codes ${row.slice(2, 2 + n).join(" ")}`;
    },
  };

  function draw() {
    const at = player.currentTime;
    const whole = duration();
    root.style.setProperty("--at", whole ? String(Math.min(1, at / whole)) : "0");
    for (const node of [...words, ...marks]) node.classList.toggle("on", isInside(node, at));
    for (const node of readouts) node.textContent = tell[node.dataset.readout](at);
    now.textContent = `${at.toFixed(2)} s  ${wordAt(at)?.textContent ?? ""}`;
  }

  function seek(at) {
    until = Infinity;
    player.currentTime = Math.max(0, Math.min(at, duration()));
    aim = player.currentTime;
    draw();
  }

  function say(trouble) {
    alarm.textContent = trouble;
    alarm.hidden = !trouble;
  }

  function play() {
    player.play().catch((error) => {
      // A pause or another seek ends a play that has not begun; that is no trouble.
      if (error.name !== "AbortError") say(`The sound cannot be played here: ${error.message}`);
    });
  }

  function hear(node) {
    seek(Number(node.dataset.from));
    until = Number(node.dataset.to);
    play();
  }

  // Who goes elsewhere by the player's own bar is done with the word.
  function moved() {
    if (Math.abs(player.currentTime - aim) > 0.02) until = Infinity;
  }

  function follow() {
    if (player.seeking) moved(); // its event may come later than this frame
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
    say("");
    follow();
  });
  player.addEventListener("pause", () => {
    if (player.paused) until = Infinity;
  });
  player.addEventListener("seeking", moved);
  player.addEventListener("error", () => {
    const what = player.error?.message || `error ${player.error?.code}`;
    say(`The player has failed (${what}). Load the page again to hear it.`);
  });
  for (const other of document.querySelectorAll("audio[data-depth]")) {
    other.addEventListener("play", () => {
      for (const one of document.querySelectorAll("audio")) if (one !== other) one.pause();
    });
  }
  for (const event of ["timeupdate", "seeked", "loadedmetadata", "ended"]) player.addEventListener(event, draw);

  // A table with more than its box shows is scrolled by keys, and not every browser lets Tab reach it.
  const isWide = (box) => box.scrollWidth > box.clientWidth;
  const sizes = new ResizeObserver((entries) => {
    for (const { target: box } of entries) {
      if (isWide(box) || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  });
  for (const box of document.querySelectorAll(".table")) sizes.observe(box);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const isPlayer = event.target === player;
    if (event.target.closest("input, textarea") || (event.target.closest("audio") && !isPlayer)) return;
    // The browser's own player takes space itself.
    const isControl = isPlayer || event.target.closest("button, summary, a");
    const box = event.target.closest(".table");
    if (box && isWide(box) && ["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const step = event.shiftKey ? 0.5 : 0.02;
    if (event.key === " " && !isControl) {
      if (player.paused) play();
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
    event.stopPropagation();
  }, true); // before the player's own keys
  draw();
})();
